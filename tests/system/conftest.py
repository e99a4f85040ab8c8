"""What the tests of whole systems can ask for: the package, freshly built, and a system that has it.

They take minutes, a root file system each, and the rights of root: all of them are `long`, `make test-system` runs
them, and `make test-package` those that follow README.md and boot every unit.
"""

import os
from pathlib import Path

import pytest

from tests.support.system.installations import NEWER, Installations, built


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = f"{Path(__file__).parent}/"
    for item in items:
        if str(item.path).startswith(folder):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of these sources: make has built it for all processes that run tests, or this one does."""
    made = os.environ.get("TEST_PACKAGE")
    return Path(made) if made else built(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def newer_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a later version."""
    return built(tmp_path_factory.mktemp("newer"), "--version", NEWER)


@pytest.fixture(scope="session")
def installations(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Installations:
    return Installations(tmp_path_factory.mktemp("installed"), package)
