"""Writes log rows into `log_events`: a bounded queue, two writers, batches, late commits.

Invariants, as in JobLog:
- `put` never blocks; a full queue drops its OLDEST row.
- A row that has left the queue is committed exactly once, whatever happens to the transaction that it was in.
- Ids are reserved before the transaction that uses them is visible, so a query sees ids out of order, and ids that
  never appear. In MariaDB AUTO_INCREMENT does that. SQLite allows one write transaction at a time, so a writer here
  reserves a block of ids first and writes the transaction some time later.
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
class CommitDelays:
    """How many seconds the commit of a batch takes (`lag`), and whether it is rolled back instead."""

    lag: Callable[[], float]
    rolls_back: Callable[[], bool]


def random_delays(seed: int) -> CommitDelays:
    """Return mostly fast commits, some late ones and a few rollbacks; the same seed gives the same ones."""
    random = Random(f"{seed}-weather")

    def lag() -> float:
        luck = random.random()
        if luck < 0.70:
            return random.uniform(0.0, 0.05)
        return random.uniform(0.05, 0.5) if luck < 0.95 else random.uniform(0.5, 3.0)

    return CommitDelays(lag, lambda: random.random() < 0.03)


def insert(connection: sqlite3.Connection, first_id: int, rows: Sequence[LogRow], *, roll_back: bool) -> None:
    """Write `rows` with consecutive ids in one transaction; undo it if `roll_back`."""
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
    """The queue and its two writers. `run` returns after `stop`, when every queued row is committed."""

    def __init__(
        self, path: Path, delays: CommitDelays, *, queue_size: int = 1000, batch_size: int = 100, flush: float = 1.0
    ) -> None:
        """`flush` is how many seconds a row may wait until its batch is full."""
        self._path = path
        self._delays = delays
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._flush = flush
        self._queue: asyncio.Queue[LogRow | None] = asyncio.Queue()  # None stops one writer
        self._stopping = asyncio.Event()
        self._next_id = 0

    def put(self, row: LogRow) -> None:
        """Queue a row. A full queue drops its oldest row; after `stop` the new row is dropped."""
        if self._stopping.is_set():
            return
        if self._queue.qsize() >= self._queue_size:
            self._queue.get_nowait()
        self._queue.put_nowait(row)

    def stop(self) -> None:
        """Accept no more rows, and write the queued ones without further delay."""
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
                batch, more = await self._next_batch()
                if batch:
                    await self._commit(lane, batch)

    async def _next_batch(self) -> tuple[list[LogRow], bool]:
        """Return the next batch, at most `flush` seconds after its first row, and whether more may follow."""
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
        """Write a batch. One that is rolled back is written again with new ids; its old ids remain unused."""
        written = False
        while not written:
            first_id, self._next_id = self._next_id, self._next_id + len(batch)
            await self._linger(self._delays.lag())
            roll_back = self._delays.rolls_back() and not self._stopping.is_set()
            await lane.call(partial(insert, first_id=first_id, rows=batch, roll_back=roll_back))
            written = not roll_back

    async def _linger(self, seconds: float) -> None:
        """Wait until `seconds` have passed or `stop` is called."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _highest_id(connection: sqlite3.Connection) -> int:
    (highest,) = connection.execute("SELECT COALESCE(MAX(id), 0) FROM log_events").fetchone()
    return int(highest)
