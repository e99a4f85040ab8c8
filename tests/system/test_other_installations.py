"""The installations of docs/install.md without the Debian package, exactly as written, on a Debian 13 without network.

What they would fetch lies beside: the wheels that the package carries, and those that build ours.
"""

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from correlator import __version__
from tests.support.mariadb import SCHEMA
from tests.support.markdown import shell_blocks
from tests.support.paths import REPOSITORY
from tests.support.system.nspawn import Machine
from tests.support.system.roots import Root
from tests.support.system.wheels import wheels_that_build

SOURCES = ("LICENSE", "Makefile", "README.md", "correlator", "deploy", "pyproject.toml", "requirements")
WITHIN = 120.0

OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_COMPILE": "1",  # Python does it when it runs
    "PIP_FIND_LINKS": "/root/unpacked/usr/lib/correlator/wheels /root/wheels",
    "UV_FIND_LINKS": "/root/unpacked/usr/lib/correlator/wheels,/root/wheels",
    "UV_NO_INDEX": "1",
    "UV_OFFLINE": "1",
    "UV_PYTHON_DOWNLOADS": "never",
}


def packed(target: Path) -> Path:
    """A clone of the sources."""
    with tarfile.open(target, "w") as archive:
        for name in SOURCES:
            archive.add(
                REPOSITORY / name,
                f"clone/{name}",
                filter=lambda member: None if "__pycache__" in member.name else member,
            )
    return target


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian 13 with an appliance's database and a clone of the sources, in which each shell begins."""
    folder = tmp_path_factory.mktemp("installations")
    root = Root("trixie", folder)
    root.put("/root/sources.tar", packed(folder / "sources.tar"))
    root.put("/root/correlator.deb", package)
    for wheel in wheels_that_build():
        root.put(f"/root/wheels/{wheel.name}", wheel)
    root.put("/root/appliance.sql", SCHEMA)
    given = "".join(f'export {name}="{value}"\n' for name, value in OFFLINE.items())
    root.put("/root/given", f"{given}cd /root/clone\nset -e\n".encode())
    root.put("/usr/bin/uv", Path(sys.executable).parent / "uv", mode=0o755)
    with Machine(root, folder / "console") as machine:
        machine.run("tar -xf sources.tar; dpkg-deb -x correlator.deb unpacked", within=WITHIN)
        yield machine


def follow_offline(machine: Machine, section: str) -> str:
    (step,) = shell_blocks("docs/install.md", section)
    return machine.run(f". /root/given\n{step}", within=WITHIN)


def test_by_hand_it_is_a_service(machine: Machine):
    follow_offline(machine, "By hand, as a service")
    machine.run("mariadb -e 'CREATE DATABASE migratekit_oma'; mariadb migratekit_oma <appliance.sql")
    account = next(
        step
        for step in shell_blocks("docs/install.md", "On Debian 12, Debian 13 and Ubuntu 24.04")
        if "mariadb" in step
    )
    machine.run(
        "set -e; " + account.replace("/usr/share/doc/correlator/examples/grants.sql", "clone/deploy/grants.sql")
    )
    machine.run("systemctl restart correlator", within=WITHIN)
    assert machine.run("systemctl is-active correlator").strip() == "active"
    assert '"ready":true' in machine.get("/health/ready").replace(" ", "")


def test_uv_makes_it_a_command(machine: Machine):
    follow_offline(machine, "With uv, for one user")
    assert machine.run("/root/.local/bin/correlator --version").strip() == f"correlator {__version__}"
