"""Clients that wait for IDs that no job has, and clients that search."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import bulk_rows
from tests.support.mariadb import Database
from tests.support.storms import ON_ONE_DAEMON, Storms, storms

WAITS = "tests.support.storm_clients:waits"
REQUESTS = "tests.support.storm_clients:requests"


@ON_ONE_DAEMON
@pytest.mark.parametrize("clients", [200, pytest.param(3_000, marks=pytest.mark.long)])
async def test_clients_that_wait_for_unknown_ids_delay_nobody(run: Storms, clients: int):
    await run.verdict(f"{clients} wait", WAITS, connections=clients, seconds=clients / 300 + 3, settle=3.0)
    async with run.crowd(WAITS, connections=clients):
        for n in range(8):
            assert (await run.daemon.get(f"/api/v1/jobs/nobody-{n}"))[0] == 404
            status, page = await run.daemon.get(f"/api/v1/jobs?q=nobody-{n}")
            assert (status, page["complete"]) == (200, True)


@pytest.mark.parametrize("past", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_clients_that_search_delay_neither_rows_nor_probes(database: Database, tmp_path: Path, past: int):
    await bulk_rows.year_of_jobs(database, past, 100, 50)
    async with storms(tmp_path, database, jobs=500) as run:
        path = "/api/v1/jobs?q=gui-none-{n}&limit=50"
        await run.verdict(f"30 search {past} jobs", REQUESTS, connections=30, path=path)
