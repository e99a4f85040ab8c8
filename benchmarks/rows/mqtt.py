"""Publishing states to mosquitto, QoS 1, beside aiomqtt with a window of twenty."""

from __future__ import annotations

import asyncio

from benchmarks.harness import Limit, Number, Result, Size, in_turn, peer
from tests.support.mosquitto import Mosquitto


async def measure(size: Size) -> Result:
    jobs = size.of(5000, 500)

    async def rate(client: str) -> float:
        broker = Mosquitto()  # each an empty one: what a broker retains costs it
        await asyncio.to_thread(broker.start)
        try:
            return float((await peer("mqtt", port=broker.port, jobs=jobs, client=client))["rate"])
        finally:
            await asyncio.to_thread(broker.close)

    ours, theirs = await in_turn(size.runs, lambda: rate("sink"), lambda: rate("aiomqtt"))
    what = f"MQTT states of {jobs:,} jobs, QoS 1"
    return Result((Number(what, "messages/s", ours, "aiomqtt, window of 20", theirs, Limit("≥", 0.8, "ratio")),))
