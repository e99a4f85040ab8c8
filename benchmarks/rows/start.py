"""A start with a checkpoint of twenty thousand jobs: from the program's start until it serves them."""

from __future__ import annotations

import asyncio
import time

from benchmarks.appliance import jobs
from benchmarks.daemon import Measured, running, server
from benchmarks.harness import Limit, Number, Result, Size
from tests.support.eventually import eventually


async def measure(size: Size) -> Result:
    count = size.of(20_000, 2_000)
    seconds, reads = [], []
    async with server() as mariadb:
        database = await mariadb.create_schema()
        async with running(database, jobs(count), jobs__max_jobs=2 * count) as daemon:
            await daemon.shows(count)
            await eventually(lambda: _saved(daemon), within=30)
            for _ in range(size.runs):
                await daemon.stop()
                began = time.perf_counter()
                await daemon.start(within=60)
                seconds.append(time.perf_counter() - began)
                if await daemon.job(f"unified-live-failover-bench{count - 1}-1758553933") is None:
                    raise RuntimeError("it is ready and does not know the jobs of its checkpoint")
                reads.append(daemon.memory())
                await asyncio.sleep(1.0)
    return Result(
        (
            Number(f"start with a checkpoint of {count:,} jobs", "s", tuple(seconds), limit=Limit("≤", 2.0)),
            Number("the same, resident when ready", "MB", tuple(reads)),
        )
    )


async def _saved(daemon: Measured) -> bool:
    return bool((await daemon.get("/health/ready"))[1]["parts"]["checkpoint"]["ok"])
