"""What the tests of whole systems can ask for: the package, freshly built, and a system that has it.

They take minutes, a root file system each, and the rights of root: all of them are `long`, and `make test-system`
runs them.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from correlator import __version__
from tests.system.roots import REPOSITORY, Root

NEWER = f"{__version__}+later"
"""A version of the package that is higher than the program's."""

HOSTILE_PIP = b"[global]\nindex-url = http://127.0.0.1:1/simple\nno-binary = :all:\nrequire-virtualenv = true\n"
"""What an administrator may have told pip in /etc/pip.conf; nothing of it is for this package."""

# All paths but what the tests themselves bring along, and the books that dpkg keeps of every package.
LOOK = (
    r"find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/lib/dpkg"
    r" -o -path /var/log -o -path /var/cache/debconf \) -prune -o -print | sort"
)


class Installed(NamedTuple):
    """A system that has the package. `before`: the paths that were there without it; `seconds`: what dpkg took."""

    root: Root
    before: str
    seconds: float


class Installations:
    """Systems that have the package, each made once: `copy` them, do not write to them. /tmp/newer.deb is there too."""

    def __init__(self, folder: Path, package: Path, newer_package: Path) -> None:
        self._folder = folder
        self._packages = {"correlator": package, "newer": newer_package}
        self._made: dict[str, Installed] = {}

    def of(self, release: str) -> Installed:
        """Raises CalledProcessError where no archive gives the release."""
        if release not in self._made:
            root = Root(release, self._folder / release)
            root.put("/etc/pip.conf", HOSTILE_PIP)
            for name, package in self._packages.items():
                root.put(f"/tmp/{name}.deb", package)
            before = root.run(LOOK).stdout
            started = time.monotonic()
            root.run("export PIP_INDEX_URL=http://127.0.0.1:1/; dpkg --install /tmp/correlator.deb")
            self._made[release] = Installed(root, before, time.monotonic() - started)
        return self._made[release]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)


def built(folder: Path, *options: str) -> Path:
    """The package as `make deb` builds it."""
    command = [sys.executable, "-m", "deploy.debian.build", "--directory", str(folder), *options]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return Path(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of these sources."""
    return built(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def newer_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a later version."""
    return built(tmp_path_factory.mktemp("newer"), "--version", NEWER)


@pytest.fixture(scope="session")
def installations(package: Path, newer_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Installations:
    return Installations(tmp_path_factory.mktemp("installed"), package, newer_package)
