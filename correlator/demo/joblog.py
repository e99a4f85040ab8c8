"""JobLog: writes jobs and steps into their tables, and the log rows about them; and the older table of failovers.

Problem: the correlator is for what a real appliance's log does: rows that come late, out of order, or never, and ids
that no row has. Model: tables are written at once, in a statement of their own; the log row is queued after that
statement is done, and two writers commit the queue in batches (`LogWriters`).
Invariants: the text in each column equals, byte for byte, what the appliance's Go code and its MariaDB would store;
messages, levels, columns and attrs of the lifecycle rows equal those of the appliance. Times are arguments. One thread
uses a connection (`Lane`), in the order of the calls, so that the event loop never waits for the disk.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from functools import partial
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Self, TypeVar

from correlator.tasks import TaskGroup


class Level(StrEnum):
    """The levels of `log_events.level`."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"

    @property
    def rank(self) -> int:
        """The position in the order of severity; DEBUG is 0."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row of `log_events` that has no id yet. It gets its id with the batch that it is written in."""

    level: Level
    message: str
    attrs: str | None
    ts: str
    job_id: str | None = None
    step_id: int | None = None
    external_job_id: str | None = None


# The characters that Go's encoding/json escapes inside strings although JSON does not require it.
_GO_ESCAPES = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def go_json(attrs: Mapping[str, object]) -> str:
    """Return `attrs` as Go's encoding/json writes a map: sorted keys, no spaces, `<`, `>` and `&` as escapes."""
    # None of these characters is part of JSON's syntax, so the finished text can be translated.
    return json.dumps(attrs, sort_keys=True, separators=(",", ":"), ensure_ascii=False).translate(_GO_ESCAPES)


def timestamp(at: datetime) -> str:
    """Return an aware time as a TIMESTAMP column holds it: UTC, truncated to whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def local_datetime(at: datetime, zone: tzinfo) -> str:
    """Return an aware time as a DATETIME(6) column holds it: the appliance's local time, without a zone."""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S.%f")


Value = str | int | None
T = TypeVar("T")

BUSY_TIMEOUT = 10.0
"""Seconds to wait for the write lock: three connections write, and SQLite allows one writer at a time."""


def schema() -> str:
    """Return the statements that create the four tables."""
    return (files("correlator.demo") / "schema.sql").read_text(encoding="utf-8")


def create_database(path: Path) -> bool:
    """Create the file with its tables, in WAL mode. Return False, and change nothing, if they exist already."""
    connection = sqlite3.connect(path)
    try:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'log_events'").fetchone():
            return False
        connection.execute("PRAGMA journal_mode = WAL")
        # One transaction, so that an interrupted call leaves no file that seems complete.
        connection.executescript(f"BEGIN; {schema()} COMMIT;")
        return True
    finally:
        connection.close()


def open_connection(path: Path) -> sqlite3.Connection:
    """Open the file for writing, in autocommit mode: a statement is a transaction unless BEGIN precedes it."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    # A demo need not survive a power failure, and one fsync per row would make it slow on a laptop.
    connection.execute("PRAGMA synchronous = OFF")
    return connection


class Lane:
    """One connection on one thread; calls run one after the other."""

    def __init__(self, path: Path) -> None:
        """Start the thread; the file is opened by the first call."""
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="demo-sqlite")
        self._connection: sqlite3.Connection | None = None

    async def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` with the connection, on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    async def execute(self, statement: str, values: Sequence[Value]) -> int | None:
        """Run one statement as one transaction; return the id of the inserted row, if there is one."""
        return await self.call(lambda connection: connection.execute(statement, values).lastrowid)

    async def close(self) -> None:
        """Wait for the calls already made, then close. If cancelled, it still closes in the background."""
        closing = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    async def __aenter__(self) -> Self:
        """Return the lane itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = open_connection(self._path)
        return work(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# Log rows: a bounded queue, two writers, batches, late commits. As in JobLog, `put` never blocks, and a full queue
# drops its OLDEST row; a row that has left the queue is committed exactly once, whatever happens to the transaction
# that it was in.
#
# Ids are reserved before the transaction that uses them is visible, so a query sees ids out of order, and ids that
# never appear. In MariaDB AUTO_INCREMENT does that. SQLite allows one write transaction at a time, so a writer here
# reserves a block of ids first and writes the transaction some time later.

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


def insert_rows(connection: sqlite3.Connection, first_id: int, rows: Sequence[NewRow], *, roll_back: bool) -> None:
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
        self._queue: asyncio.Queue[NewRow | None] = asyncio.Queue()  # None stops one writer
        self._stopping = asyncio.Event()
        self._next_id = 0

    def put(self, row: NewRow) -> None:
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
        async with TaskGroup() as group:
            for number in range(1, WRITERS + 1):
                group.create_task(self._write(), name=f"demo-writer-{number}")

    async def _write(self) -> None:
        async with Lane(self._path) as lane:
            more = True
            while more:
                batch, more = await self._next_batch()
                if batch:
                    await self._commit(lane, batch)

    async def _next_batch(self) -> tuple[list[NewRow], bool]:
        """Return the next batch, at most `flush` seconds after its first row, and whether more may follow."""
        batch: list[NewRow] = []
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

    async def _commit(self, lane: Lane, batch: Sequence[NewRow]) -> None:
        """Write a batch. One that is rolled back is written again with new ids; its old ids remain unused."""
        written = False
        while not written:
            first_id, self._next_id = self._next_id, self._next_id + len(batch)
            await self._linger(self._delays.lag())
            roll_back = self._delays.rolls_back() and not self._stopping.is_set()
            await lane.call(partial(insert_rows, first_id=first_id, rows=batch, roll_back=roll_back))
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


class JobStatus(StrEnum):
    """How a job can end."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    """How a step can end."""

    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"


_JOB_LEVELS = {JobStatus.COMPLETED: Level.INFO, JobStatus.FAILED: Level.ERROR, JobStatus.CANCELLED: Level.WARN}
_STEP_LEVELS = {StepStatus.COMPLETED: Level.INFO, StepStatus.FAILED: Level.ERROR, StepStatus.SKIPPED: Level.WARN}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoJob:
    """A job as its engine describes it. `external_id`: in its row, and in log rows that have its context."""

    id: str
    job_type: str
    operation: str
    owner: str
    parent_id: str | None = None
    category: str | None = None
    external_id: str | None = None
    context_id: str | None = None
    metadata: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class DemoStep:
    """A step that was started."""

    id: int
    name: str


class JobLog:
    """The tracker. It awaits table writes; it passes log rows to `put`, which must not block."""

    def __init__(self, lane: Lane, put: Callable[[NewRow], None], *, zone: tzinfo, level: Level = Level.INFO) -> None:
        """Write tables through `lane`, and pass rows of `level` or above to `put`; `zone` is the appliance's."""
        self._lane = lane
        self._put = put
        self._zone = zone
        self._level = level

    async def start_job(self, job: DemoJob, at: datetime) -> None:
        """Insert the job with status running, then log `Job started`."""
        now = timestamp(at)
        await self._lane.execute(
            "INSERT INTO job_tracking (id, parent_job_id, job_type, operation, status, external_job_id, metadata,"
            " started_at, created_at, updated_at, owner, context_id, job_category)"
            " VALUES (?, ?, ?, ?, 'running', ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job.id, job.parent_id, job.job_type, job.operation, job.external_id, _json(job.metadata)),
                *(now, now, now, job.owner, job.context_id, job.category),
            ),
        )
        attrs = {
            "job_id": job.id,
            "job_type": job.job_type,
            "operation": job.operation,
            "owner": job.owner,
            "parent_job_id": job.parent_id,
        }
        self.log(Level.INFO, "Job started", attrs, at)

    async def end_job(self, job: DemoJob, status: JobStatus, at: datetime, error: str | None = None) -> None:
        """Set the job's final status, then log it, in the only lifecycle row with ids in columns.

        A later call overwrites the result of an earlier one.
        """
        cancelled_at = local_datetime(at, self._zone) if status is JobStatus.CANCELLED else None
        now = timestamp(at)
        await self._lane.execute(
            "UPDATE job_tracking SET status = ?, error_message = ?, completed_at = ?, canceled_at = ?, updated_at = ?"
            " WHERE id = ?",
            (status, error, now, cancelled_at, now, job.id),
        )
        attrs = {"error": error, "job_id": job.id, "status": status}
        columns = (job.id, None, job.external_id)
        self.log(_JOB_LEVELS[status], f"Job {status}", attrs, at, columns)

    async def set_progress(self, job: DemoJob, percent: int, at: datetime) -> None:
        """Set `percent_complete`, then log it at DEBUG, which JobLog normally does not store."""
        await self._lane.execute(
            "UPDATE job_tracking SET percent_complete = ?, updated_at = ? WHERE id = ?",
            (percent, timestamp(at), job.id),
        )
        self.log(Level.DEBUG, "Job progress updated", {"job_id": job.id, "percent": percent}, at)

    async def start_step(
        self, job: DemoJob, name: str, seq: int, at: datetime, metadata: Mapping[str, object] | None = None
    ) -> DemoStep:
        """Insert the step with status running, then log `Step started`. `seq` counts a job's steps from 1."""
        step_id = await self._lane.execute(
            "INSERT INTO job_steps (job_id, name, seq, status, started_at, metadata) VALUES (?, ?, ?, 'running', ?, ?)",
            (job.id, name, seq, local_datetime(at, self._zone), _json(metadata)),
        )
        assert step_id is not None
        attrs = {"job_id": job.id, "sequence": seq, "step_id": step_id, "step_name": name}
        self.log(Level.INFO, "Step started", attrs, at)
        return DemoStep(step_id, name)

    async def end_step(
        self, job: DemoJob, step: DemoStep, status: StepStatus, at: datetime, error: str | None = None
    ) -> None:
        """Set the step's final status, then log it."""
        await self._lane.execute(
            "UPDATE job_steps SET status = ?, completed_at = ?, error_message = ? WHERE id = ?",
            (status, local_datetime(at, self._zone), error, step.id),
        )
        attrs = {"error": error, "job_id": job.id, "status": status, "step_id": step.id, "step_name": step.name}
        self.log(_STEP_LEVELS[status], f"Step {status}", attrs, at)

    async def recover_panic(self, job: DemoJob, step: DemoStep, panic: str, at: datetime) -> None:
        """Log a step's panic and fail the step. The job continues, because its engine does not learn of the panic."""
        attrs = {"job_id": job.id, "panic": panic, "step_id": step.id, "step_name": step.name}
        self.log(Level.ERROR, "Panic recovered in step", attrs, at)
        await self.end_step(job, step, StepStatus.FAILED, at, f"panic in step {step.name}: {panic}")

    def log_by_job(
        self,
        job: DemoJob,
        step: DemoStep,
        level: Level,
        message: str,
        attrs: Mapping[str, object],
        at: datetime,
        *,
        with_context: bool,
    ) -> None:
        """Log through the job's logger: ids are in attrs, and in columns only if the caller passes its context on."""
        columns = (job.id, step.id, job.external_id) if with_context else (None, None, None)
        self.log(level, message, {**attrs, "job_id": job.id, "step_id": step.id}, at, columns)

    def log(
        self,
        level: Level,
        message: str,
        attrs: Mapping[str, object] | None,
        at: datetime,
        columns: tuple[str | None, int | None, str | None] = (None, None, None),
    ) -> None:
        """Log a row. `columns`: its job, step and external ID; without them, only its attrs can name a job."""
        if level.rank >= self._level.rank:
            self._put(NewRow(level, message, _json(attrs), local_datetime(at, self._zone), *columns))


def _json(attrs: Mapping[str, object] | None) -> str | None:
    return None if attrs is None else go_json(attrs)


class LegacyTable:
    """`failover_jobs`, the tracker from before JobLog: one row per failover, whose status changes.

    It logs nothing. `job_id` is the ID that the caller of the API has; a call with a known ID changes that row.
    """

    def __init__(self, lane: Lane) -> None:
        """Write through `lane`."""
        self._lane = lane

    async def start(self, job_id: str, vm_name: str, context_id: str, kind: str, at: datetime) -> None:
        """Insert the row with status pending; `kind` is live or test."""
        now = timestamp(at)
        await self._lane.execute(
            "INSERT OR IGNORE INTO failover_jobs (vm_context_id, job_id, vm_id, job_type, status, source_vm_name,"
            " created_at, updated_at, started_at) VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?)",
            (context_id, job_id, f"4205-{vm_name}", kind, vm_name, now, now, now),
        )

    async def move(self, job_id: str, status: str, at: datetime, error: str | None = None) -> None:
        """Set the status, one of the table's own values; completed and failed are final."""
        now = timestamp(at)
        destination: Value = "i-2-77-VM" if status == "completed" else ""
        await self._lane.execute(
            "UPDATE failover_jobs SET status = ?, destination_vm_id = ?, error_message = ?, updated_at = ?,"
            " completed_at = ? WHERE job_id = ?",
            (status, destination, error, now, now if status in {"completed", "failed"} else None, job_id),
        )
