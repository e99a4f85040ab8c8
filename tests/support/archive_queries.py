"""What the tests of the archive share: times after a fixed base, a query for a job by any ID, JSON as it is stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from correlator.pipeline.queries import JobNames, JobQuery
from correlator.sources.archive.archive import DatabaseArchive
from correlator.sources.db.slices import Slices
from correlator.sources.db.zones import Zone
from tests.support.eventually import PATIENCE
from tests.support.source_databases import UTC as UTC_ZONE
from tests.support.source_databases import Original

BASE = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


def at(second: int, *, micros: int | None = None) -> str:
    """A moment after BASE, as columns are written."""
    when = BASE + timedelta(seconds=second)
    return when.strftime("%Y-%m-%d %H:%M:%S") + ("" if micros is None else f".{micros:06}")


def unix(second: int) -> int:
    return int(BASE.timestamp()) + second


Ask: TypeAlias = Callable[[], Awaitable[Sequence[tuple[Any, ...]]]]
"""Asks the database, and returns the rows."""


class Watched:
    """A database, or a session of it, whose queries are asked by `through(sql, ask)`."""

    def __init__(self, inner: Any, through: Callable[[str, Ask], Awaitable[Sequence[tuple[Any, ...]]]]) -> None:
        self._inner = inner
        self._through = through

    async def open(self, **options: Any) -> Watched:
        return Watched(await self._inner.open(**options), self._through)

    async def query(self, sql: str, args: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        return await self._through(sql, lambda: self._inner.query(sql, args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def selects_lines(sql: str) -> bool:
    """Whether a query selects the lines of a slice that match, by their sizes."""
    return "SELECT id, LENGTH(message)" in sql


@contextlib.asynccontextmanager
async def archive_of(
    appliance: Original, *, zone: Zone = UTC_ZONE, through: Any = None, **options: Any
) -> AsyncIterator[DatabaseArchive]:
    """What takes time on a busy machine may take it, unless a test says otherwise. `through`: see `Watched`."""
    patient = dict.fromkeys(("page_within", "jobs_within", "search_within", "times_within"), PATIENCE)
    source: Any = appliance.source(zone=zone)
    archive = DatabaseArchive(source if through is None else Watched(source, through), **(patient | options))
    try:
        yield archive
    finally:
        await archive.close()


def of(rows: int) -> Callable[[int, int, int], Slices]:
    """For `slices`: each slice has so many rows."""
    return lambda *_: Slices(rows, rows, rows)


def logical_time() -> int:
    return 7


async def found(archive, name):
    """(job id, how it was found, what else has the ID)."""
    one = await archive.find(name, logical_time)
    if one is None:
        return None
    assert (one.reading is None) != (one.legacy is None)
    assert one.reading is None or (one.reading.observed_at == 7 and one.reading.record.job_id == one.resolved.job_id)
    return one.resolved.job_id, one.resolved.resolved_by, one.resolved.also


def names(job_id="u1", external=(), steps=(), started=0, ended=None) -> JobNames:
    def moment(second):
        return unix(second) * 1_000_000

    return JobNames(
        job_id, tuple(external), frozenset(steps), moment(started), None if ended is None else moment(ended)
    )


async def listed(archive: DatabaseArchive, query: JobQuery, limit: int = 100) -> list[str]:
    """The IDs of all jobs that match, page by page."""
    ids, before = list[str](), None
    while True:
        page = await archive.page(query, before, limit, logical_time)
        ids += [r.job_id for r in page.readings]
        if (before := page.next_before) is None:
            return ids


def go_encoded(text: str) -> str:
    """JSON as the encoder of JobLog writes it."""
    encoded = json.dumps(text, ensure_ascii=False)
    for plain in "<>&\u2028\u2029":
        encoded = encoded.replace(plain, f"\\u{ord(plain):04x}")
    return encoded
