"""A database as the source needs it: sessions that answer queries, and what the tables have.

Every query has a deadline. A session that failed or was cancelled in the middle is never used again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from correlator.sources.zones import Zone

Row = tuple[Any, ...]

TABLES: dict[str, tuple[str, ...]] = {
    "log_events": ("id", "message", "ts", "level", "job_id", "step_id", "attrs", "external_job_id"),
    "job_tracking": (
        "id",
        "operation",
        "status",
        "job_type",
        "parent_job_id",
        "external_job_id",
        "metadata",
        "error_message",
        "started_at",
        "completed_at",
        "created_at",
        "updated_at",
        "canceled_at",
        "percent_complete",
        "owner",
        "context_id",
        "job_category",
    ),
    "job_steps": ("id", "name", "seq", "status", "started_at", "completed_at", "error_message", "job_id"),
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
"""The columns that are read, in the order of the values they become."""

LOCAL_TIMES = frozenset(
    {
        ("log_events", "ts"),
        ("job_steps", "started_at"),
        ("job_steps", "completed_at"),
        ("job_tracking", "canceled_at"),
    }
)
"""DATETIME on an appliance: local time. The other times are TIMESTAMP, which has a zone."""

INDISPENSABLE = ("id", "message", "ts")
"""Of log_events; without these there is nothing to follow."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Which of those columns an appliance has: table → column → its type, in lower case."""

    columns: Mapping[str, Mapping[str, str]]

    def has(self, table: str, *columns: str) -> bool:
        found = self.columns.get(table, {})
        return bool(found) and all(c in found for c in columns)

    def is_local(self, table: str, column: str) -> bool:
        """Whether a time is stored as local time; where the type does not say (SQLite), as on an appliance."""
        kind = self.columns.get(table, {}).get(column)
        return kind == "datetime" or (kind != "timestamp" and (table, column) in LOCAL_TIMES)

    def missing(self) -> list[str]:
        """Tables and columns that an up-to-date appliance has and this one has not."""
        lacks: list[str] = []
        for table, columns in TABLES.items():
            if not self.columns.get(table):
                lacks.append(table)
            else:
                lacks += [f"{table}.{c}" for c in columns if c not in self.columns[table]]
        return lacks


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of database spells what differs.

    `local_micros` and `utc_micros` turn a column (``{}``) into integer microseconds since 1970; `clock` is the query
    for the database's time ``{back}`` seconds ago, written as TIMESTAMP columns are.
    """

    placeholder: str
    local_micros: str
    utc_micros: str
    clock: str


def as_text(value: object) -> object:
    """A value as read: bytes are the text that they hold, and what of them is no UTF-8 is replaced."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class Session(Protocol):
    """One connection."""

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        """All rows of a SELECT. Raises `SourceUnavailable`; the session is closed then."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Heard:
    """A session that says whenever a query has ended, well or not. Satisfies `Session`."""

    session: Session
    beat: Callable[[], None]

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[Row]:
        try:
            return await self.session.query(sql, args)
        finally:
            self.beat()

    async def close(self) -> None:
        await self.session.close()


class Database(Protocol):
    dialect: Dialect

    async def open(self, *, dirty: bool = False) -> Session:
        """A new session; `dirty` ones also see what is not committed yet. Raises `SourceUnavailable`."""

    async def schema(self, session: Session) -> Schema: ...

    async def zone(self, session: Session) -> Zone:
        """The zone of DATETIME columns, as configured or as found now."""

    async def reset_signs(self, session: Session) -> tuple[int, float]:
        """(the next id that log_events would give or 0 if unknown, the server's uptime in seconds)."""
