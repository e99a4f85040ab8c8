"""The locked wheels of packages, byte by byte as an index has them: for systems without a network that check hashes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.locked import named, parse, running
from tests.support.paths import REPOSITORY

WITHIN = 300.0
FOLDER = REPOSITORY / "build" / "wheels"


def wheels_that_build() -> list[Path]:
    """Those with which `make wheel` builds, without those that the Debian package has too."""
    needed = parse((REPOSITORY / "requirements" / "base.txt").read_text())
    there = {release.name for release in running()}
    return locked_wheels(*(release.name for release in needed if release.name not in there))


def locked_wheels(*names: str) -> list[Path]:
    """Return the files, which are downloaded once."""
    lock = "\n".join(release.requirement() for release in named(names))
    folder = FOLDER / f"locked-{hashlib.sha256(lock.encode()).hexdigest()[:16]}"
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            (Path(scratch) / "lock.txt").write_text(lock)
            made = Path(scratch) / "wheels"
            command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--require-hashes", "--dest"]
            command += [str(made), "--only-binary=:all:", "--requirement", f"{scratch}/lock.txt"]
            subprocess.run(command, check=True, timeout=WITHIN)
            made.rename(folder)
    return sorted(folder.glob("*.whl"))
