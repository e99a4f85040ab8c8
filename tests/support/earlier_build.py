"""An earlier state of the program, from the history of the repository, to run beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

COMMIT = "099a7c1bed53b005caf84b292b8909ac3f25c785"
"""The earlier state. Name a later one when the forms of messages or of the checkpoint change on purpose."""


def earlier_build(folder: Path) -> Mapping[str, str]:
    """Write the earlier program into `folder`; the environment in which Python runs it. Skips without the history."""
    archive = subprocess.run(
        ["git", "archive", COMMIT, "correlator"], cwd=REPOSITORY, capture_output=True, check=False, timeout=60
    )
    if archive.returncode != 0:
        pytest.skip(f"this checkout has no history with the commit {COMMIT[:7]}")
    folder.mkdir()
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True, timeout=60)
    environ = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}  # The folder in which it starts has this version.
    command = [sys.executable, "-c", "import correlator; print(correlator.__file__)"]
    used = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert used.stdout.strip() == str(folder / "correlator" / "__init__.py")
    return environ
