"""The way of a log row into `log_events`: a bounded queue, two writers, batches, late commits.

Always, as in JobLog:
- `put` never waits; a full queue drops its OLDEST row.
- A row taken from the queue is written exactly once, whatever happens to the transaction it was in.
- Ids are reserved before the transaction that uses them is visible, so a reader meets ids out of order and ids that
  never come. MariaDB does that by AUTO_INCREMENT; SQLite lets one transaction write at a time, so here an explicit
  block of ids is taken first and the transaction follows some time later.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from correlator.demo.sqlite import Lane
from correlator.demo.values import LogRow

WRITERS = 2


@dataclass(frozen=True, slots=True)
class Weather:
    """What becomes of a batch: how long its commit takes (seconds), and whether it is rolled back instead."""

    lag: Callable[[], float]
    rolls_back: Callable[[], bool]


def calm() -> Weather:
    """Return commits that take no time and succeed."""
    return Weather(lag=lambda: 0.0, rolls_back=lambda: False)


def changeable(seed: int) -> Weather:
    """Return mostly quick commits, some late ones, a few rollbacks: the same ones for the same seed."""
    random = Random(f"{seed}-weather")

    def lag() -> float:
        luck = random.random()
        if luck < 0.70:
            return random.uniform(0.0, 0.05)
        return random.uniform(0.05, 0.5) if luck < 0.95 else random.uniform(0.5, 3.0)

    return Weather(lag, lambda: random.random() < 0.03)


def insert(connection: sqlite3.Connection, first_id: int, rows: Sequence[LogRow], *, roll_back: bool) -> None:
    """Write `rows` under consecutive ids in one transaction, and undo it if told to."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(
            "INSERT INTO log_events (id, job_id, step_id, level, message, attrs, ts, external_job_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (first_id + n, row.job_id, row.step_id, row.level, row.message, row.attrs, row.ts, row.external_job_id)
                for n, row in enumerate(rows)
            ),
        )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("ROLLBACK" if roll_back else "COMMIT")


class LogWriters:
    """The queue and its two writers. `run` works until `stop`, and returns when every queued row is committed."""

    def __init__(
        self, path: Path, weather: Weather, *, queue_size: int = 1000, batch_size: int = 100, flush: float = 1.0
    ) -> None:
        """Remember the file; `flush` is how long (seconds) a row may wait for its batch to fill up."""
        self._path = path
        self._weather = weather
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._flush = flush
        self._queue: asyncio.Queue[LogRow | None] = asyncio.Queue()  # None: a writer may go home
        self._stopping = asyncio.Event()
        self._next_id = 0
        self.dropped = 0

    def put(self, row: LogRow) -> None:
        """Queue a row; a full queue loses its oldest one. After `stop` a row has nowhere to go and is dropped."""
        if self._stopping.is_set():
            self.dropped += 1
            return
        if self._queue.qsize() >= self._queue_size:
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(row)

    def stop(self) -> None:
        """Take no more rows; what is queued is written without further delay."""
        if not self._stopping.is_set():
            self._stopping.set()
            for _ in range(WRITERS):
                self._queue.put_nowait(None)

    async def run(self) -> None:
        """Write until `stop`."""
        async with Lane(self._path) as lane:
            self._next_id = await lane.call(_highest_id) + 1
        async with asyncio.TaskGroup() as group:
            for number in range(1, WRITERS + 1):
                group.create_task(self._write(), name=f"demo-writer-{number}")

    async def _write(self) -> None:
        async with Lane(self._path) as lane:
            more = True
            while more:
                batch, more = await self._take()
                if batch:
                    await self._commit(lane, batch)

    async def _take(self) -> tuple[list[LogRow], bool]:
        """Return the next batch, `flush` seconds after its first row at the latest, and whether to come again."""
        batch: list[LogRow] = []
        try:
            async with asyncio.timeout(None) as deadline:
                while len(batch) < self._batch_size:
                    row = await self._queue.get()
                    if row is None:
                        return batch, False
                    if not batch:
                        deadline.reschedule(asyncio.get_running_loop().time() + self._flush)
                    batch.append(row)
        except TimeoutError:
            pass
        return batch, True

    async def _commit(self, lane: Lane, batch: Sequence[LogRow]) -> None:
        """Write a batch; one that is rolled back burns its ids and is written again under new ones."""
        written = False
        while not written:
            first_id, self._next_id = self._next_id, self._next_id + len(batch)
            await self._linger(self._weather.lag())
            roll_back = self._weather.rolls_back() and not self._stopping.is_set()
            await lane.call(partial(insert, first_id=first_id, rows=batch, roll_back=roll_back))
            written = not roll_back

    async def _linger(self, seconds: float) -> None:
        """Let the transaction take its time, unless everything is about to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _highest_id(connection: sqlite3.Connection) -> int:
    (highest,) = connection.execute("SELECT COALESCE(MAX(id), 0) FROM log_events").fetchone()
    return int(highest)
