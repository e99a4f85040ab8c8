"""One daemon for the storms that need no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.mariadb import MariaDB
from tests.support.storms import Storms, storms

JOBS = 600


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def run(mariadb: MariaDB, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Storms]:
    """A daemon with `JOBS` jobs that one storm after the other meets."""
    database = await mariadb.create_schema("storms")
    async with storms(tmp_path_factory.mktemp("storms"), database, jobs=JOBS) as found:
        yield found
    await database.drop()
