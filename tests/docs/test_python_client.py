"""The examples of docs/python.md against a real daemon, in a Python that has what the client needs and nothing else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE
from tests.support.markdown import blocks
from tests.support.paths import REPOSITORY

NAME = "unified-live-failover-pgtest2-1758553933"
FOLLOWED, OF_A_VM, LINES = EXAMPLES = [b.text for b in blocks("docs/python.md") if b.language == "python"]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@cache
def without_the_server() -> str:
    """A line of Python after which no module can be imported but those of the client's dependencies, and theirs."""
    needed, more = set[str](), {*map(_name, PROJECT["dependencies"])}
    while more:
        needed |= more
        more = {*map(_name, (one for name in more for one in requires(name) or () if _applies(one)))} - needed
    others = {
        module: None
        for module, names in packages_distributions().items()
        if module != "correlator" and not needed & {canonicalize_name(name) for name in names}
    }
    assert {"click", "orjson", "aiomqtt"} <= others.keys()
    return f"import sys; sys.modules.update({others!r})\n"


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _applies(requirement: str) -> bool:
    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


async def started(code: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-u", "-W", "error", "-c", without_the_server() + code)
    return await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=pipe, stderr=pipe)


async def said(process: asyncio.subprocess.Process) -> list[str]:
    """What it prints until it ends, without an error."""
    async with asyncio.timeout(PATIENCE):
        out, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    return out.decode().splitlines()


async def test_each_example_shows_what_it_says(daemon: Daemon, appliance: Appliance):
    assert all("http://127.0.0.1:8686" in example for example in EXAMPLES)
    followed, of_a_vm, lines = (example.replace("http://127.0.0.1:8686", daemon.url) for example in EXAMPLES)
    following = await started(followed)
    job_id = await appliance.job(NAME, metadata=json.dumps({"vm_name": "pgtest2"}))
    await appliance.log("it begins", job_id=job_id)
    await appliance.log("no such volume", level="WARN", job_id=job_id)
    assert following.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert (await following.stdout.readline()).startswith(b"running ")
    await appliance.end(job_id)
    assert (await said(following))[-1] == "completed 100.0 %"
    (of_vm,) = await said(await started(of_a_vm))
    assert "completed" in of_vm
    (line,) = await said(await started(lines))
    assert line.endswith("WARN None no such volume")


def test_they_are_typed_where_the_package_is_installed(tmp_path: Path) -> None:
    assert (REPOSITORY / "correlator/py.typed").exists()
    for number, example in enumerate([*EXAMPLES, FOLLOWED.replace('job["terminal"]', 'job["terminated"]')]):
        (tmp_path / f"example_{number}.py").write_text(example)
    # With the settings and the cache of `make types`: it takes seconds.
    command = [sys.executable, "-m", "mypy", *map(str, sorted(tmp_path.glob("*.py")))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    (wrong,) = (line for line in done.stdout.splitlines() if "error:" in line)
    assert "example_3.py" in wrong, done.stdout


async def test_the_command_without_the_server_says_how_to_install_it():
    process = await started("import correlator.__main__")
    _, errors = await process.communicate()
    assert "install it again as 'FILE[server]'" in errors.decode()
    assert process.returncode == 1
