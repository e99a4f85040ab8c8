"""An earlier state of the program, from the history of the repository, to run beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

RELEASE = "v0.1.0"
"""The tag of the release that every later version works beside, and upgrades from."""

COMMIT = "724b2d982d358a652c64fdbc6150dcab9abea719"
"""The earlier state as long as no commit has the tag. Name a later one if it no longer works beside this one."""


@dataclass(frozen=True)
class EarlierBuild:
    """`environ`: with it, Python runs the earlier program. `form`: the version of its checkpoint."""

    environ: Mapping[str, str]
    form: int


def earlier_build(folder: Path) -> EarlierBuild:
    """Write the earlier program into `folder`, which does not exist yet: $TEST_EARLIER, the release, or `COMMIT`.

    Skips the test without the history.
    """
    asked = [os.environ["TEST_EARLIER"]] if "TEST_EARLIER" in os.environ else [RELEASE, COMMIT]
    for commit in asked:
        command = ["git", "archive", commit, "correlator"]
        archive = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False, timeout=60)
        if archive.returncode == 0:
            break
    else:
        pytest.skip(f"this checkout has no history with {' or '.join(asked)}")
    folder.mkdir()
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True, timeout=60)
    environ = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}  # The folder in which it starts has this version.
    script = "from correlator.state import checkpoint as c; print(c.VERSION, c.__file__)"
    command = [sys.executable, "-c", script]
    used = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environ, capture_output=True, text=True, check=True, timeout=60
    )
    form, file = used.stdout.split(maxsplit=1)
    assert Path(file.strip()).is_relative_to(folder)
    return EarlierBuild(environ, int(form))
