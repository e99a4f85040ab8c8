"""The log lines of one job, from the database: also those whose row names it in its attrs alone.

Nine in ten rows of a job have no index that leads to them, so a range of the primary key is read: from just before its
first row to just after its last. Ids grow with time but for the few seconds that rows wait for their commit.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from correlator.hub import JobNames, LinesPage
from correlator.jobs import joblog
from correlator.jobs.model import LEVELS, Entry, Level, LogLine, LogRow
from correlator.sources import pages
from correlator.sources.database import Session
from correlator.sources.pages import MAX_SPAN, Place
from correlator.sources.queries import Queries

BEFORE = 60_000_000
AFTER = 120_000_000
"""Microseconds around a job within which its rows got their ids: they wait in a queue, and a batch may take long."""

REPEATED = 3_600_000_000
"""What local time may be off by in the hour that the end of daylight saving time repeats."""

LATE_FOR = 600_000_000
"""Microseconds for which an id that is not there may still come."""

FETCH = 1000


async def read(
    queries: Queries,
    session: Session,
    names: JobNames,
    after: str | None,
    limit: int,
    level: Level,
    id_keys: Sequence[str],
) -> LinesPage:
    """A page of at most `limit` lines from `level` on. Raises `BadRequest`, and what the session raises."""
    head = await queries.last_id(session)
    if queries.schema.has("job_steps", "id", "job_id"):  # a step may be newer than what is in memory
        steps = (await queries.steps_of(session, [names.job_id])).get(names.job_id, ())
        names = replace(names, step_ids=names.step_ids | {s.id for s in steps})
    place = pages.decode(after) if after is not None else None
    if place is None or place.upto > head:  # ids that began again: all of it is new
        place = Place(await _first(queries, session, names) - 1)
    last = head if names.ended is None else await _last(queries, session, names, head)
    unknown_from = min(place.holes) - 1 if place.holes else place.upto
    floor = max(head - MAX_SPAN, await _recent(queries, session, head), unknown_from)
    # The ids first: what becomes visible between the two questions is told and no hole.
    visible = await queries.ids_in(session, [(floor + 1, head)]) if floor < min(head, max(last, place.upto)) else []
    found: list[LogRow] = []
    at = 0
    while len(found) <= limit:
        wanted = place.ranges(at, last)
        rows = await queries.rows_of(session, names, wanted, FETCH, _levels(level)) if wanted else []
        found += [r for r in rows if place.wants(r.id) and _belongs(r, names, id_keys)]
        if len(rows) < FETCH:
            break
        at = rows[-1].id
    more = len(found) > limit
    del found[limit:]
    seen_to = found[-1].id if more else max(last, place.upto)
    following = place.advance(seen_to, visible, [r.id for r in found], floor)
    ended = names.ended is not None and not found and not more
    lines = sorted((_line(r, id_keys) for r in found), key=lambda line: (line.at, line.event_id))
    return LinesPage(lines, None if ended else following.encode())


async def _first(queries: Queries, session: Session, names: JobNames) -> int:
    """An id at or before the job's first row."""
    back = BEFORE + (REPEATED if queries.schema.is_local("log_events", "ts") else 0)
    first = await queries.first_since(session, names.started - back)
    known = await queries.id_bounds(session, names.job_id)
    return min(first, known[0]) if known is not None else first


async def _last(queries: Queries, session: Session, names: JobNames, head: int) -> int:
    """An id at or after the ended job's last row."""
    assert names.ended is not None
    last = await queries.first_since(session, names.ended + AFTER)
    known = await queries.id_bounds(session, names.job_id)
    return min(head, max(last, known[1] if known is not None else 0))


async def _recent(queries: Queries, session: Session, head: int) -> int:
    """The id up to which nothing comes late any more."""
    newest = await queries.rows_from(session, head, 1)
    return await queries.first_since(session, newest[0].ts - LATE_FOR) - 1 if newest else head


def _levels(least: Level) -> tuple[str, ...]:
    """The stored words from `least` on; none: whatever is stored."""
    return LEVELS[LEVELS.index(least) :] if least != "DEBUG" else ()


def _belongs(row: LogRow, names: JobNames, id_keys: Sequence[str]) -> bool:
    """The rule of `Index`: by its job id, else by its step, else by an external ID."""
    entry = _entry(row, id_keys)
    if entry.job_id is not None:
        return entry.job_id == names.job_id
    if entry.step_id is not None:
        return entry.step_id in names.step_ids
    return bool(entry.external_ids) and entry.external_ids[0] in names.external_ids


def _line(row: LogRow, id_keys: Sequence[str]) -> LogLine:
    entry = _entry(row, id_keys)
    return LogLine(row.id, entry.level, row.message, entry.step_id, joblog.attrs_value(row.attrs), row.ts)


def _entry(row: LogRow, id_keys: Sequence[str]) -> Entry:
    return joblog.read(row, 0, id_keys)[0]
