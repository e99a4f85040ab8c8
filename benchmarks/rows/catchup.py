"""Catch-up: a million rows that are there already, to index and hub, beside the driver that only reads them."""

from __future__ import annotations

import asyncio
from functools import partial

from benchmarks.appliance import busy, fill
from benchmarks.harness import Limit, Number, Result, Size, in_turn, peer
from tests.support.mariadb import MariaDB

LIMITS = {"aiomysql": 1.8, "asyncmy": 4.0}


async def measure(size: Size) -> Result:
    rows = size.of(1_000_000, 100_000)
    server = MariaDB("--innodb-buffer-pool-size=1G", "--innodb-flush-log-at-trx-commit=2")
    await asyncio.to_thread(server.start)
    try:
        database = await server.create_schema()
        await fill(database, await asyncio.to_thread(busy, rows))
        where = {"port": server.port, "name": database.name}
        await peer("driver", driver="asyncmy", **where)  # the pages are in memory from now on

        async def seconds(name: str, driver: str, **how: bool) -> float:
            measured = await peer(name, driver=driver, **where, **how)
            if measured["rows"] != rows:
                raise RuntimeError(f"{name} read {measured['rows']} of {rows} rows")
            return float(measured["seconds"])

        numbers = []
        for driver, most in LIMITS.items():
            ours, theirs, plain = await in_turn(
                size.runs,
                partial(seconds, "follow", driver),
                partial(seconds, "driver", driver),
                partial(seconds, "driver", driver, plain=True),
            )
            numbers.append(
                Number(
                    f"catch-up of {rows:,} rows with {driver}",
                    "s",
                    ours,
                    f"{driver} alone",
                    theirs,
                    Limit("≤", most, "ratio"),
                    f"{rows / sorted(ours)[len(ours) // 2]:,.0f} rows/s",
                )
            )
            numbers.append(
                Number(
                    "the same, beside times as the driver makes them",
                    "s",
                    ours,
                    f"{driver} alone, SELECT *",
                    plain,
                    Limit("≤", most, "ratio"),
                )
            )
        return Result(tuple(numbers))
    finally:
        await asyncio.to_thread(server.close)
