"""Clients that ask again as soon as they have a reply, or that do not read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mariadb import Database
from tests.support.storms import ON_ONE_DAEMON, Storms, storms

REQUESTS = "tests.support.storm_clients:requests"
UNREAD = "tests.support.storm_clients:unread"


@ON_ONE_DAEMON
async def test_clients_that_repeat_small_requests_delay_neither_rows_nor_probes(run: Storms):
    await run.verdict("10 connections, resolve", REQUESTS, connections=10, path="/api/v1/resolve/gui-{n}")


@ON_ONE_DAEMON
async def test_clients_that_repeat_lists_delay_neither_rows_nor_probes(run: Storms):
    path = "/api/v1/jobs?limit=100&job_type=failover,{n}"
    await run.verdict("60 connections, lists", REQUESTS, connections=60, path=path)


@ON_ONE_DAEMON
async def test_clients_that_read_no_reply_delay_neither_rows_nor_probes(run: Storms):
    before = run.daemon.memory()
    path = "/api/v1/jobs?limit=500&steps=1"
    await run.verdict("200 connections that read nothing", UNREAD, connections=200, path=path)
    assert run.daemon.memory() < before + 64


@pytest.mark.long
@pytest.mark.parametrize(
    ("connections", "path"),
    [
        (200, "/api/v1/jobs?limit=100"),
        (200, "/api/v1/jobs?limit=100&job_type=failover,{n}"),
        (200, "/api/v1/jobs?limit=50&context_id=ctx-{n}"),
        (60, "/api/v1/jobs?limit=500&steps=1"),
    ],
    ids=["newest", "filters", "contexts", "large"],
)
async def test_many_clients_that_repeat_lists_delay_nobody_and_leave_no_memory_behind(
    database: Database, tmp_path: Path, connections: int, path: str
):
    async with storms(tmp_path, database) as run:
        await run.verdict("warm", REQUESTS, connections=1, path=path, seconds=1)
        name = f"{connections} connections, {path}"
        await run.memory_returns(name, REQUESTS, connections=connections, path=path, seconds=8)


@pytest.mark.long
async def test_a_thousand_clients_that_read_no_reply_leave_no_memory_behind(database: Database, tmp_path: Path):
    async with storms(tmp_path, database) as run:
        path = "/api/v1/jobs?limit=500&steps=1"
        await run.verdict("warm", REQUESTS, connections=1, path=path, seconds=1)
        await run.memory_returns("1,000 connections that read nothing", UNREAD, connections=1_000, path=path, seconds=8)
