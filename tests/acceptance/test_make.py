"""What make says before it works: which programs are missing, and that there is no network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.paths import REPOSITORY
from tests.support.servers import free_port, program


def make(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("make"), "--no-print-directory", "-C", str(REPOSITORY), *arguments],
        env=environ, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


def test_missing_programs_are_named_before_an_environment_is_built(tmp_path: Path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "id", "python3", "uname"):
        (programs / name).symlink_to(program(name))
    ended = make("test", f"VENV={tmp_path}/venv", PATH=str(programs))
    assert ended.returncode == 2
    assert "programs that are not installed" in ended.stderr
    assert "mosquitto-clients" in ended.stderr
    assert not (tmp_path / "venv").exists()


def test_without_a_network_make_says_so(tmp_path: Path):
    index = f"http://127.0.0.1:{free_port()}/simple"
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    given = own | {"PIP_INDEX_URL": index, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    ended = make("demo", f"VENV={tmp_path}/venv", **given)
    assert ended.returncode == 2, ended.stdout
    assert "No network: the package index that pip asks" in ended.stderr, ended.stderr
