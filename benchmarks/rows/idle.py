"""What the daemon costs while nothing runs, and while twenty jobs do."""

from __future__ import annotations

import asyncio

from benchmarks.appliance import jobs
from benchmarks.daemon import readers, running, server
from benchmarks.harness import Limit, Number, Result, Size, cpu_percent, next_line, started_peer
from tests.support.mariadb import Database, MariaDB

READERS = 10
JOBS = 20
ROWS_A_SECOND = 100


async def measure(size: Size) -> Result:
    async with server() as mariadb:
        nothing = await _nothing(size, mariadb, await mariadb.create_schema("nothing"))
        return Result((*nothing, *await _watching(size, mariadb, await mariadb.create_schema("watching"))))


async def _nothing(size: Size, mariadb: MariaDB, database: Database) -> list[Number]:
    ours, theirs, memory = [], [], []
    async with running(database) as daemon, readers(daemon, READERS):
        await asyncio.sleep(
            size.of(20.0, 3.0)
        )  # until it has seen that nothing happens, and what the start took is gone
        for _ in range(size.runs):
            mine, its = await cpu_percent(size.of(6.0, 2.0), daemon.pid, mariadb.pid)
            ours.append(round(mine, 3))
            theirs.append(round(its, 3))
            memory.append(round(daemon.memory(), 2))
    return [
        Number(f"idle, {READERS} readers", "% of a core", tuple(ours), limit=Limit("≤", 0.5)),
        Number("the same, in mariadbd", "% of a core", tuple(theirs)),
        Number("the same, resident", "MB", tuple(memory), limit=Limit("≤", 60)),
    ]


async def _watching(size: Size, mariadb: MariaDB, database: Database) -> list[Number]:
    """What mariadbd uses for the writer alone is taken off what it uses for both."""
    tables = jobs(JOBS, 5, status="running")
    ids = [str(row["id"]) for row in jobs(JOBS, 0)["job_tracking"]]
    seconds = size.of(6.0, 2.0)
    arguments = {
        "port": mariadb.port,
        "name": database.name,
        "rate": ROWS_A_SECOND,
        "seconds": size.runs * (2 * seconds + 20.0),
        "jobs": ids,
        "batch": 5,
    }
    ours, theirs = [], []
    async with running(database, tables) as first:
        await first.stop()  # what it made of the tables is kept in the server's memory
    async with started_peer("writer", **arguments) as writer:
        await next_line(writer)
        for _ in range(size.runs):
            (alone,) = await cpu_percent(seconds, mariadb.pid)
            async with running(database) as daemon, readers(daemon, READERS, logs="DEBUG"):
                await asyncio.sleep(2.0)
                mine, both = await cpu_percent(seconds, daemon.pid, mariadb.pid)
            ours.append(round(mine, 3))
            theirs.append(round(both - alone, 3))
    what = f"watching {JOBS} running jobs, {ROWS_A_SECOND} rows/s, {READERS} readers"
    return [
        Number(what, "% of a core", tuple(ours), limit=Limit("≤", 4.0)),
        Number("the same, in mariadbd", "% of a core", tuple(theirs), limit=Limit("≤", 2.0)),
    ]
