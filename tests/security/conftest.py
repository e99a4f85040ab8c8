"""What the tests of safety share: certificates, and a daemon on a small SQLite file, which is up in a moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.certificates import Certificates, self_sign
from tests.support.daemon import Daemon
from tests.support.small_appliance import TOKEN, write_small_appliance


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates.create(tmp_path_factory.mktemp("certificates"))
    made.make("right", "IP:127.0.0.1")
    made.make("other", "DNS:other.example")
    made.make("ended", "IP:127.0.0.1", ends="20200102000000Z")
    self_sign(made.cert("self"), made.key("self"), "self", "-addext", "subjectAltName=IP:127.0.0.1")
    return made


@pytest.fixture
async def appliance_file(tmp_path: Path) -> Path:
    """An appliance's tables with some jobs, of every kind of ID."""
    path = tmp_path / "appliance.db"
    await write_small_appliance(path)
    return path


@pytest.fixture
async def small(appliance_file: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon on that file, without tokens."""
    async with Daemon(tmp_path, database__url=f"sqlite://{appliance_file}") as daemon:
        yield daemon


@pytest.fixture
async def guarded(appliance_file: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    """The same, with a token."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# one\n{TOKEN}\n")
    async with Daemon(tmp_path, database__url=f"sqlite://{appliance_file}", http__tokens_file=tokens) as daemon:
        yield daemon
