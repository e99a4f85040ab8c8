"""Jobs that ended long ago in the tables of an appliance, and a feed that learns from them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from correlator.forecast.forecaster import OperationKey
from correlator.forecast.points import EndedRun
from correlator.model.rows import Micros
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session
from correlator.sources.tables.history import History
from tests.support.source_databases import Original, open_queries

NOW = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
"""Two minutes ago: what ended before may have been committed only now, and is no history yet."""
LIVE = ("failover", "live")
ROWS_A_STATEMENT = 500


def ago(minutes: float) -> str:
    """A time before `NOW` in UTC, as TIMESTAMP columns are written."""
    return (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%d %H:%M:%S")


def micros(minutes: float) -> Micros:
    """The same in microseconds since 1970."""
    return round((NOW - timedelta(minutes=minutes)).timestamp()) * 1_000_000


def ended_job(
    job_id: str, minutes: float, operation: OperationKey = LIVE, status: str = "completed", **columns: Any
) -> dict[str, Any]:
    """The row of a job that took half a minute and ended `minutes` before `NOW`."""
    times = {"started_at": ago(minutes + 0.5), "created_at": ago(minutes + 0.5), "completed_at": ago(minutes)}
    return {"id": job_id, "job_type": operation[0], "operation": operation[1], "status": status} | times | columns


async def insert(original: Original, table: str, rows: Iterable[dict[str, Any]]) -> None:
    """Insert rows that all have the same columns, many in one statement."""
    found = list(rows)
    for start in range(0, len(found), ROWS_A_STATEMENT):
        part = found[start : start + ROWS_A_STATEMENT]
        marks = ", ".join([f"({', '.join(['%s'] * len(part[0]))})"] * len(part))
        values = [value for row in part for value in row.values()]
        await original.run(f"INSERT INTO {table} ({', '.join(part[0])}) VALUES {marks}", *values)


class HistoryFeed:
    """Learns the earlier runs. `running`: the operations that have a running job."""

    def __init__(self, running: Collection[OperationKey] = ()) -> None:
        self.known = SimpleNamespace(running=lambda: {key: ["j"] for key in running})
        self.cutoff: Micros | None = None
        self.calls: list[list[EndedRun]] = []
        self.complete: list[OperationKey] = []
        self.done = False

    @property
    def runs(self) -> list[EndedRun]:
        return [run for call in self.calls for run in call]

    @property
    def operations(self) -> list[OperationKey]:
        """In the order in which they were first fed."""
        return list(dict.fromkeys(run.operation for run in self.runs))

    def history_begins(self, cutoff: Micros) -> None:
        assert self.cutoff is None
        self.cutoff = cutoff

    def history(self, runs: Sequence[EndedRun]) -> None:
        assert self.cutoff is not None
        self.calls.append(list(runs))

    def operation_read(self, operation: OperationKey) -> None:
        self.complete.append(operation)

    def history_read(self) -> None:
        assert not self.done
        self.done = True


async def no_wait() -> None:
    await asyncio.sleep(0)


async def read_history(
    original: Original,
    feed: HistoryFeed | None = None,
    *,
    session: Callable[[Session], Session] = lambda opened: opened,
    history: History | None = None,
    **source: Any,
) -> HistoryFeed:
    """Read the history of `original` to its end. `session` wraps the session that is used. `history`: what reads it."""
    feed = HistoryFeed() if feed is None else feed
    async with open_queries(original.source(**source)) as (queries, opened):
        await read_with(queries, session(opened), feed, history or History())
    return feed


async def read_with(
    queries: Queries,
    session: Session,
    feed: HistoryFeed,
    history: History,
    turn: Callable[[], Awaitable[None]] = no_wait,
) -> None:
    reading: Any = feed
    await history.read(queries, session, reading, turn)
