"""What the tests of the archive share: times after a fixed base, a query for a job by any ID, JSON as it is stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

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


@contextlib.asynccontextmanager
async def archive_of(appliance: Original, *, zone: Zone = UTC_ZONE, **options: Any) -> AsyncIterator[DatabaseArchive]:
    """What takes time on a busy machine may take it, unless a test says otherwise."""
    patient = dict.fromkeys(("page_within", "jobs_within", "search_within", "times_within"), PATIENCE)
    archive = DatabaseArchive(appliance.source(zone=zone), **(patient | options))
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
