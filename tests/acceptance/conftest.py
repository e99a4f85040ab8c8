"""A running daemon over a private database, and a hand that writes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.appliance import Appliance, connected
from tests.daemon import Daemon
from tests.servers import Database


@pytest.fixture
async def appliance(database: Database) -> AsyncIterator[Appliance]:
    async with connected(database) as connection:
        yield Appliance(connection)


@pytest.fixture
async def daemon(database: Database, tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.close()
