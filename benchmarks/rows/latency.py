"""From the commit of a row to a websocket reader, at the usual poll interval; and how that grows with the rows."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.appliance import jobs
from benchmarks.daemon import HELLO, Measured, Socket, running, server
from benchmarks.harness import Curve, Limit, Number, Picture, Result, Size, next_line, percentile, started_peer
from tests.support.mariadb import Database

POLL = 0.02
RATE = 2000
QUIET = 1.5
"""Seconds after the last commit in which a row may still come."""

ROW = re.compile(r"row (\d+)\.")
RATES = (100, 500, 1000, 2000, 4000, 8000)


@dataclass(frozen=True, slots=True)
class Delays:
    """Milliseconds of each row that came, how many did not, and how many came twice."""

    milliseconds: list[float]
    lost: int
    twice: int

    def p(self, share: float) -> float:
        """Of all rows that were committed: one that did not come takes for ever."""
        everything = [*self.milliseconds, *[math.inf] * self.lost]
        return round(percentile(everything, share), 3) if everything else math.inf


async def measure(size: Size) -> Result:
    seconds = size.of(5.0, 2.0)
    async with server() as mariadb:
        database = await mariadb.create_schema()
        p50, p99, lost = [], [], []
        async with running(database, jobs(20, 5, status="running"), database__poll_interval=f"{POLL}s") as daemon:
            for _ in range(size.runs):
                found = await ours(daemon, database, RATE, seconds)
                p50.append(found.p(0.5))
                p99.append(found.p(0.99))
                lost.append(float(found.lost))
            rates = size.of(RATES, RATES[:2])
            points = [(rate, await ours(daemon, database, rate, size.of(3.0, 1.0))) for rate in rates]
    what = f"commit → websocket reader, {RATE:,} rows/s, poll {POLL * 1000:.0f} ms"
    return Result(
        (
            Number(f"{what}: p50", "ms", tuple(p50), limit=Limit("≤", POLL * 1000 / 2 + 3)),
            Number(f"{what}: p99", "ms", tuple(p99), limit=Limit("≤", POLL * 1000 + 12)),
            Number(f"{what}: rows lost", "rows", tuple(lost), limit=Limit("≤", 0)),
        ),
        (
            Picture(
                "rows",
                "From a commit to a reader, as rows grow",
                "rows a second",
                "milliseconds",
                (
                    Curve("p50", tuple((float(r), d.p(0.5)) for r, d in points)),
                    Curve("p99", tuple((float(r), d.p(0.99)) for r, d in points)),
                ),
            ),
        ),
    )


async def ours(
    daemon: Measured, database: Database, rate: float, seconds: float, *, connections: int = 4, hold: float = 0.0
) -> Delays:
    """The delays of a load, as one websocket reader of all lines sees them."""
    came: list[tuple[float, int]] = []
    async with daemon.socket(HELLO) as socket:
        await socket.snapshot(logs="DEBUG")
        reading = asyncio.create_task(_read(socket, came))
        try:
            return await loaded(database, rate, seconds, came, connections=connections, hold=hold)
        finally:
            reading.cancel()


async def loaded(
    database: Database,
    rate: float,
    seconds: float,
    came: list[tuple[float, int]],
    *,
    connections: int,
    hold: float,
) -> Delays:
    """Write at `rate`; `came` is where a reader puts (when, which row)."""
    return delays(await committed(database, rate, seconds, connections=connections, hold=hold), came)


async def committed(
    database: Database, rate: float, seconds: float, *, connections: int, hold: float
) -> dict[int, float]:
    """Write at `rate`, and wait until a row may no longer come. Returns when each row was committed."""
    ids = [str(row["id"]) for row in jobs(20, 0)["job_tracking"]]
    arguments: dict[str, Any] = {
        "port": database.server.port,
        "name": database.name,
        "jobs": ids,
        "rate": rate,
        "seconds": seconds,
        "batch": max(1, min(10, int(rate / 20))),
        "connections": connections,
        "hold": hold,
    }
    async with started_peer("writer", **arguments) as writer:
        await next_line(writer)
        found = {int(n): float(at) for n, at in (await next_line(writer, seconds + 30))["committed"].items()}
    await asyncio.sleep(QUIET)
    return found


def delays(committed: dict[int, float], came: list[tuple[float, int]]) -> Delays:
    first: dict[int, float] = {}
    for at, row in came:
        first.setdefault(row, at)
    return Delays(
        [max(0.0, first[n] - at) * 1000 for n, at in committed.items() if n in first],
        len(committed.keys() - first.keys()),
        len(came) - len(first),
    )


async def _read(socket: Socket, came: list[tuple[float, int]]) -> None:
    while True:
        frame = await socket.ws.receive_str()
        at = time.monotonic()
        messages = json.loads(frame)
        parsed = messages if isinstance(messages, list) else [messages]
        rows = (ROW.match(message.get("message", "")) for message in parsed if message["type"] == "log")
        came += [(at, int(found[1])) for found in rows if found is not None]
