"""The Debian package as `make deb` builds it, and root file systems that have it installed."""

import os
import re
import subprocess
import sys
import tarfile
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from correlator import __version__
from tests.support.paths import REPOSITORY
from tests.support.system.roots import Root

RELEASE = __version__.partition("+")[0]
"""The version without the commit."""

NEWER = f"{RELEASE}+later"
"""A version of the package that is higher than the program's."""

EARLIER = f"{RELEASE}~1"
"""A version of the package that is lower."""

HOSTILE_PIP = b"[global]\nindex-url = http://127.0.0.1:1/simple\nno-binary = :all:\nrequire-virtualenv = true\n"
"""Settings of an administrator in /etc/pip.conf. None of them may affect this package."""


class Installed(NamedTuple):
    """A system that has the package. `seconds`: the time of dpkg."""

    root: Root
    seconds: float


class Installations:
    """Systems that have the package, each made once: `copy` them, do not write to them."""

    def __init__(self, folder: Path, package: Path) -> None:
        self._folder = folder
        self._package = package
        self._made: dict[str, Installed] = {}

    def of(self, release: str) -> Installed:
        """Raises CalledProcessError where no archive gives the release."""
        if release not in self._made:
            root = Root(release, self._folder / release)
            root.put("/etc/pip.conf", HOSTILE_PIP)
            root.put("/tmp/correlator.deb", self._package)
            started = time.monotonic()
            root.run("export PIP_INDEX_URL=http://127.0.0.1:1/; dpkg --install /tmp/correlator.deb")
            self._made[release] = Installed(root, time.monotonic() - started)
        return self._made[release]


def built(folder: Path, *options: str, **environ: str) -> Path:
    """The package as `make deb` builds it."""
    command = [sys.executable, "-m", "deploy.debian.build", "--directory", str(folder), *options]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return Path(ended.stdout.splitlines()[-1])


def add_backend(archive: tarfile.TarFile) -> None:
    """Add the folder `backend`: what builds a wheel of the sources, for $PYTHONPATH where nothing can be downloaded."""
    for name in ("hatchling", "packaging", "pathspec", "pluggy", "trove-classifiers"):
        for file in distribution(name).files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.add(file.locate(), f"backend/{file}")


def earlier(folder: Path, package: Path) -> Path:
    """The same package with a version that is lower."""
    tree = folder / "earlier"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True, timeout=60)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*", f"Version: {EARLIER}", control.read_text(), flags=re.MULTILINE))
    built = folder / f"correlator_{EARLIER}_earlier.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(built)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return built
