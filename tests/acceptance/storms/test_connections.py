"""More connections than the process may have files: the database, the broker and probes still get theirs."""

from __future__ import annotations

import resource
from pathlib import Path

import aiohttp
import pytest

from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.raw_http import request
from tests.support.storms import Storms, storms

CONNECTS = "tests.support.storm_clients:connects"
FILES = 256
WAITING = request("GET", "/api/v1/jobs/nobody?wait=60", "Connection: keep-alive").decode()


@pytest.mark.parametrize("asking", [pytest.param("", marks=pytest.mark.long), WAITING], ids=["idle", "waiting"])
async def test_clients_take_no_file_from_the_database_or_from_probes(database: Database, tmp_path: Path, asking: str):
    async with storms(tmp_path, database, jobs=100) as run:
        resource.prlimit(run.daemon.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        async with run.crowd(CONNECTS, connections=2 * FILES, asking=asking):
            await _is_crowded(run)
            await _disconnect_database(database)
            assert (await run.measure(1)).lost == 0
        name = f"{2 * FILES} connections, {FILES} files"
        await run.verdict(name, CONNECTS, connections=2 * FILES, asking=asking)
        log = run.daemon.log()
        assert "Traceback" not in log
        assert log.count("as many as one address may have") <= 1


async def _is_crowded(run: Storms) -> None:
    async def is_crowded() -> bool:
        try:
            part = (await run.daemon.get("/health/ready"))[1]["parts"]["connections"]
        except aiohttp.ClientError:  # an idle connection of a crowded address may end
            return False
        return bool(part["open"] >= part["limit"] * 0.7)

    await eventually(is_crowded)


async def _disconnect_database(database: Database) -> None:
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("KILL USER correlator")
