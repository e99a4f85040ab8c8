"""The tables that a source reads, as their owner writes them: one `Original` for every kind of database.

What always holds: texts of SQL are the same for every kind, with `%s` for a value; times are written in UTC where a
column has a zone (TIMESTAMP), and as they stand where it has none.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC as _UTC
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from correlator.errors import SourceUnavailable
from correlator.forecast.points import EndedRun
from correlator.jobs.index import Index
from correlator.jobs.sizes import Sizes
from correlator.model.persisted import Cursor
from correlator.model.published import JobView, Outcome
from correlator.model.rows import LogRow
from correlator.pipeline.pipeline import LocalHub, Pipeline
from correlator.sources.db import zones
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Database, Session
from correlator.sources.db.sqlite import SQLiteDatabase
from correlator.sources.db.zones import Zone
from correlator.sources.follow import Follower
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import Tail
from correlator.tasks import Backoff
from tests.support.appliance import now
from tests.support.background import in_background
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import ROLLED_BACK, MariaDB
from tests.support.mariadb import Database as MariaDBTables
from tests.support.replay import SQLITE_SCHEMA

UTC = zones.named("UTC")

_numbers = itertools.count(1)


class Transaction(ABC):
    """Rows that have their ids and that nobody may see until `commit`."""

    @abstractmethod
    async def insert(self, table: str, **row: Any) -> int: ...

    @abstractmethod
    async def commit(self) -> None: ...

    @abstractmethod
    async def rollback(self) -> None: ...

    async def log(self, message: str, **row: Any) -> int:
        return await self.insert("log_events", **line(message, **row))


async def opened(database: Database) -> Session:
    """A session of a source whose deadlines are short: it is opened as soon as the machine has that much time."""

    async def attempt() -> Session | None:
        with contextlib.suppress(SourceUnavailable):
            return await database.open()
        return None

    session = await eventually(attempt)
    assert session is not None
    return session


class Original(ABC):
    """The tables of one appliance. `rolled_back`: without the columns of `ROLLED_BACK`."""

    rolled_back: bool
    shows_dirty: bool
    """Whether there is a session that sees what is not committed yet."""

    @abstractmethod
    def source(self, *, zone: Zone | None = UTC, **options: Any) -> Database:
        """The source under test; `options` are those of its class."""

    @abstractmethod
    async def run(self, sql: str, *args: object) -> Sequence[tuple[Any, ...]]:
        """One statement, committed; its rows."""

    @abstractmethod
    async def insert(self, table: str, **row: Any) -> int:
        """One row, committed; its id where it is a number."""

    @abstractmethod
    def transaction(self, *, step: int = 1) -> contextlib.AbstractAsyncContextManager[Transaction]:
        """A transaction of another writer, whose ids are `step` apart."""

    @abstractmethod
    async def truncate_log(self) -> None:
        """Empties the log; its ids begin again."""

    async def log(self, message: str, **row: Any) -> int:
        return await self.insert("log_events", **line(message, **row))

    async def job(self, job_id: str, **row: Any) -> str:
        await self.insert("job_tracking", **{"id": job_id, "operation": "op", "status": "running"} | row)
        return job_id


def line(message: str, **row: Any) -> dict[str, Any]:
    """A row of the log of this moment."""
    return {"level": "INFO", "message": message, "ts": now(micros=True)} | row


class MariaDBOriginal(Original):
    """In a database of its own on a server of the tests."""

    shows_dirty = True

    def __init__(self, tables: MariaDBTables, driver: str, connection: Any) -> None:
        self.tables = tables
        self.rolled_back = tables.rolled_back
        self._driver: Any = driver
        self._connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def make(cls, server: MariaDB, driver: str, *, rolled_back: bool) -> AsyncIterator[MariaDBOriginal]:
        tables = await server.create_schema(f"original_{next(_numbers)}", rolled_back=rolled_back)
        async with tables.connect(init_command="SET time_zone = '+00:00', sql_mode = ''") as connection:
            yield cls(tables, driver, connection)
        await tables.drop()

    def source(self, *, zone: Zone | None = UTC, **options: Any) -> MariaDBDatabase:
        address = options.pop("address", None) or Address(port=self.tables.server.port, database=self.tables.name)
        return MariaDBDatabase(address, zone=zone, driver=self._driver, **options)

    async def run(self, sql: str, *args: object) -> Sequence[tuple[Any, ...]]:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql, args or None)
            found: Sequence[tuple[Any, ...]] = await cursor.fetchall()
            return found

    async def insert(self, table: str, **row: Any) -> int:
        return await _insert(self._connection, table, row)

    @contextlib.asynccontextmanager
    async def transaction(self, *, step: int = 1) -> AsyncIterator[Transaction]:
        setup = f"SET time_zone = '+00:00', auto_increment_increment = {step}"
        async with self.tables.connect(autocommit=False, init_command=setup) as connection:
            yield _MariaDBTransaction(connection)

    async def truncate_log(self) -> None:
        await self.run("TRUNCATE log_events")


class _MariaDBTransaction(Transaction):
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def insert(self, table: str, **row: Any) -> int:
        return await _insert(self._connection, table, row)

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        await self._connection.rollback()


async def _insert(connection: Any, table: str, row: dict[str, Any]) -> int:
    columns, marks = ", ".join(row), ", ".join(["%s"] * len(row))
    async with connection.cursor() as cursor:
        await cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))
        return int(cursor.lastrowid)


class SQLiteOriginal(Original):
    """In a file. SQLite has one writer at a time: ids are reserved first, and their rows written at the commit."""

    shows_dirty = False

    def __init__(self, path: Path, *, rolled_back: bool) -> None:
        self.path = path
        self.rolled_back = rolled_back
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)
        self._connection.execute("PRAGMA journal_mode = WAL").close()
        self._connection.execute("PRAGMA synchronous = OFF").close()
        self._connection.execute("PRAGMA foreign_keys = ON").close()
        self._connection.executescript(SQLITE_SCHEMA.read_text())
        if rolled_back:
            for index in ("idx_log_events_external_job_id", "idx_job_tracking_context_id"):
                self._connection.execute(f"DROP INDEX {index}")
            for table, columns in ROLLED_BACK.items():
                for column in columns:
                    self._connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")

    def close(self) -> None:
        self._connection.close()

    def source(self, *, zone: Zone | None = UTC, **options: Any) -> SQLiteDatabase:
        return SQLiteDatabase(self.path, zone=zone, **options)

    async def run(self, sql: str, *args: object) -> Sequence[tuple[Any, ...]]:
        return self._connection.execute(sql.replace("%s", "?"), args).fetchall()

    async def insert(self, table: str, **row: Any) -> int:
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        found = self._connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(row.values()))
        return int(found.lastrowid or 0)

    @contextlib.asynccontextmanager
    async def transaction(self, *, step: int = 1) -> AsyncIterator[Transaction]:
        yield _SQLiteTransaction(self, step)

    def reserve(self, table: str, step: int) -> int:
        (last,) = self._connection.execute(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchone()
        following = int(last) + 1 + -int(last) % step
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self._connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (table, following))
        return following

    async def truncate_log(self) -> None:
        self._connection.execute("BEGIN")
        self._connection.execute("DELETE FROM log_events")
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'log_events'")
        self._connection.execute("COMMIT")


class _SQLiteTransaction(Transaction):
    def __init__(self, original: SQLiteOriginal, step: int) -> None:
        self._original = original
        self._step = step
        self._rows: list[tuple[str, dict[str, Any]]] = []

    async def insert(self, table: str, **row: Any) -> int:
        number = self._original.reserve(table, self._step)
        self._rows.append((table, {"id": number} | row))
        return number

    async def commit(self) -> None:
        await self._original.run("BEGIN")
        for table, row in self._rows:
            await self._original.insert(table, **row)
        await self._original.run("COMMIT")
        self._rows.clear()

    async def rollback(self) -> None:
        self._rows.clear()


@contextlib.asynccontextmanager
async def open_queries(
    source: Database, *, limits: Sizes | None = None, **options: Any
) -> AsyncIterator[tuple[Queries, Session]]:
    """The questions of the source, and a session to ask them in."""
    session = await source.open()
    try:
        schema, zone = await source.schema(session), await source.zone(session)
        yield Queries(source.dialect, schema, zone, limits=limits, **options), session
    finally:
        await session.close()


class RecordingSession:
    """Records the queries of a session, with size and rows of each answer. Called with a session, it is one of that."""

    def __init__(self, session: Any = None) -> None:
        self.session = session
        self.queries: list[tuple[str, Sequence[object]]] = []
        self.answers: list[int] = []
        self.rows: list[int] = []

    def __call__(self, session: Any) -> Self:
        self.session = session
        return self

    @property
    def bytes(self) -> int:
        return sum(self.answers)

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        rows: Sequence[tuple[Any, ...]] = await self.session.query(sql, args)
        self.queries.append((sql, args))
        self.rows.append(len(rows))
        self.answers.append(sum(len(str(value)) for row in rows for value in row))
        return rows

    async def close(self) -> None:
        await self.session.close()


WRONG: Sequence[object] = (
    "x", "", None, b"\xff", True, -1, 1.5, 2**31, 2**63 - 1, 2**80, -(2**80), float("nan"), float("inf"), Decimal(7),
    datetime(2025, 9, 22),  # noqa: DTZ001 - a driver returns such ones
    datetime(9999, 12, 31, tzinfo=_UTC), date(1, 1, 1), timedelta(days=-9), [], "9" * 5_000,
)  # fmt: skip

NO_TIMES = (
    "2026-02-31 12:00:00",
    "0000-01-01 00:00:00",
    "2026-12-03 29:00:00",
    "2026-12-03 23:59:60.1",
    "2026-13-01 00:00",
)
"""Texts in the place of a time: as one looks, and of no calendar."""


class LyingDatabase:
    """A database of which every now and then one column of an answer has other values. Satisfies `Database`.

    `lies`: the share of answers that are wrong; `told`: (statement, column, value) of each lie. `answer(sql, rows)`:
    what a session answers.
    """

    def __init__(self, database: Any, randomness: random.Random, lies: float = 0.1) -> None:
        self._database = database
        self._random = randomness
        self.lies = lies
        self.told: list[tuple[str, int, object]] = []
        self.answer: Callable[[str, Sequence[tuple[Any, ...]]], Sequence[tuple[Any, ...]]] = self.lie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def open(self, **options: Any) -> LyingSession:
        return LyingSession(await self._database.open(**options), self)

    def lie(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        if self._random.random() >= self.lies or not rows:
            return rows
        column = self._random.randrange(len(rows[0]))
        is_time = isinstance(rows[0][column], str) and re.match(r"\d{4}-\d\d-\d\d ", rows[0][column])
        value = self._random.choice(NO_TIMES if is_time else WRONG)
        self.told.append((sql, column, value))
        if self._random.random() < 0.1:
            return []
        which = self._random.randrange(len(rows))
        return [(*r[:column], value, *r[column + 1 :]) if n >= which else r for n, r in enumerate(rows)]


class LyingSession:
    """Satisfies `Session`."""

    def __init__(self, session: Session, database: LyingDatabase) -> None:
        self._session = session
        self._database = database

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        return self._database.answer(sql, await self._session.query(sql, args))

    async def close(self) -> None:
        await self._session.close()


class RecordingPipeline(Pipeline):
    """Keeps what it was fed, in the order of its coming."""

    def __init__(self) -> None:
        self.index = Index()
        self.hub = LocalHub(self.index)
        super().__init__(self.hub)
        self.received: list[LogRow] = []
        self.came_back: list[str] = []
        """The messages of rows that were read before a reset."""
        self.followed: list[str] = []
        """The messages of new rows, which streams get."""
        self.errors: list[str] = []
        self.runs: list[EndedRun] = []
        self.status.subscribe(lambda: self.errors.extend(filter(None, [self.status.error])))

    def rows(self, rows: Sequence[LogRow]) -> Outcome:
        self.received += rows
        self.followed += [row.message for row in rows]
        return super().rows(rows)

    def again(self, rows: Sequence[LogRow]) -> Outcome:
        self.came_back += [row.message for row in rows]
        return super().again(rows)

    def past(self, rows: Sequence[LogRow]) -> Outcome:
        self.received += rows
        return super().past(rows)

    def history(self, runs: Sequence[EndedRun]) -> None:
        self.runs += runs
        super().history(runs)

    @property
    def ids(self) -> list[int]:
        return [row.id for row in self.received]

    @property
    def messages(self) -> list[str]:
        return [row.message for row in self.received]

    def view(self, job_id: str) -> JobView | None:
        """What is published of a job."""
        shown = self.hub.published.get(job_id)
        return shown.view if shown is not None else None

    async def receives(self, *messages: str) -> None:
        """Waits until each of `messages` has come."""
        await eventually(lambda: set(messages) <= set(self.messages))


@contextlib.asynccontextmanager
async def running_follower(
    source: Database,
    cursor: Cursor | None = None,
    tail: Mapping[str, Any] | None = None,
    /,
    *,
    grace: float = 0.5,
    **follower: Any,
) -> AsyncIterator[tuple[RecordingPipeline, Tail]]:
    """The source at work, once it has read the past. `tail`, `follower`: further settings of `Tail` and `Follower`.

    `cursor`: it continues there, after a restart.
    """
    received = RecordingPipeline()
    reader = Tail(poll=0.005, idle_poll=0.01, grace=grace, reset_check_every=0.1, **(tail or {}))
    if cursor is not None:
        reader.resume(cursor)
        received.status.complete.set()
    running = Follower(
        source, reader, Reconcile(interval=0.1, zone_every=0.1), backoff=Backoff(0.01, 1.5, 0.1), **follower
    )
    async with in_background(running.run(received)) as task:
        await eventually(lambda: task.done() or received.status.complete.is_set())
        yield received, reader
        assert not task.done(), task.exception()
