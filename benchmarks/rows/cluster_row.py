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

JOBS, STEPS, RATE = 200, 10, 300

SETTLED = 3.0
"""Seconds of the load before those that are measured."""


async def measure(size: Size) -> Result:
    bytes_in, bytes_out, ceiling = list[float](), list[float](), list[float]()
    cpu: dict[str, list[float]] = {"collector": [], "NATS server": [], "gateway": []}
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
                sent, received, used = await _loaded(database, cluster, collector, gateway, size.of(30.0, 10.0))
                bytes_in.append(round(sent))
                bytes_out.append(round(received))
                for name, seconds in zip(cpu, used, strict=True):
                    cpu[name].append(round(1e6 * seconds, 1))
                ceiling.append(round(1 / used[2]))
    load = f"{RATE} rows/s of {JOBS} jobs"
    return Result(
        (
            Number(f"{load}: bytes of a row from the collector", "B", tuple(bytes_in)),
            Number(f"{load}: bytes of a row to each gateway", "B", tuple(bytes_out)),
            *(Number(f"{load}: CPU of a row, {name}", "µs", tuple(values)) for name, values in cpu.items()),
            Number(f"{load}: a gateway's core is full at", "rows/s", tuple(ceiling)),
        )
    )


async def _loaded(
    database: Database, cluster: Nats, collector: Measured, gateway: Gateway, seconds: float
) -> tuple[float, float, list[float]]:
    """For each row: bytes to and from the server, and the seconds of CPU of collector, server and gateway.

    What they use while nothing is logged does not count.
    """
    ids = [str(row["id"]) for row in jobs(JOBS, 0)["job_tracking"]]
    load = {
        "port": database.server.port,
        "name": database.name,
        "jobs": random.Random(1).choices(ids, k=RATE),
        "rate": RATE,
        "seconds": seconds + SETTLED + 2.0,
        "batch": 5,
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
    sent, received, *used = [(a - b) / (RATE * seconds) for a, b in zip(loaded, idle, strict=True)]
    return sent, received, used


def _traffic(cluster: Nats) -> tuple[int, int]:
    """The bytes that clients have sent and received."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.monitor}/varz", timeout=5.0) as answer:
        found = json.load(answer)
    return found["in_bytes"], found["out_bytes"]
