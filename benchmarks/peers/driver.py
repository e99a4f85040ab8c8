"""The driver alone: seconds to read the same rows, and to drop them.

By the same statements as the daemon, which get times as numbers; or (`plain`) by `SELECT *`, with times as the driver
makes them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import uvloop

from correlator.sources.db.mariadb import MariaDBDatabase
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import TABLES, Row, Schema
from correlator.sources.tail import BatchSize


class Statement:
    """Takes a query's text and runs nothing."""

    sql = ""

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        del args
        self.sql = sql
        return []

    async def close(self) -> None:
        """Nothing is open."""


async def read(port: int, name: str, driver: str, *, plain: bool = False) -> dict[str, float]:
    schema = Schema({t: dict.fromkeys(c, "datetime" if t == "log_events" else "text") for t, c in TABLES.items()})
    statement = Statement()
    queries = Queries(MariaDBDatabase.dialect, schema, None)  # type: ignore[arg-type]
    await queries.light_rows_from(statement, 123_456_789, BatchSize().most)
    sql = "SELECT * FROM log_events WHERE id >= 123456789 ORDER BY id LIMIT 1000" if plain else statement.sql
    module: Any = import_module(driver)
    connection = await module.connect(
        host="127.0.0.1", port=port, user="correlator", db=name, charset="utf8mb4", autocommit=True
    )
    began, first, rows = time.perf_counter(), 1, 0
    while True:
        async with connection.cursor() as cursor:
            await cursor.execute(sql.replace("123456789", str(first)))
            found = await cursor.fetchall()
        rows += len(found)
        if len(found) < BatchSize().most:
            break
        first = found[-1][0] + 1
    seconds = time.perf_counter() - began
    connection.close()
    return {"seconds": seconds, "rows": rows}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(read(**json.loads(sys.argv[1])))))
