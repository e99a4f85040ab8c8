"""What the tests of whole systems can ask for: the package, freshly built, and a system that has it.

They take minutes, a root file system each, and the rights of root: all of them are `long`, and `make test-system`
runs them.
"""

from pathlib import Path

import pytest

from tests.support.system.installations import NEWER, Installations, built


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)


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
