"""Writers like JobLog's, that know what they have committed and outlive every fault of the server.

What always holds: a log row whose commit was acknowledged is in `acknowledged`, by a number that stands in its attrs;
a table row comes before the log row about it. What failed is written again, with ids of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiomysql
import pymysql

from tests.support.mariadb import Database

DUPLICATE, NO_PARENT = 1062, 1452
AGAIN_AFTER = 0.05
STEPS = ("validation", "snapshot", "volume-switch", "power-on")
CHATTER = (("INFO", 6), ("DEBUG", 2), ("WARN", 2), ("ERROR", 1))

COLUMNS = "job_id, step_id, level, message, attrs, ts"


@dataclass(frozen=True)
class Line:
    """A log row to be written: what stands in its columns, and its number."""

    number: int
    level: str
    message: str
    attrs: dict[str, Any]
    ts: str
    job_id: str | None = None
    step_id: int | None = None

    def values(self) -> tuple[Any, ...]:
        """For the columns of `COLUMNS`."""
        attrs = json.dumps({**self.attrs, "n": self.number})
        return self.job_id, self.step_id, self.level, self.message, attrs, self.ts


class Orphaned(Exception):
    """The job that a row belongs to is not in its table any more."""


class RetryingWriter:
    """A connection that is opened again, and statements that are retried, until they succeed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: contextlib.AsyncExitStack | None = None
        self._connection: Any = None

    async def run(self, sql: str, args: Sequence[Any] = ()) -> int:
        """One statement, committed; the id it gave. Raises `Orphaned`."""
        return await self.transaction([(sql, [args])])

    async def transaction(
        self, statements: Sequence[tuple[str, Sequence[Sequence[Any]]]], *, hold: float = 0.0, back: bool = False
    ) -> int:
        """All of them in one transaction, `hold` seconds open; with `back` first once rolled back. The last id."""
        while True:
            try:
                return await self._try(statements, hold, back)
            except pymysql.IntegrityError as error:
                await self._rollback()
                if error.args[0] == NO_PARENT:
                    raise Orphaned from error
                if error.args[0] == DUPLICATE:
                    return 0  # the attempt before went through after all
                raise
            except (pymysql.MySQLError, OSError, RuntimeError, asyncio.IncompleteReadError):
                await self.close()
                await asyncio.sleep(AGAIN_AFTER)

    async def rows(self, sql: str, args: Sequence[Any] = ()) -> Sequence[dict[str, Any]]:
        """What a query finds."""
        while True:
            try:
                async with (await self._connected()).cursor(aiomysql.DictCursor) as cursor:
                    await cursor.execute(sql, args or None)
                    found: Sequence[dict[str, Any]] = await cursor.fetchall()
                    await self._connection.commit()
                    return found
            except (pymysql.MySQLError, OSError, RuntimeError, asyncio.IncompleteReadError):
                await self.close()
                await asyncio.sleep(AGAIN_AFTER)

    async def close(self) -> None:
        stack, self._open, self._connection = self._open, None, None
        if stack is not None:
            await stack.aclose()

    async def _connected(self) -> Any:
        if self._connection is None:
            self._open = contextlib.AsyncExitStack()
            connection = self._database.connect(autocommit=False, init_command="SET time_zone = '+00:00'")
            self._connection = await self._open.enter_async_context(connection)
        return self._connection

    async def _rollback(self) -> None:
        with contextlib.suppress(pymysql.MySQLError, OSError):
            await self._connection.rollback()

    async def _try(self, statements: Sequence[tuple[str, Sequence[Sequence[Any]]]], hold: float, back: bool) -> int:
        connection = await self._connected()
        last = 0
        async with connection.cursor() as cursor:
            for again in (True, False) if back else (False,):
                for sql, rows in statements:
                    if len(rows) == 1:
                        await cursor.execute(sql, tuple(rows[0]) or None)
                    else:
                        await cursor.executemany(sql, rows)
                    last = int(cursor.lastrowid)
                if hold:
                    await asyncio.sleep(hold)
                await (connection.rollback() if again else connection.commit())
        return last


@dataclass
class Traffic:
    """`jobs` jobs at a time, their log rows written by `writers` in transactions of up to `batch` rows.

    A transaction stays open for up to `hold` seconds; `rollbacks` of them are rolled back and written again. `pause`:
    the most seconds between two statements of a job. `offset`: of the appliance's local time, in which `ts` is written.
    """

    database: Database
    jobs: int = 3
    writers: int = 2
    batch: int = 20
    hold: float = 0.03
    rollbacks: float = 0.05
    pause: float = 0.2
    offset: timedelta = timedelta(0)
    acknowledged: set[int] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _queue: asyncio.Queue[Line] = field(init=False)
    _ending: bool = False

    def __post_init__(self) -> None:
        self._queue = asyncio.Queue(self.writers * self.batch)  # jobs wait for writers that are behind

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[RetryingWriter]:
        """A writer with a connection of its own."""
        found = RetryingWriter(self.database)
        try:
            yield found
        finally:
            await found.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Jobs begin and end until the block is left; then those that run are brought to their end."""
        self._ending = False
        random_ = random.Random(len(self.acknowledged))
        jobs = [asyncio.create_task(self._jobs(random.Random(random_.random()))) for _ in range(self.jobs)]
        writers = [asyncio.create_task(self._write(random.Random(random_.random()))) for _ in range(self.writers)]
        try:
            yield
            self._ending = True
            await asyncio.gather(*jobs)
            await self._queue.join()
        finally:
            for task in (*jobs, *writers):
                task.cancel()
            await asyncio.gather(*jobs, *writers, return_exceptions=True)

    async def job(self, writer: RetryingWriter) -> str:
        """The row of a job that runs, and no log row yet."""
        job_id = str(uuid.uuid4())
        metadata = json.dumps({"vm_name": f"vm-{job_id[:4]}", "failover_job_id": f"gui-{job_id}"})
        await writer.run(
            "INSERT INTO job_tracking (id, operation, job_type, status, started_at, owner, external_job_id, metadata)"
            " VALUES (%s, 'unified-live-failover', 'failover', 'running', UTC_TIMESTAMP(), 'system', %s, %s)",
            (job_id, f"constructed-{job_id}", metadata),
        )
        return job_id

    def line(self, level: str, message: str, attrs: dict[str, Any] | None = None, **columns: Any) -> Line:
        """A log row of this moment."""
        at = datetime.now(UTC) + self.offset
        return Line(next(self._numbers), level, message, attrs or {}, at.strftime("%Y-%m-%d %H:%M:%S.%f"), **columns)

    async def commit(
        self, writer: RetryingWriter, lines: Sequence[Line], *, hold: float = 0.0, back: bool = False
    ) -> int:
        """Write log rows in one transaction; the first id. Acknowledged when this returns."""
        marks = ", ".join(["%s"] * len(COLUMNS.split(",")))
        sql = f"INSERT INTO log_events ({COLUMNS}) VALUES ({marks})"
        found = await writer.transaction([(sql, [line.values() for line in lines])], hold=hold, back=back)
        self.acknowledged |= {line.number for line in lines}
        return found

    async def _jobs(self, rnd: random.Random) -> None:
        writer = RetryingWriter(self.database)
        try:
            while not self._ending:
                with contextlib.suppress(Orphaned):
                    await self._one(writer, rnd)
        finally:
            await writer.close()

    async def _one(self, writer: RetryingWriter, rnd: random.Random) -> None:
        job_id = await self.job(writer)
        await self._log("INFO", "Job started", {"job_id": job_id, "job_type": "failover", "owner": "system"})
        failed = False
        for seq, name in enumerate(STEPS[: rnd.randint(1, len(STEPS))], 1):
            failed = not await self._step(writer, rnd, job_id, seq, name) or failed
        status, level = ("failed", "ERROR") if failed and rnd.random() < 0.7 else ("completed", "INFO")
        error = "no space left" if status == "failed" else None
        await writer.run(
            "UPDATE job_tracking SET status = %s, error_message = %s, completed_at = UTC_TIMESTAMP() WHERE id = %s",
            (status, error, job_id),
        )
        attrs = {"job_id": job_id, "status": status} | ({"error": error} if error else {})
        await self._log(level, f"Job {status}", attrs, job_id=job_id)

    async def _step(self, writer: RetryingWriter, rnd: random.Random, job_id: str, seq: int, name: str) -> bool:
        await writer.run(
            "INSERT INTO job_steps (job_id, name, seq, status, started_at) VALUES (%s, %s, %s, 'running', %s)",
            (job_id, name, seq, self.line("INFO", "").ts),
        )
        found = await writer.rows("SELECT id FROM job_steps WHERE job_id = %s AND seq = %s", (job_id, seq))
        if not found:
            raise Orphaned
        ids = {"job_id": job_id, "step_id": found[0]["id"], "step_name": name}
        await self._log("INFO", "Step started", {**ids, "sequence": seq})
        for _ in range(rnd.randint(0, 3)):
            await self._chat(rnd, job_id, ids)
            await asyncio.sleep(rnd.random() * self.pause)
        status, level = rnd.choices((("completed", "INFO"), ("failed", "ERROR"), ("skipped", "WARN")), (8, 1, 1))[0]
        await writer.run(
            "UPDATE job_steps SET status = %s, completed_at = %s WHERE id = %s",
            (status, self.line("INFO", "").ts, ids["step_id"]),
        )
        await self._log(level, f"Step {status}", {**ids, "status": status})
        return status != "failed"

    async def _chat(self, rnd: random.Random, job_id: str, ids: dict[str, Any]) -> None:
        """A row by column, one by attrs alone, or one of no job: as they come."""
        level = rnd.choices([name for name, _ in CHATTER], [weight for _, weight in CHATTER])[0]
        match rnd.randrange(4):
            case 0:
                await self._log(level, "copied a block", job_id=job_id)
            case 1:
                await self._log(level, "attached a volume", job_id=job_id, step_id=ids["step_id"])
            case 2:
                await self._log(level, "asked the hypervisor", ids)
            case _:
                await self._log(level, "GET /health")

    async def _log(self, level: str, message: str, attrs: dict[str, Any] | None = None, **columns: Any) -> None:
        await self._queue.put(self.line(level, message, attrs, **columns))

    async def _write(self, rnd: random.Random) -> None:
        writer = RetryingWriter(self.database)
        try:
            while True:
                lines = [await self._queue.get()]
                wanted = rnd.randint(1, self.batch)
                while len(lines) < wanted and not self._queue.empty():
                    lines.append(self._queue.get_nowait())
                with contextlib.suppress(Orphaned):
                    await self.commit(writer, lines, hold=rnd.random() * self.hold, back=rnd.random() < self.rollbacks)
                for _ in lines:
                    self._queue.task_done()
        finally:
            await writer.close()
