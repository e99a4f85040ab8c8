"""Folders of the repository that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DATA = REPOSITORY / "tests" / "data"
