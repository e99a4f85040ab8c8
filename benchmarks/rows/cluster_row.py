"""What a row of the log costs a cluster: bytes through the NATS server, and CPU of collector, server and gateway."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request

from benchmarks.appliance import fill, jobs
from benchmarks.cluster import Gateway, collectors, gateways, nats
from benchmarks.daemon import Measured, server
from benchmarks.harness import Number, Result, Size, next_line, started_peer
from tests.support.mariadb import Database
from tests.support.nats import Nats
from tests.support.yardstick import processor_seconds

STARTS_ANY = True
"""It only starts the program, so it can run that of an earlier tree: see `benchmarks/against.py`."""

JOBS, STEPS = 200, 10

RATE, HIGH_RATE = 300, 2_000
"""Rows a second: of a busy appliance, and enough that what a process does for each of them outweighs its wake-ups."""

SETTLED = 3.0
"""Seconds of the load before those that are measured."""


async def measure(size: Size) -> Result:
    found: dict[tuple[int, str], list[float]] = {}
    async with server() as mariadb:
        database = await mariadb.create_schema()
        await fill(database, jobs(JOBS, STEPS, status="running"))
        async with (
            nats() as cluster,
            collectors(database, cluster.url, tree=size.tree) as (collector,),
            gateways(cluster.url, tree=size.tree) as (gateway,),
        ):
            await collector.start(within=180)
            await gateway.start(within=180)
            await gateway.shows(JOBS)
            for _ in range(size.runs):
                for rate in (RATE, HIGH_RATE):
                    measured = await _loaded(database, cluster, collector, gateway, rate, size.of(20.0, 8.0))
                    for name, value in measured.items():
                        found.setdefault((rate, name), []).append(value)
    return Result(
        tuple(
            Number(f"{rate:,} rows/s of {JOBS} jobs: {name}", UNITS[name], tuple(values))
            for (rate, name), values in found.items()
        )
    )


UNITS = {
    "a row from the collector": "B",
    "a row to each gateway": "B",
    "CPU of a row, collector": "µs",
    "CPU of a row, NATS server": "µs",
    "CPU of a row, gateway": "µs",
    "a gateway's core is full at": "rows/s",
}


async def _loaded(
    database: Database, cluster: Nats, collector: Measured, gateway: Gateway, rate: int, seconds: float
) -> dict[str, float]:
    """Return each of `UNITS`. What is used while nothing is logged does not count."""
    ids = [str(row["id"]) for row in jobs(JOBS, 0)["job_tracking"]]
    load = {
        "port": database.server.port,
        "name": database.name,
        "jobs": random.Random(1).choices(ids, k=rate),
        "rate": rate,
        "seconds": seconds + SETTLED + 2.0,
        "batch": max(5, rate // 100),
    }
    pids = [collector.pid, cluster.pid, gateway.pid]

    async def measured() -> list[float]:
        """Bytes to and from the server, and the seconds of CPU of each process, during `seconds`."""
        before = [*_traffic(cluster), *map(processor_seconds, pids)]
        await asyncio.sleep(seconds)
        return [now - was for was, now in zip(before, [*_traffic(cluster), *map(processor_seconds, pids)], strict=True)]

    await asyncio.sleep(SETTLED)
    idle = await measured()
    async with started_peer("writer", **load) as writer:
        await next_line(writer)
        await asyncio.sleep(SETTLED)
        loaded = await measured()
    sent, received, *used = [(a - b) / (rate * seconds) for a, b in zip(loaded, idle, strict=True)]
    values = (round(sent), round(received), *(round(1e6 * one, 1) for one in used), round(1 / used[2]))
    return dict(zip(UNITS, values, strict=True))


def _traffic(cluster: Nats) -> tuple[int, int]:
    """The bytes that clients have sent and received."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.monitor}/varz", timeout=5.0) as answer:
        found = json.load(answer)
    return found["in_bytes"], found["out_bytes"]
