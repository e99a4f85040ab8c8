"""Many gateways with very many websockets each, while a job changes once a second: does every client end equal?"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from benchmarks.cluster import Gateway, example_jobs, gateways, nats, stream
from benchmarks.harness import Limit, Number, Result, Size, next_line, percentile, send, started_peer
from tests.support.stream_writer import StreamWriter
from tests.support.yardstick import processor_seconds

JOBS = 5
PERIOD = 1.0
"""Seconds between two changes."""

OPEN_WITHIN = 900.0


async def measure(size: Size) -> Result:
    count, clients, changes = size.of((10, 10_000, 60), (2, 200, 5))
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats())
        writer = await stack.enter_async_context(stream(server.url, JOBS))
        serving = await stack.enter_async_context(gateways(server.url, count))
        for gateway in serving:
            await gateway.start(within=180)
        crowds = []
        for gateway in serving:
            arguments = {"port": gateway.port, "count": clients}
            crowd = await stack.enter_async_context(started_peer("sockets", **arguments))
            await next_line(crowd, OPEN_WITHIN)
            crowds.append(crowd)
        memory = [gateway.memory() for gateway in serving]
        seconds, cpu = await _changed(writer, serving, crowds, changes)
    what = f"{count} gateways × {clients:,} websockets, {1 / PERIOD:g} change/s"
    return Result(
        (
            Number(f"{what}: all equal", "changes", (float(len(seconds)),), limit=Limit("≥", changes)),
            Number("the same: a change at all clients", "s", tuple(seconds)),
            Number("the same, p99", "s", (percentile(seconds, 0.99),)),
            Number("the same, CPU of a gateway", "% of a core", tuple(cpu)),
            Number("the same, resident, a gateway", "MB", tuple(memory)),
        )
    )


async def _changed(
    writer: StreamWriter, serving: Sequence[Gateway], crowds: Sequence[Any], changes: int
) -> tuple[list[float], list[float]]:
    """Per change, the seconds from its acknowledgement until every client is equal; per gateway, percent of a core.

    A client that misses a change, or is disconnected, ends its process with an error.
    """
    shown = list(example_jobs(JOBS))
    first = await writer.put(*shown)
    revs = {job.job_id: first - JOBS + 1 + n for n, job in enumerate(shown)}
    await _equal(crowds, revs)
    seconds, before, began = [], [processor_seconds(gateway.pid) for gateway in serving], time.monotonic()
    for n in itertools.islice(itertools.cycle(range(JOBS)), changes):
        due = time.monotonic() + PERIOD
        view = replace(shown[n].view, metadata=f'{{"vm_name":"changed at {time.monotonic()}"}}')
        shown[n] = replace(shown[n], view=view)
        revs[shown[n].job_id] = await writer.put(shown[n])
        sent = time.monotonic()
        seconds.append(round(await _equal(crowds, revs) - sent, 4))
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    passed = time.monotonic() - began
    return seconds, [
        round(100 * (processor_seconds(gateway.pid) - used) / passed, 2)
        for gateway, used in zip(serving, before, strict=True)
    ]


async def _equal(crowds: Sequence[Any], revs: dict[str, int]) -> float:
    """Wait until all clients have these revisions. Returns the monotonic time at which the last one had them."""
    for crowd in crowds:
        send(crowd, jobs=revs)
    return max([float((await next_line(crowd, 120))["last"]) for crowd in crowds])
