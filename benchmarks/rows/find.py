"""The search of the page over a full database: from the request until the first job is found, as a browser asks.

The jobs that are sought are of the last month; each is asked for once, so no answer comes from a cache of the daemon.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote, urlencode

from benchmarks.daemon import Measured, running, server
from benchmarks.harness import Limit, Number, Result, Size
from tests.support.bulk_rows import vm, year_of_jobs

WITHIN = Limit("≤", 300.0)


async def measure(size: Size) -> Result:
    jobs, recent = size.of(100_000, 10_000), size.of(2_000, 200)
    last_month = jobs * 35 // 365
    async with server() as mariadb:
        database = await mariadb.create_schema()
        failed = await year_of_jobs(database, jobs, recent, last_month)
        async with running(database) as daemon:
            await daemon.shows(recent)
            await asyncio.sleep(size.of(10.0, 3.0))  # until the history of the forecasts is read
            names = [vm(last_month - n) for n in range(1, size.runs + 1)]
            by_vm = [await _first(daemon, "q", name, name) for name in names]
            ids = [f"unified-live-failover-{vm(last_month - n)}-1758553933" for n in range(10, size.runs + 10)]
            by_id = [await _first(daemon, "q", name, name) for name in ids]
            by_text = [await _first(daemon, "text", f"{vm(last_month)} volume", failed) for _ in range(size.runs)]
    what = f"search over {jobs:,} jobs, {recent:,} in memory: first result of last month"
    return Result(
        (
            Number(f"{what}, by a VM's name", "ms", tuple(by_vm), limit=WITHIN),
            Number("the same, by an external ID", "ms", tuple(by_id), limit=WITHIN),
            Number("the same, by a VM's name and a word of its error", "ms", tuple(by_text)),
        )
    )


async def _first(daemon: Measured, parameter: str, sought: str, expected: str) -> float:
    """Milliseconds until a page has a job, which contains `expected`. Pages are asked for one after the other."""
    began = time.perf_counter()
    cursor = None
    while True:
        query = {parameter: sought, "limit": "100"} | ({"cursor": cursor} if cursor is not None else {})
        status, page = await daemon.get(f"/api/v1/jobs?{urlencode(query, quote_via=quote)}")
        if status == 503:
            await asyncio.sleep(0.1)
            continue
        if page["jobs"]:
            assert expected in str(page["jobs"]), page
            return (time.perf_counter() - began) * 1000
        cursor = page["next_cursor"]
        assert cursor is not None, f"{sought} was not found"
