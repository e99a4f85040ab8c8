"""The same way from commit to reader by Node-RED, at its own best interval; and what each of them loses."""

from __future__ import annotations

from benchmarks import nodered
from benchmarks.appliance import jobs
from benchmarks.daemon import running, server
from benchmarks.harness import Limit, Number, Result, Size
from benchmarks.rows.latency import POLL, RATE, Delays, loaded, ours
from tests.support.mariadb import Database

INTERVALS = (0.005, 0.01, 0.02, 0.05)
WRITERS = 32
HOLD = 0.05
"""Seconds for which a transaction is held open, at most: ids become visible in another order than they were given."""


async def measure(size: Size) -> Result:
    seconds = size.of(3.0, 1.5)
    mine: list[Delays] = []
    quick: list[Delays] = []
    theirs: list[Delays] = []
    async with server() as mariadb:
        database = await mariadb.create_schema()
        tables = jobs(20, 5, status="running")
        async with running(database, tables):
            pass
        best = await _best(database, size)
        for _ in range(size.runs):
            for poll, found in ((POLL, mine), (best, quick)):
                async with running(database, database__poll_interval=f"{poll}s") as daemon:
                    found.append(await ours(daemon, database, RATE, seconds, connections=WRITERS, hold=HOLD))
            async with nodered.running(database, best) as came:
                theirs.append(await loaded(database, RATE, seconds, came, connections=WRITERS, hold=HOLD))
    peer = f"Node-RED polling every {best * 1000:.0f} ms"
    what = f"commit → reader, {RATE:,} rows/s by {WRITERS} writers"

    def series(delays: list[Delays], share: float) -> tuple[float, ...]:
        return tuple(d.p(share) for d in delays)

    as_often = f"{what}, both every {best * 1000:.0f} ms"
    lost, theirs_lost = tuple(float(d.lost) for d in (*mine, *quick)), tuple(float(d.lost) for d in theirs)
    return Result(
        (
            Number(f"{what}: p50", "ms", series(mine, 0.5), peer, series(theirs, 0.5), Limit("≤", 0, "yardstick")),
            Number(f"{as_often}: p50", "ms", series(quick, 0.5), peer, series(theirs, 0.5)),
            Number(f"{what}: p99", "ms", series(mine, 0.99), peer, series(theirs, 0.99), note=nodered.versions()),
            Number(f"{what}: rows lost", "rows", lost, peer, theirs_lost, Limit("≤", 0)),
        )
    )


async def _best(database: Database, size: Size) -> float:
    """The interval at which Node-RED sends rows soonest, one row after the other, without sending one twice."""
    tried: dict[float, float] = {}
    for interval in size.of(INTERVALS, INTERVALS[2:3]):
        async with nodered.running(database, interval) as came:
            found = await loaded(database, RATE, size.of(2.0, 1.0), came, connections=1, hold=0.0)
        if found.milliseconds and not found.twice:
            tried[interval] = found.p(0.5)
    return min(tried, key=lambda i: tried[i]) if tried else POLL
