"""What a live row costs, from the driver to the websocket frames, beside a bare poller that reads the same rows."""

from __future__ import annotations

import asyncio
import random

from benchmarks.appliance import jobs
from benchmarks.daemon import Measured, readers, running, server
from benchmarks.harness import Limit, Number, Result, Size, cpu_percent, next_line, send, started_peer
from benchmarks.rows.latency import QUIET
from tests.support.eventually import eventually
from tests.support.mariadb import Database

STARTS_ANY = True
"""It only starts the program, so it can run that of an earlier tree: see `benchmarks/against.py`."""

JOBS = 50
RATE = 2000

LIMITS = {("asyncmy", 1): 2.4, ("aiomysql", 1): 2.6, ("asyncmy", 10): 3.0, ("aiomysql", 10): None}
"""For each driver and number of websocket clients: the ratio to the CPU of the bare poller, with aiomysql."""

WARM = 1.0
"""Seconds of the load before and after those that are measured."""


async def measure(size: Size) -> Result:
    ours: dict[tuple[str, int], list[float]] = {case: [] for case in LIMITS}
    theirs: dict[tuple[str, int], list[float]] = {case: [] for case in LIMITS}
    async with server() as mariadb:
        database = await mariadb.create_schema()
        async with running(database, jobs(JOBS, 5, status="running"), tree=size.tree):
            pass
        for _ in range(size.runs):
            for driver, clients in LIMITS:
                async with running(database, tree=size.tree, database__driver=driver) as daemon:
                    mine, its = await _loaded(daemon, database, clients, size.of(6.0, 2.0))
                ours[driver, clients].append(round(mine, 2))
                theirs[driver, clients].append(round(its, 2))
    return Result(
        tuple(
            Number(
                f"{RATE:,} rows/s of {JOBS} jobs, {clients} websocket client{'s' * (clients > 1)}, {driver}",
                "% of a core",
                tuple(ours[driver, clients]),
                "aiomysql alone, polling every 20 ms",
                tuple(theirs[driver, clients]),
                Limit("≤", limit, "ratio") if limit is not None else None,
            )
            for (driver, clients), limit in LIMITS.items()
        )
    )


async def _loaded(daemon: Measured, database: Database, clients: int, seconds: float) -> tuple[float, float]:
    """The CPU of the daemon and of the poller under the load, in percent of a core. All rows must come."""
    where = {"port": database.server.port, "name": database.name}
    ids = [str(row["id"]) for row in jobs(JOBS, 0)["job_tracking"]]
    load = {
        "jobs": random.Random(1).choices(ids, k=RATE),
        "rate": RATE,
        "seconds": seconds + 2 * WARM,
        "connections": 1,
    }
    lines = [0] * clients

    def count(client: int, frame: str) -> None:
        lines[client] += frame.count('"type":"log"')

    async with (
        readers(daemon, clients, count, logs="DEBUG"),
        started_peer("poller", driver="aiomysql", **where) as poller,
    ):
        await next_line(poller)
        async with started_peer("writer", **where, **load) as writer:
            await next_line(writer)
            await asyncio.sleep(WARM)
            mine, its = await cpu_percent(seconds, daemon.pid, poller.pid)
            rows = len((await next_line(writer))["committed"])
        await eventually(lambda: lines == [rows] * clients, within=QUIET)
        await asyncio.sleep(QUIET)
        send(poller)
        if (read := (await next_line(poller))["rows"]) != rows:
            raise RuntimeError(f"the poller read {read} of {rows} rows")
    return mine, its
