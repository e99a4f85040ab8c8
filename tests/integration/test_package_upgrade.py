"""dpkg upgrades the package where nobody can answer, and what was set in its files stays in use."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from correlator.config.loading import load
from correlator.config.rendering import gateway_reference, reference
from tests.support.paths import DEPLOY, REPOSITORY
from tests.support.root_shell import write_program

HOME = {"HOME": "/root"}
OLD = reference().replace("# The correlator's", "# The old")
EDITED = OLD.replace('#timezone = "auto"', 'timezone = "Europe/Berlin"').replace("[log]\n", '[log]\nlevel = "debug"\n')


Ended = subprocess.CompletedProcess[str]


class Host(NamedTuple):
    """A root folder with dpkg's database, and the program where postinst expects it."""

    folder: Path

    @property
    def etc(self) -> Path:
        return self.folder / "root/etc/correlator"

    def install(self, version: str, files: dict[str, str], postinst: str = "", conffiles: str = "") -> Ended:
        """Install a package with these files and scripts, without a terminal."""
        package = self.folder / version
        fields = {"Package": "correlator", "Version": version, "Architecture": "all"}
        fields |= dict.fromkeys(("Maintainer", "Description"), "x")
        control = {
            "control": "".join(f"{name}: {value}\n" for name, value in fields.items()),
            "conffiles": conffiles,
            "postinst": f"#!/bin/sh\nset -e\nhome={self.folder}\n{postinst}\n",
        }
        for name, text in (files | {f"DEBIAN/{name}": text for name, text in control.items()}).items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(text)
        (package / "DEBIAN/postinst").chmod(0o755)
        built = run("dpkg-deb", "--root-owner-group", "--build", str(package))
        assert built.returncode == 0, built.stderr
        as_root = ["unshare", "--map-root-user"] if os.geteuid() else []
        root = f"--root={self.folder}/root"
        return run(*as_root, "dpkg", root, "--force-script-chrootless", "--install", f"{package}.deb")


def run(*command: str) -> Ended:
    """Run a command without a terminal."""
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", **HOME}
    environ["PYTHONPATH"] = str(REPOSITORY)
    return subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    (tmp_path / "venv/bin").mkdir(parents=True)
    write_program(tmp_path / "venv/bin", host.etc / "correlator.toml")
    for name in ("info", "updates", "triggers"):
        (tmp_path / "root/var/lib/dpkg" / name).mkdir(parents=True)
    for name in ("status", "available"):
        (tmp_path / "root/var/lib/dpkg" / name).touch()
    files = {"etc/correlator/correlator.toml": OLD, "etc/correlator/gateway.toml": "# old\n[http]\n"}
    ended = host.install("1", files, conffiles="".join(f"/{name}\n" for name in files))
    assert ended.returncode == 0, ended.stderr
    return host


def upgrade(host: Host, version: str = "2") -> Ended:
    """Upgrade to a package with what this one has of its own: the folders, and the part of postinst."""
    script = re.search(
        r"^configuration\(\) \{.*?^\}$", (DEPLOY / "debian/postinst").read_text(), re.MULTILINE | re.DOTALL
    )
    assert script is not None
    files = {"etc/correlator/conf.d/.keep": "", "etc/correlator/gateway.d/.keep": ""}
    return host.install(version, files, f"{script[0]}\nconfiguration")


def test_an_upgrade_moves_the_keys_of_edited_files_to_drop_ins_and_asks_nothing(host: Host):
    (host.etc / "correlator.toml").write_text(EDITED)
    (host.etc / "gateway.toml").write_text("[http]\nmax_readers = 7\n")
    before = load(host.etc / "correlator.toml", HOME)
    for version in ("2", "3"):
        ended = upgrade(host, version)
        assert ended.returncode == 0, ended.stderr
        assert (host.etc / "correlator.toml").read_text() == reference()
        assert (host.etc / "gateway.toml").read_text() == gateway_reference()
        assert load(host.etc / "correlator.toml", HOME) == before
        assert before.database.timezone == "Europe/Berlin"
        assert (host.etc / "gateway.d/00-moved.toml").read_text().endswith("\n\n[http]\nmax_readers = 7\n")


def test_an_upgrade_replaces_files_that_were_not_edited_or_are_missing(host: Host):
    (host.etc / "gateway.toml").unlink()
    ended = upgrade(host)
    assert (ended.returncode, "00-moved" in ended.stdout) == (0, False), ended.stderr
    assert (host.etc / "correlator.toml").read_text() == reference()
    assert (host.etc / "gateway.toml").read_text() == gateway_reference()
    assert not list(host.etc.glob("*/*.toml"))


def test_an_upgrade_leaves_a_file_that_is_no_toml_and_says_what_to_do(host: Host):
    (host.etc / "correlator.toml").write_text("[database\n")
    ended = upgrade(host)
    assert ended.returncode == 0, ended.stderr
    assert (host.etc / "correlator.toml").read_text() == "[database\n"
    assert f"correlator: {host.etc}/correlator.toml: not TOML" in ended.stderr
    assert "Correct it, then run: correlator config move" in ended.stderr
    assert (host.etc / "gateway.toml").read_text() == gateway_reference()


def test_an_upgrade_starts_the_service_before_it_removes_the_old_environment(tmp_path: Path):
    script = (DEPLOY / "debian/postinst").read_text()
    parts = [re.search(rf"^{name}\(\) \{{.*?^\}}$", script, re.MULTILINE | re.DOTALL) for name in ("tidy", "restart")]
    functions = "\n".join(part[0] for part in parts if part is not None)
    for name in ("old", "new"):
        (tmp_path / f"venv-{name}").mkdir()
    (tmp_path / "venv").symlink_to("venv-new")
    running = functions.replace("[ ! -d /run/systemd/system ]", "false")
    ended = run(
        *("sh", "-e", "-c"),
        f"home={tmp_path}; units=a.service; replaced=venv-old; allowed() {{ true; }}; account() {{ true; }}\n"
        'systemctl() { case "$*" in *" start "*) ls "$home" >"$home/at-the-start" ;; esac; }\n'
        f"{running}\nrestart",
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "at-the-start").read_text().split() == ["at-the-start", "venv", "venv-new", "venv-old"]
    assert sorted(path.name for path in tmp_path.glob("venv*")) == ["venv", "venv-new"]
