"""The version of a build names its commit: `0.1.0+g25a5e9f`, and at the tag `v0.1.0` just `0.1.0`.

A checkout calls itself `0.1.0+dev`, as it may change while it runs and git may be absent. A build writes its version
into the copies of `correlator/__init__.py` that it packs. hatchling loads this file by its path: see pyproject.toml.

`python -m deploy.version` prints it.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_REPOSITORY = Path(__file__).parent.parent
_FILE = "correlator/__init__.py"
_ASSIGNED = re.compile(r'^__version__ = "(?P<release>[^"+]+)(?P<local>[^"]*)".*$', re.MULTILINE)


def version(root: Path = _REPOSITORY) -> str:
    """The version of what is built from the sources in `root`; with `.dirty` where they differ from their commit.

    Sources that a build has packed keep their version. Without git, or outside a clone, `+dev` stays.
    """
    found = _ASSIGNED.search((root / _FILE).read_text())
    if found is None:
        raise ValueError(f"{root / _FILE} assigns no __version__")
    release, local = found.groups()
    if local != "+dev" or not is_clone(root):
        return release + local
    named = f"{release}+g{commit(root)[:7]}"
    if changes(root):
        return f"{named}.dirty"
    return release if f"v{release}" in _git(root, "tag", "--points-at", "HEAD").split() else named


def commit(root: Path = _REPOSITORY) -> str:
    """The whole hash of the last commit; empty outside a clone."""
    return _git(root, "rev-parse", "HEAD") if is_clone(root) else ""


def changes(root: Path = _REPOSITORY) -> str:
    """What differs from the last commit, as `git status --short` lists it."""
    return _git(root, "status", "--porcelain")


def epoch(root: Path = _REPOSITORY) -> int:
    """Seconds since 1970 that stand for the time of the build: $SOURCE_DATE_EPOCH, else the time of the commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    if is_clone(root):
        return int(_git(root, "log", "-1", "--format=%ct"))
    return int((root / "pyproject.toml").stat().st_mtime)


def is_clone(root: Path = _REPOSITORY) -> bool:
    """True if git knows `root` as the top of a clone with a commit: not just as a folder in another one."""
    try:
        return _git(root, "rev-parse", "--show-prefix", "HEAD").splitlines()[0] == ""
    except (OSError, subprocess.CalledProcessError):
        return False


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()


class VersionHook(BuildHookInterface[Any]):
    """Packs a copy of the file with the version of the build. What is installed editable reads the file itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling, whose `version` is that of the kind of archive."""
        if version == "editable":
            return
        text = _ASSIGNED.sub(f'__version__ = "{self.metadata.version}"', (Path(self.root) / _FILE).read_text())
        self._scratch = tempfile.TemporaryDirectory(prefix="correlator-version-")
        written = Path(self._scratch.name) / "__init__.py"
        written.write_text(text)
        build_data["force_include"][str(written)] = _FILE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy: it is in the archive."""
        del build_data, artifact_path
        if version != "editable":
            self._scratch.cleanup()


if __name__ == "__main__":
    print(version())
