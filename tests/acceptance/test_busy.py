"""The recording `busy`: 62,414 rows, 25,992 of them committed below an id that was visible already."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import HELLO, Daemon, Socket
from tests.support.eventually import eventually
from tests.support.expected_jobs import differences
from tests.support.mariadb import Database
from tests.support.replay import BUSY, MariaDBReplayer, load, shift


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_every_row_is_read_once_and_all_ends_equal(driver: str, database: Database, tmp_path: Path):
    recording = shift(load(BUSY))
    async with Daemon(tmp_path, database__url=database.url, database__driver=driver) as daemon:
        lines: list[int] = []
        async with daemon.socket(HELLO) as socket, MariaDBReplayer.connect(database) as replayer:
            await socket.say({"type": "subscribe", "id": 1, "logs": "ERROR"})
            reading = asyncio.create_task(_read(socket, lines))
            await replayer.replay(recording)
            tables = await replayer.tables()
            await eventually(lambda: _rows(daemon, len(tables["log_events"])))

            async def equal() -> bool:
                shown = {str(i): await daemon.job(str(i)) for i in tables["job_tracking"]}
                return not differences(tables, shown)

            await eventually(equal, within=60, every=1.0)
            reading.cancel()
        assert await _rows(daemon, len(tables["log_events"]))
        assert len(lines) == len(set(lines))


async def _read(socket: Socket, lines: list[int]) -> None:
    while True:
        message: dict[str, Any] = await socket.next(60)
        if message["type"] == "log":
            lines.append(message["event_id"])


async def _rows(daemon: Daemon, count: int) -> bool:
    text = await daemon.text("/metrics")
    return float(next(x for x in text.splitlines() if x.startswith("correlator_rows_total")).split()[1]) == count
