"""Log lines from the database: those of one job, also where a row names the job only in its attrs, and those of any.

No index leads to nine in ten rows of a job, so ranges of the primary key are read: from just before the job's first row
to just after its last, which `LogTimes` finds although the clock of the log may have been set back meanwhile. A job may
have millions of rows: one step reads one slice of ids, and the caller decides how many make a page.

`ForwardPage` reads forward. Ids become visible out of order, so its place is not only an id: it has the ids below that
were not visible, and every later page reads those again, for as long as a transaction may live. So pages miss and
repeat nothing. `backward_page` reads back from an id, for a client that shows the end of a log or the lines around one.

`FoundPage` reads back through the rows of all jobs, for those that contain a text: no index leads to any of them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from correlator.errors import Away, BadRequest, SourceUnavailable
from correlator.jobs import encoding, fold, joblog
from correlator.jobs.directory import OwnIds
from correlator.model.facts import Entry
from correlator.model.published import FoundLine, LogLine
from correlator.model.rows import Int64, LogRow, Micros
from correlator.pipeline.queries import JobNames, LineQuery, LinesFound, LinesPage
from correlator.sources.db import searches
from correlator.sources.db.log_times import AskLog, IdSpan, LogTimes
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import IN_ONE, Range, Session
from correlator.sources.db.slices import AIM, Budget, Slices
from correlator.sources.search import Ask

MAX_SPAN = 50_000
"""Ids below the newest among which missing ones are still read again."""

MAX_TEXT = 3_000
"""Most characters of an encoded place: it has to fit in a URL."""

_VERSION = 1

MAX_BYTES = 4 << 20
"""Most bytes of messages and attrs in one page; a single row may exceed it."""

CANDIDATES = 200
"""Rows that are read at once, however few lines are missing, where the conditions of the database match too many."""

PARSED_AT_ONCE = 256 * 1024
"""Bytes of attrs that are parsed before other tasks run."""

BEFORE = 60_000_000
AFTER = 120_000_000
"""Microseconds before the begin and after the end of a job within which its rows get ids: JobLog writes in batches."""

LATE_FOR = 600.0
"""Seconds for which a missing id may still appear."""

MAX_HEADS = 61
"""Times at which the newest id is noted, evenly over `LATE_FOR`."""

REST_SHARE = 0.25
"""Seconds of rest after each second of a search for text in the log: it uses four fifths of a core of the server."""

SPAN = 2_000
"""Ids in one slice near the head of the log, where the place stores each missing id."""


class LinePlace(Struct, frozen=True):
    """Everything up to `upto` has been read except `holes`: ids that were not visible then."""

    upto: int
    holes: frozenset[int] = frozenset()

    def advance(self, seen_to: int, missing: Iterable[int]) -> LinePlace:
        """The place after everything up to `seen_to` has been read except the ids that were `missing`."""
        return LinePlace(max(self.upto, seen_to), self.holes.union(missing))

    def settle(self, found: Iterable[int]) -> LinePlace:
        """The place after the rows of some holes have been read."""
        return LinePlace(self.upto, self.holes.difference(found))

    def forget(self, floor: int) -> LinePlace:
        """The place without holes up to `floor`: no transaction commits there any more."""
        return LinePlace(self.upto, frozenset(i for i in self.holes if i > floor))

    def encode(self) -> str:
        """The place as text for a URL. If there are too many holes, the oldest are given up."""
        holes = sorted(self.holes)
        while len(text := _encode(self.upto, holes)) > MAX_TEXT:
            holes = holes[len(holes) // 2 :]
        return text


class JobSpan(Struct, frozen=True):
    """The ids among which the rows of a job are, as far as its times and those of the log say.

    `first`: of a row from its begin on, and from the time on that the client asks for, if it asks for one (`since`).
    `last`: None if the job runs, or its end may be the newest row. `reason`: why others may have rows too.
    """

    first: int = 1
    since: int = 1
    last: int | None = None
    reason: str | None = None


async def job_span(times: LogTimes, ask: AskLog, names: JobNames, since: Micros | None, within: float) -> JobSpan:
    """Find where the rows of a job are, in about `within` seconds."""
    began = names.started - BEFORE if names.started else None
    of_job = await times.span(ask, began, names.ended + AFTER if names.ended is not None else None, within)
    later = await times.span(ask, since, None, within) if since is not None else of_job
    reason = None
    if not (of_job.certain and later.certain):
        known = min(of_job.known, later.known)
        reason = (
            f"the log is long, and the times of {known:.0%} of its rows are known so far: if its clock was set back,"
            " lines are missing here. Repeat the request in some seconds"
        )
    return JobSpan(of_job.first, later.first if since is not None else 1, of_job.last, reason)


class Heads:
    """The newest ids of the log at some times, by which an id is settled: no row is committed at it any more.

    The times of rows say nothing about how long ago they were written: a clock may have been set.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=MAX_HEADS)

    def settled(self, head: int) -> int:
        """Note the newest id of now, and return the highest that was there `LATE_FOR` seconds ago."""
        now = time.monotonic()
        if self._seen and head < self._seen[-1][1]:  # the ids have started again lower
            self._seen.clear()
        while len(self._seen) > 1 and now - self._seen[1][0] >= LATE_FOR:
            self._seen.popleft()
        if not self._seen or now - self._seen[-1][0] >= LATE_FOR / (MAX_HEADS - 1):
            self._seen.append((now, head))
        at, settled = self._seen[0]
        return max(head - MAX_SPAN, settled if now - at >= LATE_FOR else 0)


class ForwardPage:
    """Reads one page, by one question for each slice of ids."""

    def __init__(self, matching: MatchingLines, slices: Slices, heads: Heads, span: JobSpan) -> None:
        self._matching = matching
        self._slices = slices
        self._heads = heads
        self._span = span
        self._floor = 0
        self._last = 0
        self._to_revisit: list[int] = []
        """Ids that were not visible at an earlier page and may be now; ascending."""

    async def read(self, ask: Ask, start: LinePlace | int | None, budget: Budget) -> LinesPage:
        """Read from `start` on; a number is the first id. What was missing is read whether there is time or not."""
        place = await ask(partial(self._begin, start))
        while not self._matching.full and (self._to_revisit or (place.upto < self._last and budget.allows())):
            place = await ask(partial(self._step, place))
        over = not self._to_revisit and place.upto >= self._last
        lines = self._matching.in_order()
        names = self._matching.names
        ended = over and names is not None and names.ended is not None and not lines
        return LinesPage(lines, None if ended else place.encode(), not over, reason=self._span.reason)

    async def _begin(self, place: LinePlace | int | None, queries: Queries, session: Session) -> LinePlace:
        """Find the range of ids to read, and return the place to start from."""
        bounds, head = await self._matching.prepare(self._span, queries, session)
        if isinstance(place, int):
            place = LinePlace(min(max(place, bounds[0]) - 1, head))
        if place is None or place.upto > head:  # the ids have started again lower: all rows are new
            place = LinePlace(bounds[0] - 1)
        self._last = bounds[1]
        settled = self._heads.settled(head)
        self._floor = settled if place.holes or max(self._last, place.upto) > head - MAX_SPAN else head
        place = place.forget(self._floor)
        self._to_revisit = sorted(place.holes)
        return place

    async def _step(self, place: LinePlace, queries: Queries, session: Session) -> LinePlace:
        """Read one slice of ids: first those that were missing before, then new ones."""
        if self._to_revisit:
            return await self._revisit(place, queries, session)
        first = place.upto + 1
        size = self._slices.size if first <= self._floor else min(SPAN, self._slices.size)
        last = min(self._last, first + size - 1)
        if first <= self._floor < last:
            last = self._floor
        with self._slices.timed():
            # The ids first: a row that becomes visible between the two queries is read and is not a hole.
            visible = await queries.ids_in(session, [(first, last)]) if last > self._floor else []
            seen_to, read_ids = await self._matching.read(queries, session, searches.within(first, last), last)
        missing = set(range(max(first, self._floor + 1), seen_to + 1)).difference(visible, read_ids)
        return place.advance(seen_to, missing)

    async def _revisit(self, place: LinePlace, queries: Queries, session: Session) -> LinePlace:
        first = self._to_revisit[0]
        # At most SPAN ids between the missing ones: of an empty range, however long it is, one query.
        span = [i for number, i in enumerate(self._to_revisit) if i - first - number < SPAN]
        there = sorted(set(span).intersection(await queries.ids_in(session, [(first, span[-1])])))
        seen_to = span[-1] if len(there) <= IN_ONE else there[IN_ONE - 1]
        if part := there[:IN_ONE]:
            seen_to, _ = await self._matching.read(queries, session, searches.among(part), seen_to)
        self._to_revisit = [i for i in self._to_revisit if i > seen_to]
        return place.settle(i for i in there if i <= seen_to)


async def backward_page(
    ask: Ask, matching: MatchingLines, slices: Slices, span: JobSpan, before: int, budget: Budget
) -> LinesPage:
    """Read one page back from the id `before`, by one question for each slice of ids."""

    async def begin(queries: Queries, session: Session) -> tuple[int, int]:
        (first, last), _ = await matching.prepare(span, queries, session)
        return first, min(before, last + 1)

    async def step(place: int, queries: Queries, session: Session) -> int:
        lowest = max(first, place - slices.size)
        with slices.timed():
            where = searches.within(lowest, place - 1)
            reached, _ = await matching.read(queries, session, where, lowest, back=True)
        return reached

    first, place = await ask(begin)
    while place > first and not matching.full and budget.allows():
        place = await ask(partial(step, place))
    more = place > first
    return LinesPage(matching.in_order(), None, more, place if more else None, span.reason)


class FoundPage:
    """Reads lines of any job, the newest first, by one question for each slice of ids."""

    def __init__(
        self, query: LineQuery, limit: int, slices: Slices, times: LogTimes, span: IdSpan, id_keys: Sequence[str]
    ) -> None:
        self._matching = MatchingLines(None, limit, query, id_keys)
        self._slices = slices
        self._times = times
        self._span = span
        self._first = span.first if span.certain else span.known_from
        self._last = 0
        self._round_trip = 0.0
        """Seconds of the last query that asked for an id."""
        self._maybe_empty = True
        """True if the next ids may be many that no row has: the slice before them took little time."""

    async def read(self, ask: Ask, before: int | None, budget: Budget, searching: asyncio.Lock) -> LinesFound:
        """Read the lines below the id `before`. All searches share one time by a lock: others go on meanwhile.

        A slice that the server has ended as it took too long is searched again in smaller ones.
        """
        reached = await ask(partial(self._begin, before))
        while reached > self._first and not self._matching.full and budget.allows():
            async with searching:
                began, size = time.monotonic(), self._slices.size
                try:
                    reached = await ask(partial(self._step, reached))
                except SourceUnavailable as error:
                    if error.reason is not Away.SLOW or self._slices.size >= size:
                        raise
                await asyncio.sleep((time.monotonic() - began) * REST_SHARE)
        return await ask(partial(self._page, reached))

    async def _begin(self, before: int | None, queries: Queries, session: Session) -> int:
        """Find the range of ids to read, and return the id below which to start."""
        head = await queries.last_id(session)
        self._last = head if self._span.last is None else min(head, self._span.last)
        return self._last + 1 if before is None else min(before, self._last + 1)

    async def _step(self, before: int, queries: Queries, session: Session) -> int:
        """Search one slice of the ids below `before`, and return the id from which on all has been searched."""
        before = self._times.last_below(before, self._span) + 1
        last = await self._last_below(before, queries, session) if self._maybe_empty else before - 1
        if last < self._first:
            return self._first
        began = time.monotonic()
        with self._slices.timed():
            first = max(self._first, last + 1 - self._slices.size)
            where = searches.within(first, last)
            reached, _ = await self._matching.read(queries, session, where, first, back=True)
        self._maybe_empty = time.monotonic() - began < max(AIM / 2, 2 * self._round_trip)
        if reached > first:  # more rows match than one step reads: the next slice would be searched in vain as well
            self._slices.shrink(last + 1 - reached)
        return reached

    async def _last_below(self, before: int, queries: Queries, session: Session) -> int:
        """The last id below `before`. It is found at once, so it shows how far the database is away."""
        asked = time.monotonic()
        last = await queries.last_id(session, before)
        self._round_trip = time.monotonic() - asked
        return last

    async def _page(self, before: int, queries: Queries, session: Session) -> LinesFound:
        """The page. `before`: what the last step returned."""
        lines = await self._named(queries, session)
        if before <= self._first and self._span.certain:
            return LinesFound(lines)
        first = self._first if self._span.certain else 1
        oldest = await queries.light_rows_from(session, before, 1, after=0)
        at = oldest[0].ts or None if oldest else None
        return LinesFound(lines, {"": before}, (self._last + 1 - before) / (self._last + 1 - first), at)

    async def _named(self, queries: Queries, session: Session) -> list[FoundLine]:
        """The lines, newest first, with what names their jobs: a row may name its step alone, or an external ID."""
        lines = [line for line in self._matching.in_order() if isinstance(line, FoundLine)]
        steps = await queries.jobs_of_steps(session, {n.step_id for n in lines if n.step_id and n.job_id is None})
        owners = [line.job_id or steps.get(line.step_id or 0, "") for line in lines]
        known = queries.schema.has("job_tracking", "id")
        records = await queries.jobs_by_id(session, set(filter(None, owners))) if known else {}
        own, found = OwnIds(records), list[FoundLine]()
        for line, owner in zip(lines, owners, strict=True):
            if (record := records.get(own.of(owner))) is not None:
                name = fold.vm_name(record) or None
                found.append(replace(line, job_id=record.job_id, vm_name=name, operation=record.operation))
            else:
                found.append(replace(line, job_id=self._matching.external.get(line.event_id)))
        return found[::-1]


class MatchingLines:
    """Collects at most `limit` lines of the job with `names`; None: of any job, as `FoundLine` with its own ID.

    `full`: the page has no room. `external`: by event ID, the external ID by which a row of any job names it, where it
    does not otherwise.
    """

    def __init__(self, names: JobNames | None, limit: int, query: LineQuery, id_keys: Sequence[str]) -> None:
        self.names = names
        self.query = query
        self.full = False
        self.external: dict[int, str] = {}
        self._limit = limit
        self._keys = id_keys
        self._lines: list[LogLine] = []
        self._bytes = 0
        self._fewest = CANDIDATES if query.texts else 1

    async def prepare(self, span: JobSpan, queries: Queries, session: Session) -> tuple[Range, int]:
        """Read the steps of the job as they are now, and its rows that an index finds.

        Returns the first and the last id to read, and the newest id of the log.
        """
        assert self.names is not None
        head = await queries.last_id(session)
        if queries.schema.has("job_steps", "id", "job_id"):  # a step may be newer than what is in memory
            steps = (await queries.steps_of(session, {self.names.job_id: None})).get(self.names.job_id, ())
            self.names = replace(self.names, step_ids=self.names.step_ids | {s.id for s in steps})
        first, last = span.first, head if span.last is None else min(head, span.last)
        if (indexed := await queries.id_bounds(session, self.names.job_id)) is not None:
            first, last = min(first, indexed[0]), max(last, indexed[1])
        return (max(first, span.since), last), head

    def in_order(self) -> list[LogLine]:
        """The lines in the order of time."""
        return sorted(self._lines, key=lambda line: (line.at, line.event_id))

    async def read(
        self, queries: Queries, session: Session, where: str, last: int, *, back: bool = False
    ) -> tuple[int, list[int]]:
        """Read the first rows that match `where`: (id up to which all was read, the ids read). It adds them at the end.

        `last`: the last id of `where`. With `back` the highest ids are read first, and `last` is the lowest.
        """
        began = self.names.started if self.names is not None else 0
        order, one = ("DESC", -1) if back else ("ASC", 1)
        most = min(max(self._limit - len(self._lines), self._fewest), IN_ONE)
        sizes = await searches.sizes_of(queries, session, self.names, self.query, where, most, order)
        fitting = self._fitting(sizes)
        rows = {row.id: row for row in await queries.past_rows_in(session, fitting, began)} if fitting else {}
        self._bytes += sum(size for _, size in sizes[: len(fitting)])
        checked = await self._append(fitting, rows)
        if len(self._lines) >= self._limit:
            self.full = True
            return checked[-1], checked
        if len(fitting) < len(sizes):
            self.full = True
            return sizes[len(fitting)][0] - one, fitting
        return fitting[-1] if len(sizes) == most else last, fitting

    def _fitting(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """The first ids whose rows fit into the page; at least one if the page is empty."""
        fitting, used = list[int](), self._bytes
        for event_id, size in sizes:
            used += size
            if used > MAX_BYTES and (self._lines or fitting):
                break
            fitting.append(event_id)
        return fitting

    async def _append(self, ids: list[int], rows: Mapping[int, LogRow]) -> list[int]:
        """Add the lines of `ids` until there are `limit`. Returns the ids that were checked."""
        parsed = 0
        for number, event_id in enumerate(ids, 1):
            if (row := rows.get(event_id)) is None:
                continue
            entry = joblog.read(row, 0, self._keys)[0]
            attrs = joblog.attrs_value(row.attrs)
            if self._belongs(entry) and self._matches(entry, attrs):
                self._lines.append(self._line(row, entry, attrs))
                if len(self._lines) >= self._limit:
                    return ids[:number]
            else:
                self._fewest = CANDIDATES
            parsed += len(row.attrs or "")
            if parsed > PARSED_AT_ONCE:
                parsed = 0
                await asyncio.sleep(0)
        return ids

    def _matches(self, entry: Entry, attrs: Any) -> bool:
        """What the database's conditions leave to compare: the step that attrs name, the time, and the exact text."""
        query = self.query
        if query.steps and entry.step_id not in query.steps:
            return False
        if (query.since is not None and entry.at < query.since) or (
            query.until is not None and entry.at >= query.until
        ):
            return False
        return all(_contains(entry.message, text) or attrs_contain(attrs, text) for text in query.texts)

    def _belongs(self, entry: Entry) -> bool:
        """True if the row is of the job, as in `Index`: by job ID in any case, else by step, else by external ID."""
        if (names := self.names) is None:
            return True
        if entry.job_id is not None:
            return entry.job_id.casefold() == names.job_id.casefold()
        if entry.step_id is not None:
            return entry.step_id in names.step_ids
        return bool(entry.external_ids) and entry.external_ids[0] in names.external_ids

    def _line(self, row: LogRow, entry: Entry, attrs: Any) -> LogLine:
        if self.names is not None:
            return LogLine(row.id, entry.level, row.message, entry.step_id, attrs, row.ts)
        if entry.job_id is None and entry.step_id is None and entry.external_ids:
            self.external[row.id] = entry.external_ids[0]
        return FoundLine(row.id, entry.level, row.message, entry.step_id, attrs, row.ts, entry.job_id)


def decode_place(text: str) -> LinePlace:
    """The place that `encode` encoded. Raises `BadRequest` for any other text."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, upto, first, packed = msgspec.msgpack.decode(raw, type=tuple[int, Int64, Int64, bytes])
        bits = zlib.decompressobj().decompress(packed, MAX_SPAN // 8 + 1) if packed else b""
    except (ValueError, binascii.Error, msgspec.MsgspecError, zlib.error) as error:
        raise BadRequest("after: expected the next_after of the page before, as it was given") from error
    if version != _VERSION or min(upto, first) < 0:
        raise BadRequest("after: this next_after is from another version; begin without it")
    holes = frozenset(first + 8 * i + b for i, byte in enumerate(bits) if byte for b in range(8) if byte >> b & 1)
    return LinePlace(upto, holes)


def _encode(upto: int, holes: Sequence[int]) -> str:
    first = holes[0] if holes else 0
    bits = bytearray((holes[-1] - first) // 8 + 1) if holes else bytearray()
    for i in holes:
        bits[(i - first) // 8] |= 1 << (i - first) % 8
    packed = zlib.compress(bytes(bits), 9) if bits else b""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((_VERSION, upto, first, packed))).decode().rstrip("=")


def _contains(text: str, part: str) -> bool:
    return part.lower() in text.lower()


def attrs_contain(attrs: Any, text: str) -> bool:
    """True if a name or a value in `attrs` contains `text`, as one part of their JSON."""
    if isinstance(attrs, str):  # They are no JSON.
        return _contains(attrs, text)
    return attrs is not None and _contains(encoding.encode(attrs).decode(), encoding.encode(text).decode()[1:-1])
