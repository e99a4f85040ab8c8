"""The least that follows the log: a driver that reads the new rows every 20 ms, and drops them.

Reads nothing before a row exists that is newer than its start. Says how many rows it has read for each line that it is
sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module
from typing import Any

POLL = 0.02
MOST = 1000


class Poller:
    """The rows after the newest one of its start."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._last = 0
        self.rows = 0

    async def begin(self) -> None:
        self._last = (await self._query("SELECT COALESCE(MAX(id), 0) FROM log_events"))[0][0]

    async def follow(self) -> None:
        while True:
            found = await self._query(f"SELECT * FROM log_events WHERE id > {self._last} ORDER BY id LIMIT {MOST}")
            if found:
                self.rows += len(found)
                self._last = found[-1][0]
            await asyncio.sleep(POLL)

    async def _query(self, sql: str) -> Any:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql)
            return await cursor.fetchall()


async def main(port: int, name: str, driver: str) -> None:
    connection = await import_module(driver).connect(
        host="127.0.0.1", port=port, user="correlator", db=name, charset="utf8mb4", autocommit=True
    )
    poller = Poller(connection)
    await poller.begin()
    following = asyncio.create_task(poller.follow())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(json.dumps({"ready": True}), flush=True)
    while await lines.readline():
        print(json.dumps({"rows": poller.rows}), flush=True)
    following.cancel()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
