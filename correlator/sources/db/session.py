"""The database interface of the sources: sessions that run queries, the schema, and the dialect.

Every query has a deadline. A session whose query failed or was cancelled is never used again, except
after a statement that the server has ended because it took too long.

A server may answer anything: one of another version, behind a proxy, or in wrong hands. So rows enter in one place,
`rows_of`, which checks the type of each value. What is another one is a failure of the query, never of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Annotated, Any, Protocol, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Meta

from correlator.bounded import chunks
from correlator.errors import Away, SourceUnavailable
from correlator.model.rows import Int64, JobRecord, LogRow, StepRecord
from correlator.sources.db.zones import Zone

Range = tuple[int, int]
"""IDs from the first to the last, both included."""

Row = tuple[Any, ...]

T = TypeVar("T")

Time: TypeAlias = Annotated[int, Meta(ge=-(2**62), le=2**62)]
"""Microseconds since 1970 as a column has them, which are local time where it has no zone."""

Text: TypeAlias = str | None

ROWS_AT_ONCE = 2_000
"""Rows that are decoded and checked before other tasks run."""

IN_ONE = 500
"""Ids in one IN list."""

TABLES: dict[str, tuple[str, ...]] = {
    "log_events": LogRow.__struct_fields__,
    "job_tracking": ("id", *(name for name in JobRecord.__struct_fields__[1:] if name != "error_cut")),
    "job_steps": (*StepRecord.__struct_fields__[:-1], "job_id"),
    "failover_jobs": (
        "id",
        "job_id",
        "status",
        "job_type",
        "vm_id",
        "vm_context_id",
        "source_vm_name",
        "source_vm_spec",
        "destination_vm_id",
        "ossea_snapshot_id",
        "linstor_snapshot_name",
        "error_message",
        "created_at",
        "updated_at",
        "started_at",
        "completed_at",
    ),
}
"""The columns that are read, in the order of the fields of their records."""

LOCAL_TIMES = frozenset(
    {
        ("log_events", "ts"),
        ("job_steps", "started_at"),
        ("job_steps", "completed_at"),
        ("job_tracking", "canceled_at"),
    }
)
"""Columns of type DATETIME on an appliance, in local time. The other times are TIMESTAMP, which has a zone."""

INDISPENSABLE = ("id", "message", "ts")
"""Columns of log_events without which the log cannot be followed."""

NEEDED = frozenset({"job_tracking", "job_steps", *(f"log_events.{c}" for c in ("attrs", "job_id", "level", "step_id"))})
"""Tables, and columns of the log, that every appliance has."""

OLDER_GENERATION = frozenset({"log_events.external_job_id", "job_tracking.context_id", "job_tracking.job_category"})
"""Columns that an appliance lacks that has rolled its schema change back. Both generations are in use."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of `TABLES` that an appliance has: table → column → its type, in lower case."""

    columns: Mapping[str, Mapping[str, str]]

    def has(self, table: str, *columns: str) -> bool:
        """True if the table exists with all of `columns`."""
        found = self.columns.get(table, {})
        return bool(found) and all(c in found for c in columns)

    def is_local(self, table: str, column: str) -> bool:
        """True if a time is stored as local time. If the type does not show it (SQLite), `LOCAL_TIMES` decides."""
        kind = self.columns.get(table, {}).get(column)
        return kind == "datetime" or (kind != "timestamp" and (table, column) in LOCAL_TIMES)

    def missing(self) -> list[str]:
        """Tables and columns that an up-to-date appliance has and this one lacks."""
        lacks: list[str] = []
        for table, columns in TABLES.items():
            if not self.columns.get(table):
                lacks.append(table)
            else:
                lacks += [f"{table}.{c}" for c in columns if c not in self.columns[table]]
        return lacks

    def readable(self) -> set[str]:
        """All tables and columns that exist, named as in `missing`."""
        names = {f"{table}.{column}" for table, columns in self.columns.items() for column in columns}
        return names | {table for table, columns in self.columns.items() if columns}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The SQL expressions in which databases differ.

    `local_micros` and `utc_micros` turn a column (``{}``) into integer microseconds since 1970; `clock` is the query
    for the database's time ``{back}`` seconds ago, written as TIMESTAMP columns are. `json_text` is the member at
    ``{path}`` of the JSON in ``{column}``, NULL where there is none. `size`: bytes of a text;
    `member`: the JSON text that an object has at a path. `matches`: whether a text matches a regular expression, which
    knows upper and lower case of ASCII letters; NULL does not. It is compared as bytes, in which no text is invalid;
    that also costs a third of INSTR of LOWER. `joined`: one text, of a text and of another one. `briefly`: what stands
    before a statement that may be ended after ``{seconds}``. `offset`: the seconds east of UTC of the server's own zone
    now; empty if it has none. `last_changes`: the query for the time of the last change
    of each of the tables ``{tables}``, NULL if it is not known, and its age in seconds; empty if no query tells.
    """

    placeholder: str
    local_micros: str
    utc_micros: str
    clock: str
    json_text: str
    size: str
    member: str
    matches: str
    joined: str
    briefly: str = ""
    offset: str = ""
    last_changes: str = ""

    def marks(self, values: Collection[object]) -> str:
        """A list of placeholders, one for each of `values`."""
        return ",".join([self.placeholder] * len(values))


_OF_A_QUERY = frozenset({Away.FAILED, Away.LOCKED, Away.MISSING_GRANTS, Away.NO_ANSWER, Away.SLOW, Away.UNREADABLE})
"""Reasons that may be one table's alone. The others are the connection's."""

_TABLE = re.compile(rf"\bFROM ({'|'.join(TABLES)})\b")


def query_failed(detail: str, reason: Away, sql: str, meaning: str | None = None) -> SourceUnavailable:
    """The error of the query `sql`, with the table that it reads."""
    table = _TABLE.search(sql) if reason in _OF_A_QUERY else None
    return SourceUnavailable(detail, reason, table[1] if table is not None else None, meaning)


def as_text(value: object) -> object:
    """The value, with bytes decoded as UTF-8. Invalid bytes become U+FFFD."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Session(Protocol):
    """One connection to the database."""

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        """All rows of a SELECT, of any types (`rows_of`). Raises `SourceUnavailable`, and closes the session then.

        Only after `Away.SLOW` it may go on: the server has ended the statement, and answered so.
        """

    async def close(self) -> None: ...


def form_of(*kinds: Any) -> type[Row]:
    """Return the form of rows with these types of columns, of which nobody knows before how many there are."""
    return cast("type[Row]", GenericAlias(tuple, kinds))


def _form(table: str) -> type[Row]:
    """The types of the columns of `TABLES`."""
    numbers: dict[str, Any] = {"seq": Int64 | None, "step_id": int | None, "percent_complete": Int64 | None}
    if table != "job_tracking":
        numbers["id"] = Int64
    needed = {"job_tracking": "id", "job_steps": "job_id", "failover_jobs": "job_id"}.get(table)
    texts: dict[str, Any] = {needed: str} if needed is not None else {}
    times: dict[str, Any] = dict.fromkeys(TIMES, Time | None)
    known = numbers | texts | times
    return form_of(*(known.get(column, Text) for column in TABLES[table]))


TIMES = frozenset({"ts", "started_at", "completed_at", "created_at", "updated_at", "canceled_at"})
"""Columns that are times."""

FORMS: Mapping[str, type[Row]] = {table: _form(table) for table in TABLES}


async def rows_of(session: Session, form: type[T], sql: str, args: Sequence[object] = ()) -> list[T]:
    """All rows of a SELECT. `form`: a tuple of the types of its columns.

    Raises: `SourceUnavailable`, also if a value is of another type. That names table, column and type.
    """
    rows = await session.query(sql, args)
    try:
        return await in_parts(rows, lambda part: msgspec.convert(part, list[form]))  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        column = _column(sql, int(place[1])) if place is not None and place[1] else "a row of it"
        wrong = _PLACE.sub("", str(error)).replace("Expected", "expected", 1)
        raise unreadable(sql, f"the server answered what {column} cannot be: {wrong}") from None


async def in_parts(rows: Sequence[Row], convert: Callable[[Sequence[Row]], list[T]]) -> list[T]:
    """Convert any number of rows, `ROWS_AT_ONCE` before other tasks run."""
    found: list[T] = []
    for part in chunks(rows, ROWS_AT_ONCE):
        found += convert(part)
        if len(part) == ROWS_AT_ONCE:
            await asyncio.sleep(0)
    return found


async def row_of(session: Session, form: type[T], sql: str, args: Sequence[object] = ()) -> T:
    """The only row of a SELECT that always has one. Raises: as `rows_of`, also if there is none."""
    rows = await rows_of(session, form, sql, args)
    if not rows:
        raise unreadable(sql, "the server answered without a row")
    return rows[0]


def unreadable(sql: str, meaning: str) -> SourceUnavailable:
    """The error of the query `sql`, whose answer is none. `meaning`: why not."""
    return query_failed("an answer cannot be read", Away.UNREADABLE, sql, meaning)


def number(text: object, what: str) -> float:
    """The finite number that the server's variable `what` is. Raises: `SourceUnavailable`."""
    try:
        found = float(str(text))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise unreadable("", f"the server answered what {what} cannot be: expected a number")
    return found


_PLACE = re.compile(r" - at `\$\[(?:\.\.\.|\d+)\](?:\[(\d+)\])?`")
_LIST = re.compile(r"'[^']*'|[(),]|\bFROM\b")


def _column(sql: str, n: int) -> str:
    """The name of the n-th column of a SELECT, as far as its expression tells."""
    table, depth, begin, found = _TABLE.search(sql), 0, sql.find("SELECT") + len("SELECT"), list[str]()
    for mark in _LIST.finditer(sql, begin):
        if depth == 0 and mark[0] in (",", "FROM"):
            found.append(sql[begin : mark.start()])
            begin = mark.end()
            if mark[0] == "FROM":
                break
        depth += {"(": 1, ")": -1}.get(mark[0], 0)
    names = re.findall(r"\b[a-z_]{2,}\b", re.sub(r"'[^']*'", "", found[n])) if n < len(found) else []
    name = names[-1] if names else f"column {n + 1}"
    return f"{table[1]}.{name}" if table is not None else name


S = TypeVar("S", bound=Session)


@dataclass(frozen=True, slots=True)
class MonitoredSession:
    """A session that calls `beat` after every query, successful or not. Satisfies `Session`."""

    session: Session
    beat: Callable[[], None]

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        try:
            return await self.session.query(sql, args)
        finally:
            self.beat()

    async def close(self) -> None:
        await self.session.close()


@dataclass(frozen=True, slots=True)
class Replication:
    """What a server says of itself as a replica. `running`: it receives and applies changes of its primary.

    `behind`: seconds that it is behind; None if the account may not see that (REPLICA MONITOR), or nothing runs.
    """

    running: bool
    behind: float | None = None


class Database(Protocol):
    """One server with the tables of an appliance. Every method raises `SourceUnavailable`."""

    dialect: Dialect

    @property
    def driver(self) -> str:
        """The library that reads it, by the name of its package."""

    def log_in_with(self, password: str) -> None:
        """Use this password from the next connection on. A database without passwords ignores it."""

    async def open(self, *, dirty: bool = False) -> Session:
        """A new session. A `dirty` one also reads rows that are not committed yet."""

    async def schema(self, session: Session) -> Schema: ...

    async def connections(self, session: Session) -> int:
        """How many connections the account may have at once, as of the begin of `session`; 0: any number."""

    async def zone(self, session: Session) -> Zone:
        """The zone of DATETIME columns, as configured or as detected now."""

    async def replication(self, session: Session) -> Replication | None:
        """None if the server is no replica."""

    async def next_id(self, session: Session) -> int:
        """The next AUTO_INCREMENT id of log_events; 0 if unknown."""


@contextlib.asynccontextmanager
async def closing(opening: Awaitable[S]) -> AsyncIterator[S]:
    """The session of a call of `Database.open`, until it is closed at the end of the block."""
    session = await opening
    try:
        yield session
    finally:
        await session.close()
