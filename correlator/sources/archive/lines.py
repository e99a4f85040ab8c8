"""The log lines of one job from the database, also those whose row names the job only in its attrs.

No index leads to nine in ten rows of a job, so ranges of the primary key are read: from just before the job's first row
to just after its last. Ids grow with time, except for the few seconds that rows wait for their commit. A job may have
millions of rows: one step reads one slice of ids, and the caller decides how many make a page.

`Reader` reads forward, and its place stores the ids that were not visible, so that pages miss and repeat nothing.
`BackwardPage` reads back from an id, for a client that shows the end of a log or the lines around one.
"""

from __future__ import annotations

from msgspec.structs import replace

from correlator.jobs.model.rows import Micros
from correlator.pipeline.queries import EarlierLines, JobNames, LinesPage
from correlator.sources.archive.collector import Collector
from correlator.sources.archive.pages import MAX_SPAN, Place
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session, chunks
from correlator.sources.search import searches
from correlator.sources.search.slices import Slices

BEFORE = 60_000_000
AFTER = 120_000_000
"""Microseconds before the begin and after the end of a job within which its rows get ids: JobLog writes in batches."""

REPEATED = 3_600_000_000
"""Microseconds by which local time may be off in the hour that the end of daylight saving time repeats."""

LATE_FOR = 600_000_000
"""Microseconds for which a missing id may still appear."""

SPAN = 2_000
"""Ids in one slice near the head of the log, where the place stores each missing id."""


class Reader:
    """Reads one page: `begin` once, `step` until `full`, then `page`. `begin` and `step` are one question each."""

    def __init__(self, collector: Collector, slices: Slices) -> None:
        self._collector = collector
        self._slices = slices
        self._floor = 0
        self._last = 0
        self._to_revisit: list[int] = []
        """Ids that were not visible at an earlier page and may be now; ascending."""

    @property
    def full(self) -> bool:
        """True if the page is full, or there is nothing more to read now."""
        return self._collector.full

    @property
    def revisits(self) -> bool:
        """True if the next step reads ids that were missing before. At most `MAX_SPAN` / `SPAN` steps do."""
        return bool(self._to_revisit)

    async def begin(self, place: Place | int | None, queries: Queries, session: Session) -> Place:
        """Find the range of ids to read, and return the place to start from. `place`: a number is the first id."""
        names, head = await _prepared(self._collector, queries, session)
        if isinstance(place, int):
            first = await _first(queries, session, names, self._collector.query.since)
            place = Place(min(max(place, first) - 1, head))
        if place is None or place.upto > head:  # the ids have started again lower: all rows are new
            place = Place(await _first(queries, session, names, self._collector.query.since) - 1)
        self._last = await _last(queries, session, names, head)
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
            self._collector.full = True
            return place
        with self._slices.timed():
            # The ids first: a row that becomes visible between the two queries is read and is not a hole.
            visible = await queries.ids_in(session, [(first, last)]) if last > self._floor else []
            seen_to, read_ids = await self._collector.read(queries, session, searches.within(first, last), last)
        self._collector.full = self.full or seen_to >= self._last
        missing = set(range(max(first, self._floor + 1), seen_to + 1)).difference(visible, read_ids)
        return place.advance(seen_to, missing)

    def page(self, place: Place) -> LinesPage:
        """The page, with `place` encoded for the next one."""
        over = not self._to_revisit and place.upto >= self._last
        lines = self._collector.in_order()
        ended = over and self._collector.names.ended is not None and not lines
        return LinesPage(lines, None if ended else place.encode(), more=not over)

    async def _revisit(self, place: Place, queries: Queries, session: Session) -> Place:
        first = self._to_revisit[0]
        # At most SPAN ids between the missing ones: of an empty range, however long it is, one query.
        span = [i for number, i in enumerate(self._to_revisit) if i - first - number < SPAN]
        there = sorted(set(span).intersection(await queries.ids_in(session, [(first, span[-1])])))
        seen_to = span[-1]
        read_ids: list[int] = []
        for part in chunks(there):
            seen_to, more = await self._collector.read(queries, session, searches.among(part), part[-1])
            read_ids += more
            if self.full:
                break
        else:
            seen_to = span[-1]
        self._to_revisit = [i for i in self._to_revisit if i > seen_to]
        return place.settle(i for i in there if i <= seen_to)


class BackwardPage:
    """Reads one page back from an id: `begin` once, `step` until `full`, then `result`."""

    def __init__(self, collector: Collector, slices: Slices) -> None:
        self._collector = collector
        self._slices = slices
        self._first = 1

    @property
    def full(self) -> bool:
        """True if the page is full, or the begin of the log is reached."""
        return self._collector.full

    async def begin(self, before: int, queries: Queries, session: Session) -> int:
        """Find the range of ids to read, and return the id below which to start."""
        names, head = await _prepared(self._collector, queries, session)
        self._first = await _first(queries, session, names, self._collector.query.since)
        return min(before, await _last(queries, session, names, head) + 1)

    async def step(self, before: int, queries: Queries, session: Session) -> int:
        """Read one slice of the ids below `before`, and return the id from which on all has been read."""
        first = max(self._first, before - self._slices.size)
        if first >= before:
            self._collector.full = True
            return before
        with self._slices.timed():
            where = searches.within(first, before - 1)
            reached, _ = await self._collector.read(queries, session, where, first, back=True)
        self._collector.full = self.full or reached <= self._first
        return reached

    def result(self, before: int) -> EarlierLines:
        """The page. `before`: what the last step returned."""
        return EarlierLines(self._collector.in_order(), before if before > self._first else None)


async def _prepared(collector: Collector, queries: Queries, session: Session) -> tuple[JobNames, int]:
    """The names of the job with its steps as of now, which the collector gets too, and the newest id of the log."""
    names, head = collector.names, await queries.last_id(session)
    if queries.schema.has("job_steps", "id", "job_id"):  # a step may be newer than what is in memory
        steps = (await queries.steps_of(session, {names.job_id: None})).get(names.job_id, ())
        collector.names = names = replace(names, step_ids=names.step_ids | {s.id for s in steps})
    return names, head


async def _first(queries: Queries, session: Session, names: JobNames, since: Micros | None) -> int:
    """An id at or before the job's first row from `since` on."""
    back = BEFORE + (REPEATED if queries.schema.is_local("log_events", "ts") else 0)
    if since is not None and since > names.started:
        return await queries.first_since(session, since - back)
    first = await queries.first_since(session, names.started - back)
    known = await queries.id_bounds(session, names.job_id)
    return min(first, known[0]) if known is not None else first


async def _last(queries: Queries, session: Session, names: JobNames, head: int) -> int:
    """An id at or after the job's last row."""
    if names.ended is None:
        return head
    last = await queries.first_since(session, names.ended + AFTER)
    known = await queries.id_bounds(session, names.job_id)
    return min(head, max(last, known[1] if known is not None else 0))


async def _recent(queries: Queries, session: Session, head: int) -> int:
    """The id up to which no row is committed any more."""
    newest = await queries.rows_from(session, head, 1)
    return await queries.first_since(session, newest[0].ts - LATE_FOR) - 1 if newest else head
