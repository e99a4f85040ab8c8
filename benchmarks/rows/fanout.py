"""Fan-out of changes of 400 bytes to many websocket readers, beside what one thread can write, and a broker in C."""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.harness import (
    Curve,
    Limit,
    Number,
    Picture,
    Result,
    Size,
    in_turn,
    next_line,
    percentile,
    send,
    started_peer,
)
from tests.support.mosquitto import Mosquitto

FRAME = 400
READERS = (1000, 5000)
CURVE = (10, 100, 300, 1000, 3000, 5000)
DELIVERIES = 200_000
"""Of one run, about."""

Deliveries = Callable[[], Awaitable[float]]


async def measure(size: Size) -> Result:
    numbers: list[Number] = []
    for readers in size.of(READERS, (1000,)):
        async with AsyncExitStack() as stack:
            changes = max(8, DELIVERIES // readers // size.of(1, 4))
            measures = [await _measure(stack, kind, readers, changes) for kind in ("fanout", "raw", "mosquitto")]
            ours, raw, broker = await in_turn(size.runs, *measures)
            what = f"fan-out of {FRAME} B changes to {readers:,} readers"
            numbers += [
                Number(what, "deliveries/s", ours, "raw transport.write", raw, Limit("≥", 0.8, "ratio")),
                Number(what, "deliveries/s", ours, "mosquitto, QoS 0", broker, Limit("≥", 1.5, "ratio")),
            ]
    numbers.append(await _paced(size))
    curves: dict[str, list[tuple[float, float]]] = {"fanout": [], "raw": []}
    for readers in size.of(CURVE, CURVE[:2]):
        for kind, points in curves.items():
            async with AsyncExitStack() as stack:
                points.append((readers, await (await _measure(stack, kind, readers, 100_000 // readers))()))
    names = {"fanout": "the correlator", "raw": "raw transport.write"}
    lines = tuple(Curve(names[kind], tuple(points)) for kind, points in curves.items())
    return Result(
        tuple(numbers), (Picture("readers", "Fan-out, as readers grow", "readers", "deliveries a second", lines),)
    )


async def _measure(stack: AsyncExitStack, kind: str, readers: int, changes: int) -> Deliveries:
    """How to take deliveries a second, from the first write to when the last reader has the last."""
    server: Process | None = None
    if kind == "mosquitto":
        broker = await asyncio.to_thread(stack.enter_context, Mosquitto())
        port, crowd_kind = broker.port, "mqtt"
        publisher = await _publisher(stack, port)
    else:
        server = await stack.enter_async_context(started_peer(kind, frame=FRAME))
        port, crowd_kind = (await next_line(server))["port"], "websocket" if kind == "fanout" else "raw"
        publisher = None
    crowd = await stack.enter_async_context(started_peer("crowd", kind=crowd_kind, port=port, count=readers))
    await next_line(crowd, 120)

    async def deliveries() -> float:
        if publisher is not None:
            began = time.monotonic()
            await publisher(changes)
        else:
            assert server is not None
            send(server, changes=changes)
            began = float((await next_line(server))["began"])
        over = float((await next_line(crowd))["done"])
        return readers * changes / (over - began)

    await deliveries()  # the first is not as the others
    return deliveries


async def _publisher(stack: AsyncExitStack, port: int) -> Callable[[int], Awaitable[None]]:
    """A client that publishes to `bench` with QoS 0: topic and payload are as long as our frames."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01p")
    await reader.readexactly(4)

    def packet(start: bytes) -> bytes:
        payload = start + b"." * (FRAME - 11 - len(start)) + b"}"
        rest = b"\x00\x05bench" + payload
        return bytes([0x30, 0x80 | len(rest) & 0x7F, len(rest) >> 7]) + rest

    async def publish(changes: int) -> None:
        writer.write(packet(b"") * (changes - 1) + packet(b"END."))
        await writer.drain()

    return publish


async def _paced(size: Size) -> Number:
    rate, readers = 50, size.of(1000, 200)
    found = []
    async with started_peer("fanout", frame=FRAME) as server:
        port = (await next_line(server))["port"]
        async with started_peer("crowd", kind="websocket", port=port, count=readers, stamps=True) as crowd:
            await next_line(crowd, 120)
            for _ in range(size.runs):
                send(server, rate=rate, seconds=size.of(4.0, 1.0))
                await next_line(server)
                await asyncio.sleep(0.5)
                send(crowd, ages=True)
                ages: list[Any] = (await next_line(crowd))["ages"]
                found.append(percentile(ages, 0.99))
    return Number(f"{readers:,} readers × {rate} changes/s: p99", "ms", tuple(found), limit=Limit("≤", 25))
