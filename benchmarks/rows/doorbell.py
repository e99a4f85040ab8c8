"""From a commit to a websocket reader with the doorbell, beside polling alone; what a server busy elsewhere costs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from benchmarks.appliance import jobs
from benchmarks.daemon import Measured, running, server
from benchmarks.harness import Limit, Number, Result, Size, cpu_percent
from benchmarks.rows.latency import ours as delays
from tests.support.mariadb import Database, MariaDB

RATES = (200, 2000)
ELSEWHERE = 10_000
"""Transactions a second on a table that is none of ours."""

LOGGING = ("--log-bin=bin", "--server-id=1", "--binlog-format=ROW", "--sync-binlog=0")


async def measure(size: Size) -> Result:
    numbers: list[Number] = []
    async with server(*LOGGING) as mariadb:
        async with mariadb.connect() as connection, connection.cursor() as cursor:
            await cursor.execute("GRANT REPLICATION SLAVE ON *.* TO correlator@'%'")
        for rate in RATES:
            numbers += await _delays(size, mariadb, rate)
        numbers += await _elsewhere(size, mariadb)
    return Result(tuple(numbers))


async def _delays(size: Size, mariadb: MariaDB, rate: int) -> list[Number]:
    """Doorbell and polling in turn, each over a database and a daemon of its own."""
    names = {"woken": f"woken_{rate}", "polled": f"polled_{rate}"}
    p50: dict[str, list[float]] = {"woken": [], "polled": []}
    p99: dict[str, list[float]] = {"woken": [], "polled": []}
    lost, twice = 0, 0
    async with contextlib.AsyncExitStack() as stack:
        daemons: dict[str, tuple[Measured, Database]] = {}
        for kind, name in names.items():
            database = await mariadb.create_schema(name)
            tables = jobs(20, 5, status="running")
            daemon = await stack.enter_async_context(running(database, tables, database__doorbell=kind == "woken"))
            daemons[kind] = (daemon, database)
        for _ in range(size.runs):
            for kind, (daemon, database) in daemons.items():
                found = await delays(daemon, database, rate, size.of(5.0, 2.0))
                p50[kind].append(found.p(0.5))
                p99[kind].append(found.p(0.99))
                lost, twice = lost + found.lost, twice + found.twice
    what = f"commit → websocket reader with the doorbell, {rate:,} rows/s"
    note = f"{lost} lost, {twice} twice"
    return [
        Number(f"{what}: p50", "ms", tuple(p50["woken"]), "polling", tuple(p50["polled"]), Limit("≤", 3.0), note),
        Number(f"{what}: p99", "ms", tuple(p99["woken"]), "polling", tuple(p99["polled"]), Limit("≤", 12.0), note),
    ]


async def _elsewhere(size: Size, mariadb: MariaDB) -> list[Number]:
    """What the daemon uses while nothing of ours happens, and the server commits for others."""
    woken: list[float] = []
    polled: list[float] = []
    database = await mariadb.create_schema("elsewhere")
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute("CREATE TABLE other (id INT AUTO_INCREMENT PRIMARY KEY, value VARCHAR(250))")
        await cursor.execute(
            "CREATE PROCEDURE busy(IN count INT) BEGIN DECLARE i INT DEFAULT 0; WHILE i < count DO"
            " INSERT INTO other (value) VALUES (REPEAT('x', 200)); SET i = i + 1; END WHILE; END"
        )
    for _ in range(size.runs):
        for doorbell, used in ((True, woken), (False, polled)):
            async with running(database, database__doorbell=doorbell) as daemon, _busy(database):
                await asyncio.sleep(1.0)
                (percent,) = await cpu_percent(size.of(5.0, 2.0), daemon.pid)
                used.append(round(percent, 3))
    what = f"{ELSEWHERE:,} transactions/s on other tables, nothing of ours"
    return [Number(what, "% of a core", tuple(woken), "polling", tuple(polled))]


@contextlib.asynccontextmanager
async def _busy(database: Database) -> AsyncIterator[None]:
    async def commit() -> None:
        async with database.connect() as connection, connection.cursor() as cursor:
            due = time.monotonic()
            while True:
                await cursor.execute(f"CALL busy({ELSEWHERE // 20})")
                due += 0.05
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    task = asyncio.create_task(commit())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
