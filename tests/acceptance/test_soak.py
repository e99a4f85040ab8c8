"""Ten minutes at 1,000 rows a second, with a broker that goes away and comes back: memory stays where it is."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance, connected, now
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto

ROWS_A_SECOND = 1000
JOBS = 40
SECONDS = 600
WARM = 200
"""Seconds until as many jobs leave memory as come, and all buffers have their size."""


class Load:
    """Jobs that begin, log, and end, so that as many leave memory as come. Counts the rows of the log."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._jobs: list[str] = []
        self.rows = 0

    async def run(self, seconds: float) -> None:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            await self._turn()
            while self.rows < passed * ROWS_A_SECOND:
                await self._write(100)
            await asyncio.sleep(0.05)

    async def _turn(self) -> None:
        if len(self._jobs) >= JOBS:
            await self._appliance.end(self._jobs.pop(0))
        job_id = await self._appliance.job(f"soak-{uuid.uuid4()}", metadata=json.dumps({"vm_name": "pgtest2"}))
        await self._appliance.step(job_id, 1, "validation")
        self._jobs.append(job_id)

    async def _write(self, count: int) -> None:
        rows: list[Any] = []
        for n in range(count):
            job_id = self._jobs[n % len(self._jobs)]
            rows += ["working on a volume", "WARN" if n % 10 == 0 else "INFO", json.dumps({"job_id": job_id, "n": n})]
            rows.append(now(micros=True))
        marks = ", ".join(["(%s, %s, %s, %s)"] * count)
        await self._appliance.run(f"INSERT INTO log_events (message, level, attrs, ts) VALUES {marks}", *rows)
        self.rows += count


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_memory_is_flat_over_ten_minutes_of_load_and_a_broker_that_comes_and_goes(
    request: pytest.FixtureRequest, tmp_path: Path, database: Database, own_mosquitto: Mosquitto
):
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url, jobs__retention="1m")
    sizes: list[tuple[float, float]] = []
    try:
        await daemon.start()
        async with connected(database) as connection, daemon.socket(HELLO) as socket:
            await socket.say({"type": "subscribe", "id": 1, "logs": "WARN"})
            load = Load(Appliance(connection))
            began = time.monotonic()
            tasks = [asyncio.create_task(load.run(SECONDS)), asyncio.create_task(_read(socket))]
            broker = True
            while (passed := time.monotonic() - began) < SECONDS:
                await asyncio.sleep(5)
                sizes.append((passed, daemon.memory()))
                wanted = int(passed / 60) % 3 != 1  # away for one minute of three
                if wanted != broker:
                    await asyncio.to_thread(own_mosquitto.start if wanted else own_mosquitto.kill)
                    broker = wanted
            await tasks[0]
            tasks[1].cancel()
            read = await daemon.metric("correlator_rows_total")
            steady = [size for at, size in sizes if at > WARM]
            middle = sorted(steady)[len(steady) // 2]
            figures = (
                f"{load.rows} rows, {read:.0f} read; {min(steady):.1f} to {max(steady):.1f} MB, median {middle:.1f} MB"
            )
            request.config.get_terminal_writer().line(figures)
            assert load.rows > 0.9 * SECONDS * ROWS_A_SECOND
            await eventually(lambda: _read_all(daemon, load.rows))
            assert max(steady) <= 1.05 * middle
            assert min(steady) >= 0.95 * middle
    finally:
        await daemon.close()


async def _read(socket: Any) -> None:
    while True:
        await socket.next(60)


async def _read_all(daemon: Daemon, rows: int) -> bool:
    return await daemon.metric("correlator_rows_total") == rows
