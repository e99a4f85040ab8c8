"""What a gateway costs: its start with many jobs, and a second in which nothing happens."""

from __future__ import annotations

import asyncio
import time

from benchmarks.cluster import Gateway, gateways, nats, stream
from benchmarks.daemon import readers
from benchmarks.harness import Limit, Number, Result, Size, cpu_percent, in_turn
from tests.support.yardstick import processor_seconds

READERS = 10
IDLE_JOBS = 100


async def measure(size: Size) -> Result:
    numbers: list[Number] = []
    for count, within in size.of(((20_000, 2.0), (200_000, 15.0)), ((2_000, 2.0),)):
        numbers += await _start(size, count, within)
    return Result((*numbers, *await _idle(size)))


async def _start(size: Size, count: int, within: float) -> list[Number]:
    """From the start of the process until it is ready, beside the start with one job: Python and the imports."""
    cpu: list[float] = []
    async with (
        nats() as many, stream(many.url, count), gateways(many.url) as (large,),
        nats() as one, stream(one.url, 1), gateways(one.url) as (small,),
    ):  # fmt: skip

        async def ours() -> float:
            took = await _started(large, count)
            cpu.append(processor_seconds(large.pid))
            await large.stop()
            return took

        async def theirs() -> float:
            took = await _started(small, 1)
            await small.stop()
            return took

        took, beside = await in_turn(size.runs if count < 100_000 else 2, ours, theirs)
    what = f"start of a gateway with {count:,} jobs"
    return [
        Number(what, "s", took, "with 1 job", beside, Limit("≤", within)),
        Number("the same, CPU", "s", tuple(round(seconds, 3) for seconds in cpu)),
    ]


async def _started(gateway: Gateway, count: int) -> float:
    began = time.perf_counter()
    await gateway.start(within=100)
    took = time.perf_counter() - began
    if (found := (await gateway.get("/api/v1/instances"))[1]["instances"][0]["jobs"]) != count:
        raise RuntimeError(f"it is ready with {found} jobs of {count}")
    return took


async def _idle(size: Size) -> list[Number]:
    numbers = []
    async with nats() as server, stream(server.url, IDLE_JOBS), gateways(server.url) as (gateway,):
        await gateway.start(within=60)
        for count in (0, READERS):
            ours, memory = [], []
            async with readers(gateway, count):
                await asyncio.sleep(size.of(10.0, 2.0))  # until what the start took is gone
                for _ in range(size.runs):
                    (used,) = await cpu_percent(size.of(10.0, 2.0), gateway.pid)
                    ours.append(round(used, 3))
                    memory.append(round(gateway.memory(), 2))
            what = f"idle gateway, {count} readers" if count else "idle gateway"
            numbers += [
                Number(what, "% of a core", tuple(ours), limit=Limit("≤", 0.5)),
                Number("the same, resident", "MB", tuple(memory), limit=Limit("≤", 70)),
            ]
    return numbers
