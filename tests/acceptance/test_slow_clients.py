"""A reader that stops reading costs nothing: not the daemon's memory, not the others' time, not its own state."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.stream_clients import CheckedWebsocket, closing
from tests.support.subscriptions import Wanted

MIB = 1 << 20
LINE = "x" * 1000
ROWS = 20

BURST = 4 * MIB
"""More than the kernel, its transport and its backlog take for a reader."""

NOISE = 3 * MIB // 2
"""A connection of its own, and how far the heap of a process stays up after a burst, whoever reads."""


@dataclass
class Load:
    """Log rows of one job, and how long each took from its commit to the readers."""

    daemon: Daemon
    appliance: Appliance
    job_id: str
    watchers: list[CheckedWebsocket]
    rows: int = 0

    async def transaction(self, rows: int = ROWS) -> tuple[range, float]:
        """Commit `rows` rows. Returns their ids, and the time of the commit."""
        marks = ",".join(["(%s, 'INFO', %s, %s)"] * rows)
        attrs, at = json.dumps({"job_id": self.job_id}), now(micros=True)
        sql = f"INSERT INTO log_events (message, level, attrs, ts) VALUES {marks}"
        async with self.appliance._connection.cursor() as cursor:
            await cursor.execute(sql, [value for _ in range(rows) for value in (LINE, attrs, at)])
            first = int(cursor.lastrowid)
        self.rows += rows
        return range(first, first + rows), asyncio.get_running_loop().time()

    async def burst(self) -> None:
        for number in range(BURST // (100 * len(LINE))):
            await self.transaction(100)
            if number % 4 == 0:
                await self.last_row_arrived()  # this process has to keep up as well
        await self.last_row_arrived()

    async def steady(self, seconds: float) -> list[float]:
        """20 transactions a second: the seconds from commit to reader, in order."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        committed: dict[int, float] = {}
        for number in range(int(seconds * 20)):
            await asyncio.sleep(start + number / 20 - loop.time())
            ids, at = await self.transaction()
            committed |= dict.fromkeys(ids, at)
        await self.last_row_arrived()
        return sorted(r.received_at[i] - at for r in self.watchers for i, at in committed.items())

    async def last_row_arrived(self) -> None:
        def by_all() -> bool:
            for reader in self.watchers:
                reader.check()
                assert (len(reader.fold.lines), reader.fold.dropped) == (self.rows, 0)
            return True

        await eventually(by_all)

    async def settled_memory(self) -> int:
        """The least of a few measurements: what a batch needs for a moment comes and goes."""
        measured = []
        for _ in range(10):
            await self.transaction()
            measured.append(int(self.daemon.memory() * 1e6))
        await self.last_row_arrived()
        return min(measured)

    async def burst_costs(self, before: int) -> int:
        """By how many bytes the daemon has grown after one more burst."""
        await self.burst()
        return await self.settled_memory() - before


@pytest.fixture
async def load(daemon: Daemon, appliance: Appliance) -> AsyncIterator[Load]:
    job_id = await appliance.job("gui-1")
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    watchers = [CheckedWebsocket(daemon.url, {1: Wanted(jobs=("gui-1",), logs="DEBUG")}) for _ in range(5)]
    async with closing(watchers):
        for reader in watchers:
            await reader.connect()
        yield Load(daemon, appliance, job_id, watchers)


@asynccontextmanager
async def a_reader_that_froze(load: Load) -> AsyncIterator[CheckedWebsocket]:
    reader = CheckedWebsocket(load.daemon.url, {1: Wanted(jobs=("gui-1",), logs="DEBUG")}, receive_buffer=4096)
    async with closing([reader]):
        await reader.connect()
        await eventually(lambda: reader.fold.synced)
        reader.freeze()
        yield reader


async def is_newest(load: Load, reader: CheckedWebsocket) -> bool:
    """Whether it holds what REST shows."""
    reader.check()
    return reader.fold.jobs[1] == {load.job_id: await load.daemon.job(load.job_id)}


async def test_a_frozen_client_costs_no_memory_and_no_time_and_catches_up(load: Load):
    await load.burst()
    before = await load.settled_memory()
    await load.burst()
    control = await load.settled_memory()
    alone = statistics.median(await load.steady(1.2))
    async with a_reader_that_froze(load) as frozen:
        already = load.rows
        grown = [await load.burst_costs(control)]
        while min(grown) > MIB + NOISE + max(0, control - before):  # what the heap keeps for a moment goes back
            assert len(grown) < 4, (before, control, grown)
            grown.append(await load.burst_costs(control))
        slower = [statistics.median(await load.steady(1.2)) / alone]
        while min(slower) > 3:  # again, beside another moment without it: the load of the machine may have changed
            assert len(slower) < 5, slower
            frozen.thaw()
            await eventually(lambda: is_newest(load, frozen))
            alone = statistics.median(await load.steady(1.2))
            frozen.freeze()
            await load.burst()
            slower.append(statistics.median(await load.steady(1.2)) / alone)
        assert frozen.closed is None
        frozen.thaw()
        await eventually(lambda: is_newest(load, frozen))
        await eventually(lambda: len(frozen.fold.lines) + frozen.fold.dropped == load.rows - already)
        assert frozen.fold.dropped > 1000
        await load.transaction()  # and goes on as everybody
        await eventually(lambda: len(frozen.fold.lines) + frozen.fold.dropped == load.rows - already)
        assert list(frozen.fold.lines) == sorted(frozen.fold.lines)
