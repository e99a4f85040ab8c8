"""The log lines of one job from the database, also those whose row names the job only in its attrs.

No index leads to nine in ten rows of a job, so ranges of the primary key are read: from just before the job's first row
to just after its last. Ids grow with time, except for the few seconds that rows wait for their commit. A job may have
millions of rows: `Reader` reads one slice of ids at a time, and its caller decides how many make a page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.jobs.model.facts import Entry
from correlator.jobs.model.rows import LEVELS, Level, LogRow
from correlator.jobs.model.views import LogLine
from correlator.pipeline.queries import JobNames, LinesPage
from correlator.sources.archive.pages import MAX_SPAN, Place
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import IN_ONE, Session, chunks
from correlator.sources.search import searches
from correlator.sources.search.slices import Slices

BEFORE = 60_000_000
AFTER = 120_000_000
"""Microseconds before the begin and after the end of a job within which its rows get ids: JobLog writes in batches."""

REPEATED = 3_600_000_000
"""Microseconds by which local time may be off in the hour that the end of daylight saving time repeats."""

LATE_FOR = 600_000_000
"""Microseconds for which a missing id may still appear."""

MAX_BYTES = 4 << 20
"""Most bytes of messages and attrs in one page; a single row may exceed it."""

SPAN = 2_000
"""Ids in one slice near the head of the log, where the place stores each missing id."""

PARSED_AT_ONCE = 256 * 1024
"""Bytes of attrs that are parsed before other tasks run."""


class Reader:
    """Reads one page: `begin` once, `step` until `full`, then `page`. `begin` and `step` are one question each."""

    def __init__(self, names: JobNames, limit: int, level: Level, id_keys: Sequence[str], slices: Slices) -> None:
        self._names = names
        self._limit = limit
        self._levels = LEVELS[LEVELS.index(level) :] if level != "DEBUG" else ()
        self._keys = id_keys
        self._slices = slices
        self._lines: list[LogLine] = []
        self._bytes = 0
        self._floor = 0
        self._last = 0
        self._to_revisit: list[int] = []
        """Ids that were not visible at an earlier page and may be now; ascending."""
        self.full = False
        """True if the page is full, or there is nothing more to read now."""

    async def begin(self, place: Place | None, queries: Queries, session: Session) -> Place:
        """Find the range of ids to read, and return the place to start from."""
        names = self._names
        head = await queries.last_id(session)
        if queries.schema.has("job_steps", "id", "job_id"):  # a step may be newer than what is in memory
            steps = (await queries.steps_of(session, [names.job_id])).get(names.job_id, ())
            self._names = names = replace(names, step_ids=names.step_ids | {s.id for s in steps})
        if place is None or place.upto > head:  # the ids have started again lower: all rows are new
            place = Place(await _first(queries, session, names) - 1)
        self._last = head if names.ended is None else await _last(queries, session, names, head)
        if place.holes or max(self._last, place.upto) > head - MAX_SPAN:
            self._floor = max(head - MAX_SPAN, await _recent(queries, session, head))
        else:
            self._floor = head
        place = place.forget(self._floor)
        self._to_revisit = sorted(place.holes)
        return place

    async def step(self, place: Place, queries: Queries, session: Session) -> Place:
        """Read one slice of ids: first those that were missing before, then new ones."""
        if self._to_revisit:
            return await self._revisit(place, queries, session)
        first = place.upto + 1
        size = self._slices.size if first <= self._floor else min(SPAN, self._slices.size)
        last = min(self._last, first + size - 1)
        if first <= self._floor < last:
            last = self._floor
        if first > last:
            self.full = True
            return place
        with self._slices.timed():
            # The ids first: a row that becomes visible between the two queries is read and is not a hole.
            visible = await queries.ids_in(session, [(first, last)]) if last > self._floor else []
            seen_to, read_ids = await self._read(queries, session, searches.within(first, last), last)
        self.full = self.full or seen_to >= self._last
        missing = set(range(max(first, self._floor + 1), seen_to + 1)).difference(visible, read_ids)
        return place.advance(seen_to, missing)

    def page(self, place: Place) -> LinesPage:
        """The page, with `place` encoded for the next one."""
        over = not self._to_revisit and place.upto >= self._last
        ended = over and self._names.ended is not None and not self._lines
        lines = sorted(self._lines, key=lambda line: (line.at, line.event_id))
        return LinesPage(lines, None if ended else place.encode(), more=not over)

    async def _revisit(self, place: Place, queries: Queries, session: Session) -> Place:
        first = self._to_revisit[0]
        span = [i for i in self._to_revisit[:SPAN] if i < first + SPAN]
        there = sorted(set(span).intersection(await queries.ids_in(session, [(first, span[-1])])))
        seen_to = span[-1]
        read_ids: list[int] = []
        for part in chunks(there):
            seen_to, more = await self._read(queries, session, searches.among(part), part[-1])
            read_ids += more
            if self.full:
                break
        else:
            seen_to = span[-1]
        self._to_revisit = [i for i in self._to_revisit if i > seen_to]
        return place.settle(i for i in there if i <= seen_to)

    async def _read(self, queries: Queries, session: Session, where: str, last: int) -> tuple[int, list[int]]:
        """Read rows of the job that match `where` until the page is full: (id up to which all was read, their ids)."""
        read_ids: list[int] = []
        above = ""
        while True:
            most = min(self._limit - len(self._lines), IN_ONE)
            sizes = await searches.sizes_of(queries, session, self._names, where + above, most, self._levels)
            fitting = self._fitting(sizes)
            rows = {row.id: row for row in await queries.rows_in(session, fitting)} if fitting else {}
            await self._append(rows[i] for i in fitting if i in rows)
            read_ids += fitting
            if len(fitting) < len(sizes):
                self.full = True
                return sizes[len(fitting)][0] - 1, read_ids
            if len(self._lines) >= self._limit:
                self.full = True
                return fitting[-1], read_ids
            if len(sizes) < most:
                return last, read_ids
            above = f" AND id > {fitting[-1]}"

    def _fitting(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """The first ids whose rows fit into the page; at least one if the page is empty."""
        fitting: list[int] = []
        for event_id, size in sizes:
            if self._bytes + size > MAX_BYTES and (self._lines or fitting):
                break
            self._bytes += size
            fitting.append(event_id)
        return fitting

    async def _append(self, rows: Iterable[LogRow]) -> None:
        parsed = 0
        for row in rows:
            entry = joblog.read(row, 0, self._keys)[0]
            if _belongs(entry, self._names):
                attrs = joblog.attrs_value(row.attrs)
                self._lines.append(LogLine(row.id, entry.level, row.message, entry.step_id, attrs, row.ts))
            parsed += len(row.attrs or "")
            if parsed > PARSED_AT_ONCE:
                parsed = 0
                await asyncio.sleep(0)


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
    """The id up to which no row is committed any more."""
    newest = await queries.rows_from(session, head, 1)
    return await queries.first_since(session, newest[0].ts - LATE_FOR) - 1 if newest else head


def _belongs(entry: Entry, names: JobNames) -> bool:
    """True if the row belongs to the job, by the rule of `Index`: by job ID, else by step, else by external ID."""
    if entry.job_id is not None:
        return entry.job_id == names.job_id
    if entry.step_id is not None:
        return entry.step_id in names.step_ids
    return bool(entry.external_ids) and entry.external_ids[0] in names.external_ids
