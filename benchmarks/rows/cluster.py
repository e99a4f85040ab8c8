"""A collector, a NATS server and gateways: delay, deliveries per CPU second, and what a death costs the clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.appliance import fill, jobs
from benchmarks.cluster import Gateway, collectors, gateways, nats
from benchmarks.daemon import HELLO, Measured, Socket, running, server
from benchmarks.harness import Limit, Number, Result, Size, next_line, started_peer
from benchmarks.rows.latency import committed, delays
from tests.support.appliance import Appliance, connected
from tests.support.collectors import has_role
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.yardstick import processor_seconds

RATE = 50
GATEWAYS = 4
CLIENTS = 2_000
JOBS = 20

TEXT = re.compile(r'"text":"row (\d+)\.')


async def measure(size: Size) -> Result:
    async with server() as mariadb:
        numbers = await _delay(size, await mariadb.create_schema("delay"))
        numbers += await _deliveries(size, await mariadb.create_schema("deliveries"))
        numbers += await _killed(size, await mariadb.create_schema("killed"))
        numbers += await _takeover(size, await mariadb.create_schema("takeover"))
    return Result(tuple(numbers))


# -- from a commit to a client


async def _delay(size: Size, database: Database) -> list[Number]:
    """Both clients receive the changes of the same rows: one at the collector, one at a gateway."""
    await fill(database, jobs(JOBS, 5, status="running"))
    found: dict[float, tuple[list[float], list[float]]] = {0.5: ([], []), 0.99: ([], [])}
    lost = []
    async with (
        nats() as cluster,
        collectors(database, cluster.url) as (collector,),
        gateways(cluster.url) as (gateway,),
    ):
        await collector.start(within=180)
        await gateway.start(within=180)
        await gateway.shows(JOBS)
        for _ in range(size.runs):
            direct: list[tuple[float, int]] = []
            behind: list[tuple[float, int]] = []
            async with collector.socket(HELLO) as one, gateway.socket(HELLO) as other:
                reading = []
                for socket, came in ((one, direct), (other, behind)):
                    await socket.snapshot()
                    reading.append(asyncio.create_task(_changes(socket, came)))
                rows = await committed(database, RATE, size.of(10.0, 3.0), connections=4, hold=0.0)
                for task in reading:
                    task.cancel()
                await asyncio.gather(*reading, return_exceptions=True)
            ours, theirs = delays(rows, _included(rows, behind)), delays(rows, _included(rows, direct))
            for share, (at_gateway, at_collector) in found.items():
                at_gateway.append(ours.p(share))
                at_collector.append(theirs.p(share))
            lost.append(float(ours.lost))
    numbers = []
    for share, extra in ((0.5, 5.0), (0.99, 20.0)):
        at_gateway, at_collector = found[share]
        what = f"commit → client of a gateway, {RATE} rows/s: p{share * 100:g}"
        beyond = tuple(round(a - b, 3) for a, b in zip(at_gateway, at_collector, strict=True))
        numbers += [
            Number(what, "ms", tuple(at_gateway), "client of the collector", tuple(at_collector)),
            Number("the same, beyond the client of the collector", "ms", beyond, limit=Limit("≤", extra)),
        ]
    return [*numbers, Number("the same: changes lost", "changes", tuple(lost), limit=Limit("≤", 0))]


def _included(rows: Iterable[int], came: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """When each row came, itself or in a later change of its job: a change may be merged with the next one."""
    first: dict[int, float] = {}
    for at, row in came:
        first.setdefault(row, at)
    later: dict[int, float] = {}
    found = []
    for row in sorted(rows, reverse=True):
        at = later[row % JOBS] = min(first.get(row, math.inf), later.get(row % JOBS, math.inf))
        if at < math.inf:
            found.append((at, row))
    return found


async def _changes(socket: Socket, came: list[tuple[float, int]]) -> None:
    while True:
        frame = await socket.ws.receive_str()
        at = time.monotonic()
        came += [(at, int(row)) for row in TEXT.findall(frame)]


# -- deliveries


async def _deliveries(size: Size, database: Database) -> list[Number]:
    """A daemon and four gateways in turn, each with as many clients: deliveries per second of CPU."""
    clients, changes = size.of(500, 100), size.of(500, 100)
    await fill(database, jobs(JOBS, 5, status="running"))
    ours, theirs = [], []
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(nats())
        (collector,) = await stack.enter_async_context(collectors(database, cluster.url))
        serving = await stack.enter_async_context(gateways(cluster.url, GATEWAYS))
        daemon = await stack.enter_async_context(running(database))
        await collector.start(within=180)
        for gateway in serving:
            await gateway.start(within=180)
            await gateway.shows(JOBS)
        appliance: Any = Appliance(await stack.enter_async_context(connected(database)))
        for _ in range(size.runs):
            ours.append(await _delivered(appliance, serving, clients, changes))
            theirs.append(await _delivered(appliance, [daemon], clients, changes))
    what = f"{GATEWAYS} gateways × {clients:,} clients, {len(ours)} × {changes} changes"
    return [
        Number(what, "deliveries per CPU second", tuple(ours), "one daemon", tuple(theirs), Limit("≥", 0.85, "ratio"))
    ]


async def _delivered(appliance: Any, processes: Sequence[Measured], clients: int, changes: int) -> float:
    ids = [str(row["id"]) for row in jobs(JOBS, 0)["job_tracking"]]
    async with contextlib.AsyncExitStack() as stack:
        crowds = []
        for one in processes:
            arguments = {"kind": "websocket", "port": one.port, "count": clients}
            crowds.append(await stack.enter_async_context(started_peer("crowd", **arguments)))
        for crowd in crowds:
            await next_line(crowd, 120)
        before = sum(processor_seconds(one.pid) for one in processes)
        for n in range(changes):
            text = f"row {n}. {'.' * 300}" if n < changes - 1 else "END."
            await appliance.log(text, job_id=ids[n % JOBS])
            await asyncio.sleep(0.01)
        for crowd in crowds:
            await next_line(crowd, 120)
        used = sum(processor_seconds(one.pid) for one in processes) - before
    return round(len(processes) * clients * changes / used, 1)


# -- a gateway is killed


async def _killed(size: Size, database: Database) -> list[Number]:
    """From the kill of a gateway until all its clients are equal at another one."""
    count = size.of(CLIENTS, 200)
    await fill(database, jobs(JOBS, 5, status="running"))
    took, resumed = [], []
    async with nats() as cluster, collectors(database, cluster.url) as (collector,), gateways(cluster.url, 2) as both:
        await collector.start(within=180)
        first, second = both
        async with connected(database) as raw:
            appliance: Any = Appliance(raw)
            for _ in range(size.of(3, 1)):
                for gateway in both:
                    if not gateway.running:
                        await gateway.start(within=180)
                        await gateway.shows(JOBS)
                found = await _moved(appliance, first, second, count)
                took.append(found["seconds"])
                resumed.append(100 * found["resumed"] / count)
                first, second = second, first
    what = f"gateway killed: its {count:,} clients equal at another one"
    return [
        Number(what, "s", tuple(took), limit=Limit("≤", 10)),
        Number("the same: clients that resumed", "%", tuple(resumed), limit=Limit("≥", 100)),
    ]


async def _moved(appliance: Any, first: Gateway, second: Gateway, count: int) -> dict[str, Any]:
    arguments = {"ports": [first.port, second.port], "count": count}
    async with started_peer("resuming", **arguments) as clients:
        await next_line(clients, 120)
        began = time.monotonic()
        await first.kill()
        job_id = await appliance.job()  # The clients miss it.
        await eventually(lambda: second.job(job_id), within=30)
        due = {job["job_id"]: job["rev"] for job in (await second.get("/api/v1/jobs?limit=500"))[1]["jobs"]}
        assert clients.stdin is not None
        clients.stdin.write(json.dumps({"jobs": due}).encode() + b"\n")
        found: dict[str, Any] = await next_line(clients, 120)
        return {**found, "seconds": round(found["at"] - began, 3)}


# -- a collector is killed


async def _takeover(size: Size, database: Database) -> list[Number]:
    """From the kill of the active collector until a client of a gateway has a job that was committed after it."""
    took, epochs = list[float](), set[str]()
    async with nats() as cluster, collectors(database, cluster.url, 2) as both, gateways(cluster.url) as (gateway,):
        active, standby = both
        await active.start(within=180)
        await standby.start(ready=False, within=180)
        await gateway.start(within=180)
        async with connected(database) as raw:
            appliance: Any = Appliance(raw)
            for _ in range(size.of(20, 3)):
                await eventually(lambda: has_role(standby, "standby"))  # noqa: B023
                await active.saved()
                async with gateway.socket(HELLO) as client:
                    await client.snapshot()
                    epochs.add(client.welcome["epoch"])
                    await active.kill()
                    began = time.monotonic()
                    job_id = await appliance.job()
                    async with asyncio.timeout(60):
                        while job_id not in await client.ws.receive_str():
                            pass
                    took.append(round(time.monotonic() - began, 3))
                await active.start(ready=False, within=180)
                active, standby = standby, active
    times = ", ".join(f"{seconds:.2f}" for seconds in took)
    print(f"\n  takeover, each: {times} s", flush=True)
    return [
        Number("takeover: kill -9 of the collector → client of a gateway", "s", tuple(took), limit=Limit("≤", 5)),
        Number("the same, the longest", "s", (max(took),), limit=Limit("≤", 5), note=f"{len(took)} runs"),
        Number("the same: epochs", "epochs", (float(len(epochs)),), limit=Limit("≤", 1)),
    ]
