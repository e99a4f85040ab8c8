"""Every kind of database that a source may read: MariaDB by either driver, and SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from correlator.sources.archive.archive import DatabaseArchive
from tests.support.archive_queries import archive_of
from tests.support.source_databases import MariaDBOriginal, Original, SQLiteOriginal

KINDS = ("aiomysql", "asyncmy", "sqlite")


@contextlib.asynccontextmanager
async def made(request: pytest.FixtureRequest, kind: str, *, rolled_back: bool) -> AsyncIterator[Original]:
    if kind == "sqlite":
        path: Path = request.getfixturevalue("tmp_path")
        with contextlib.closing(SQLiteOriginal(path / "appliance.db", rolled_back=rolled_back)) as original:
            yield original
    else:
        server = request.getfixturevalue("mariadb")
        async with MariaDBOriginal.make(server, kind, rolled_back=rolled_back) as original:
            yield original


@pytest.fixture(params=KINDS)
async def original(request: pytest.FixtureRequest) -> AsyncIterator[Original]:
    """A current appliance."""
    async with made(request, request.param, rolled_back=False) as original:
        yield original


AGES = ("aiomysql-current", "aiomysql-rolled-back", "asyncmy-current", "sqlite-current", "sqlite-rolled-back")
"""Which columns there are is no matter of the driver."""


@pytest.fixture(params=AGES)
async def either_original(request: pytest.FixtureRequest) -> AsyncIterator[Original]:
    """Both generations of the schema."""
    kind, _, age = request.param.partition("-")
    async with made(request, kind, rolled_back=age == "rolled-back") as original:
        yield original


@pytest.fixture(params=KINDS[:2])
async def mariadb_original(request: pytest.FixtureRequest) -> AsyncIterator[Original]:
    """A current appliance on a MariaDB server that tests share."""
    async with made(request, request.param, rolled_back=False) as original:
        yield original


@pytest.fixture
async def one_mariadb(request: pytest.FixtureRequest) -> AsyncIterator[Original]:
    """The same by one driver, for what is no matter of the driver."""
    async with made(request, KINDS[0], rolled_back=False) as original:
        yield original


@pytest.fixture(params=KINDS[:2])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def archive(either_original: Original) -> AsyncIterator[DatabaseArchive]:
    """The archive of `either_original`."""
    async with archive_of(either_original) as archive:
        yield archive


@pytest.fixture
async def current(original: Original) -> AsyncIterator[tuple[DatabaseArchive, Original]]:
    """An archive of a current appliance, and the appliance."""
    async with archive_of(original) as archive:
        yield archive, original
