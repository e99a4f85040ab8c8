"""Recordings of JobLog, replayed: the same transactions, in the same commit order, into a database of the tests.

What always holds: after the last transaction `Replayer.tables()` equals `expected()` of the same transactions.
The format of a recording is described in tests/data/README.md.
"""

import asyncio
import gzip
import itertools
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, assert_never

import aiomysql
from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions

from tests.support.eventually import PATIENCE
from tests.support.mariadb import ROLLED_BACK, TABLES, Database
from tests.support.paths import DATA, REPOSITORY

Value = str | int | None
Row = Mapping[str, Value]
Tables = dict[str, dict[str | int, dict[str, Value]]]
"""{table: {id: row}}, with times as the database prints them."""

MIXED = DATA / "mixed.jsonl.gz"
BUSY = DATA / "busy.jsonl.gz"
SQLITE_SCHEMA = REPOSITORY / "correlator" / "demo" / "schema.sql"

TIMES = {
    "job_tracking": frozenset({"started_at", "completed_at", "created_at", "updated_at", "canceled_at"}),
    "job_steps": frozenset({"started_at", "completed_at"}),
    "log_events": frozenset({"ts"}),
    "failover_jobs": frozenset({"created_at", "updated_at", "started_at", "completed_at"}),
}
TOUCHED = frozenset({"job_tracking", "failover_jobs"})
"""Tables whose `updated_at` MariaDB sets by itself in an update that does not name it."""


@dataclass(frozen=True)
class Insert:
    """A row with all its columns."""

    table: str
    row: Row


@dataclass(frozen=True)
class Update:
    """The columns of one row that changed."""

    table: str
    id: str | int
    changed: Row


Operation = Insert | Update


@dataclass(frozen=True)
class Transaction:
    """What one commit made visible, `at` whole seconds after the first."""

    at: int
    operations: tuple[Operation, ...]


def load(path: Path = MIXED) -> list[Transaction]:
    """The transactions of a recording, in commit order."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [
            Transaction(line["at"], tuple(_operation(operation) for operation in line["ops"]))
            for line in map(json.loads, lines)
        ]


def shift(transactions: Iterable[Transaction], *, ends_at: datetime | None = None) -> list[Transaction]:
    """Moves every time by the same whole seconds, so that the latest is less than a second before `ends_at` (now)."""
    transactions = list(transactions)
    latest = max(
        datetime.fromisoformat(value)
        for transaction in transactions
        for operation in transaction.operations
        for column, value in _columns(operation).items()
        if column in TIMES[operation.table] and isinstance(value, str)
    )
    end = (ends_at or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)
    by = timedelta(seconds=(end - latest) // timedelta(seconds=1))

    def moved(table: str, row: Row) -> Row:
        times = TIMES[table]
        return {
            column: _printed(datetime.fromisoformat(value) + by, like=value)
            if column in times and isinstance(value, str)
            else value
            for column, value in row.items()
        }

    return [_each_row(transaction, moved) for transaction in transactions]


def with_failovers_of_joblog(transactions: Iterable[Transaction]) -> list[Transaction]:
    """The same on an appliance whose engine writes failover_jobs too: a row under the UUID of every failover.

    It says `pending` or `validating` for ever: nobody updates it when a failover ends.
    """
    number = itertools.count(1_000_000)

    def beside(row: Row) -> Insert:
        i, at = next(number), row["created_at"]
        columns = {"id": i, "job_id": row["id"], "vm_id": f"vm-{i}", "job_type": "live", "source_vm_name": "vm"}
        status = {"status": "pending" if i % 2 else "validating", "created_at": at, "updated_at": at}
        return Insert("failover_jobs", columns | status)

    return [
        replace(
            transaction,
            operations=(
                *transaction.operations,
                *(
                    beside(operation.row)
                    for operation in transaction.operations
                    if isinstance(operation, Insert)
                    and operation.table == "job_tracking"
                    and operation.row["job_type"] == "failover"
                ),
            ),
        )
        for transaction in transactions
    ]


def rolled_back(transactions: Iterable[Transaction]) -> list[Transaction]:
    """The same on an appliance that rolled its schema change back: without the columns that it does not have."""

    def present(table: str, row: Row) -> Row:
        absent = ROLLED_BACK.get(table, ())
        return {column: value for column, value in row.items() if column not in absent}

    return [_each_row(transaction, present) for transaction in transactions]


def expected(transactions: Iterable[Transaction]) -> Tables:
    """The four tables after the last transaction."""
    tables = no_rows()
    for transaction in transactions:
        write(tables, transaction)
    return tables


def no_rows() -> Tables:
    """The four tables before the first transaction."""
    return {table: {} for table in TABLES}


def write(tables: Tables, transaction: Transaction) -> None:
    """Add to the tables what the transaction writes."""
    for operation in transaction.operations:
        match operation:
            case Insert(table, row):
                key = row["id"]
                assert key is not None
                assert key not in tables[table]
                tables[table][key] = dict(row)
            case Update(table, key, changed):
                tables[table][key].update(changed)
            case _:
                assert_never(operation)


class Replayer(ABC):
    """Writes transactions into one database, as JobLog did."""

    async def replay(self, transactions: Sequence[Transaction], *, speed: float | None = None) -> None:
        """Applies the transactions in order: as fast as it goes, or `speed` times as fast as they were recorded.

        The recording knows whole seconds; the transactions of one second are spread evenly over it.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        for due, transaction in _paced(transactions):
            if speed is not None:
                await asyncio.sleep(start + due / speed - loop.time())
            await self.apply(transaction)

    @abstractmethod
    async def apply(self, transaction: Transaction) -> None:
        """Commits one transaction."""

    @abstractmethod
    async def tables(self) -> Tables:
        """The four tables as they are now."""


class MariaDBReplayer(Replayer):
    """Over one connection, with times in UTC."""

    def __init__(self, connection: aiomysql.Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(cls, database: Database) -> AsyncIterator["MariaDBReplayer"]:
        """A replayer into this database, with a connection of its own."""
        as_printed = conversions | {FIELD_TYPE.DATETIME: str, FIELD_TYPE.TIMESTAMP: str}
        in_utc = "SET time_zone='+00:00'"
        async with database.connect(autocommit=False, conv=as_printed, init_command=in_utc) as connection:
            yield cls(connection)

    async def apply(self, transaction: Transaction) -> None:
        """Commits one transaction."""
        async with self._connection.cursor() as cursor:
            for statement, rows in _statements(transaction, placeholder="%s"):
                await cursor.executemany(statement, rows)
        await self._connection.commit()

    async def tables(self) -> Tables:
        """The four tables as they are now."""
        tables: Tables = {}
        async with self._connection.cursor(aiomysql.DictCursor) as cursor:
            for table in TABLES:
                await cursor.execute(f"SELECT * FROM {table}")
                tables[table] = {row["id"]: row for row in await cursor.fetchall()}
        await self._connection.commit()
        return tables


class SQLiteReplayer(Replayer):
    """Into one SQLite file, whose tables are made if they do not exist."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path) -> AsyncIterator["SQLiteReplayer"]:
        """A replayer into this file, with a connection of its own."""
        connection = await asyncio.to_thread(cls._open, path)
        try:
            yield cls(connection)
        finally:
            await asyncio.to_thread(connection.close)

    async def apply(self, transaction: Transaction) -> None:
        """Commits one transaction."""
        await asyncio.to_thread(self._apply, transaction)

    async def tables(self) -> Tables:
        """The four tables as they are now."""
        return await asyncio.to_thread(self._tables)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL").close()
        connection.execute("PRAGMA synchronous = NORMAL").close()
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'log_events'").fetchone():
            connection.executescript(SQLITE_SCHEMA.read_text())
        return connection

    def _apply(self, transaction: Transaction) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in _statements(transaction, placeholder="?"):
                self._connection.executemany(statement, rows)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _tables(self) -> Tables:
        return {
            table: {row["id"]: dict(row) for row in self._connection.execute(f"SELECT * FROM {table}")}
            for table in TABLES
        }


def _operation(written: dict[str, Any]) -> Operation:
    if written["op"] == "insert":
        return Insert(written["table"], written["row"])
    return Update(written["table"], written["id"], written["set"])


def _columns(operation: Operation) -> Row:
    return operation.row if isinstance(operation, Insert) else operation.changed


def _each_row(transaction: Transaction, change: Callable[[str, Row], Row]) -> Transaction:
    return replace(
        transaction,
        operations=tuple(
            replace(operation, row=change(operation.table, operation.row))
            if isinstance(operation, Insert)
            else replace(operation, changed=change(operation.table, operation.changed))
            for operation in transaction.operations
        ),
    )


def _printed(moment: datetime, *, like: str) -> str:
    return moment.isoformat(sep=" ", timespec="microseconds" if "." in like else "seconds")


def _paced(transactions: Iterable[Transaction]) -> Iterator[tuple[float, Transaction]]:
    """Each transaction with the seconds after the start at which it is due."""
    for second, group in groupby(transactions, key=lambda transaction: transaction.at):
        together = list(group)
        for place, transaction in enumerate(together):
            yield second + place / len(together), transaction


def _statements(transaction: Transaction, *, placeholder: str) -> Iterator[tuple[str, list[list[Value]]]]:
    """One statement for each run of operations that only differ in their values."""
    for (kind, table, columns), group in groupby(transaction.operations, key=_form):
        together = list(group)
        if kind is Insert:
            yield (
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([placeholder] * len(columns))})",
                [list(_columns(operation).values()) for operation in together],
            )
        elif columns:
            named = [f"{column} = {placeholder}" for column in columns]
            if table in TOUCHED and "updated_at" not in columns:
                named.append("updated_at = updated_at")
            yield (
                f"UPDATE {table} SET {', '.join(named)} WHERE id = {placeholder}",
                [
                    [*operation.changed.values(), operation.id]
                    for operation in together
                    if isinstance(operation, Update)
                ],
            )


def _form(operation: Operation) -> tuple[type[Operation], str, tuple[str, ...]]:
    return type(operation), operation.table, tuple(_columns(operation))
