"""Writes rows to the log as an appliance would, and reports when each was committed."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import asyncmy
import uvloop

COLUMNS = "INSERT INTO log_events (message, level, attrs, ts) VALUES "


class Writers:
    """`rate` rows a second in transactions of `batch` rows, each held open for up to `hold` seconds."""

    def __init__(self, jobs: list[str], rate: float, batch: int, hold: float) -> None:
        self.jobs = jobs
        self.every = batch / rate
        self.batch = batch
        self.hold = hold
        self.next = 0
        self.committed: dict[int, float] = {}

    async def write(self, connection: Any, until: float) -> None:
        while time.monotonic() < until:
            number = self.next
            self.next += 1
            due = self.began + number * self.every
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            rows = range(number * self.batch, (number + 1) * self.batch)
            values = []
            for n in rows:
                job_id = self.jobs[n % len(self.jobs)]
                values.append(f"('row {n}.', 'INFO', '{{\"job_id\":\"{job_id}\",\"item\":{n}}}', UTC_TIMESTAMP(6))")
            async with connection.cursor() as cursor:
                await cursor.execute("BEGIN")
                await cursor.execute(COLUMNS + ", ".join(values))
                if self.hold:
                    await asyncio.sleep(random.uniform(0.0, self.hold))
                await cursor.execute("COMMIT")
            now = time.monotonic()
            for n in rows:
                self.committed[n] = now

    async def run(self, connections: list[Any], seconds: float) -> None:
        self.began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(self.write(connection, self.began + seconds))


async def main(
    port: int,
    name: str,
    jobs: list[str],
    rate: float,
    seconds: float,
    batch: int = 10,
    connections: int = 4,
    hold: float = 0.0,
) -> None:
    opened = [
        await asyncmy.connect(host="127.0.0.1", port=port, user="root", db=name, autocommit=True)
        for _ in range(connections)
    ]
    writers = Writers(jobs, rate, batch, hold)
    print(json.dumps({"begins": True}), flush=True)
    await writers.run(opened, seconds)
    print(json.dumps({"committed": writers.committed}), flush=True)
    for connection in opened:
        connection.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(**json.loads(sys.argv[1])))
