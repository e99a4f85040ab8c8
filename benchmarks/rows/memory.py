"""What a job and a websocket reader weigh: resident sizes of the daemon with few and with many of them."""

from __future__ import annotations

import asyncio

from benchmarks.appliance import jobs
from benchmarks.daemon import running, server
from benchmarks.harness import Limit, Number, Result, Size, next_line, started_peer
from tests.support.mariadb import MariaDB


async def measure(size: Size) -> Result:
    per_job, per_reader = [], []
    few, many = size.of((1_000, 20_000), (500, 5_000))
    readers = size.of(2_000, 500)
    async with server() as mariadb:
        for turn in range(size.runs):
            small = await _resident(mariadb, f"few_{turn}", few)
            large = await _resident(mariadb, f"many_{turn}", many)
            per_job.append((large - small) * 1000 / (many - few))
            per_reader.append(await _reader(mariadb, f"readers_{turn}", readers))
    return Result(
        (
            Number(f"a job of 10 steps in memory, of {many:,}", "kB", tuple(per_job), limit=Limit("≤", 6)),
            Number(f"a websocket reader, of {readers:,}", "kB", tuple(per_reader), limit=Limit("≤", 20)),
        )
    )


async def _resident(mariadb: MariaDB, name: str, count: int) -> float:
    """MB once `count` jobs are in memory and in the checkpoint."""
    database = await mariadb.create_schema(name)
    async with running(database, jobs(count), jobs__max_jobs=2 * count) as daemon:
        await daemon.shows(count)
        await asyncio.sleep(3.0)
        return daemon.memory()


async def _reader(mariadb: MariaDB, name: str, count: int) -> float:
    """kB that `count` readers add, each."""
    database = await mariadb.create_schema(name)
    async with running(database, jobs(100)) as daemon:
        await daemon.shows(100)
        async with started_peer("crowd", kind="websocket", port=daemon.port, count=10) as first:
            await next_line(first)
            before = daemon.memory()
            async with started_peer("crowd", kind="websocket", port=daemon.port, count=count) as crowd:
                await next_line(crowd, 120)
                await asyncio.sleep(1.0)
                return (daemon.memory() - before) * 1000 / count
