"""The tail of log_events: it emits every committed row once, whatever the order in which ids become visible.

The problem: log_events has no commit order. Rows are found by their AUTO_INCREMENT ids, which become visible in any
order, may never become visible, and start again lower after TRUNCATE, a restored backup or a crash of the server.

The model: the head is the highest id that has been read. `follow` reads the rows from the head on; ids that they skip
become windows of `Gaps`. `watch` probes these windows with dirty reads, and reads the rows that turn out to exist with
READ COMMITTED. `read_past` reads the rows from before a first start (`Past`). `watch_for_reset`, and a check of the row
at the head in every read, detect ids that have started again; `begin` then finds the newest row that was read
(`ResetMarkers`). Rows that went away and come back are no news (`ReadRows`). All of them are tasks of one event loop; a
batch is applied between two awaits.

Invariants: a dirty read is evidence and never published. `Gaps` decides alone whether an id is emitted, so two tasks
never emit the same row. The position changes only together with the rows that it covers, so that a checkpoint taken at
any time is consistent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from msgspec.structs import replace

from correlator.bounded import chunks
from correlator.errors import SourceUnavailable
from correlator.jobs import joblog
from correlator.model.persisted import Cursor
from correlator.model.published import Outcome
from correlator.model.rows import LogRow, Micros
from correlator.ops import metrics
from correlator.pipeline.source_status import SourcePart
from correlator.sources import Feed
from correlator.sources.db.queries import HEAVY, MESSAGE_COMPARED, Queries
from correlator.sources.db.session import IN_ONE, Database, Range, Session
from correlator.sources.doorbell import DoorbellRetry
from correlator.sources.gaps import Gaps, Probe, Window
from correlator.sources.reset_markers import RECENT, Mark, ReadRows, ResetMarkers, mark_of, same
from correlator.tasks import set_within, until_next


class LogReset(Exception):
    """The log is not as it was read: TRUNCATE, a restored backup, a crash of the server, times that were rewritten."""


# -- light readings, and the rows of a statement


SLICE_BYTES = 1 << 20
SLICE_ROWS = 250
"""Most bytes and most rows of one part; a single row may exceed the bytes."""

ReadWhole: TypeAlias = Callable[[Session, Sequence[int]], Awaitable[Sequence[LogRow]]]
"""Reads the rows of these ids as a whole, as `Queries.rows_in` does."""

SMALLEST = 2
"""Fewest rows per read. For the tail, the row at the head is one of them."""


async def slices(read_whole: ReadWhole, session: Session, rows: Sequence[LogRow]) -> AsyncIterator[Sequence[LogRow]]:
    """Read the `rows` of a light reading as a whole, in parts that are each small enough for one call of the feed.

    A row may hold 1 MB, and its size is not known before it is read. So the statement that reads a thousand rows omits
    long texts and returns their sizes: a light reading, in which a message or attrs has at most `HEAVY` bytes. Here the
    heavy rows are read as a whole, a few at a time; the caller processes and drops each part before the next is read.
    """
    part: list[LogRow] = []
    room = SLICE_BYTES
    heavy: list[int] = []
    for row in rows:
        attrs = row.attrs or ""
        size = len(row.message) + len(attrs)
        is_heavy = attrs[:1] == joblog.TOO_LONG
        if is_heavy:
            size = min(_marked(attrs), joblog.MAX_ATTRS) + HEAVY
        if part and (size > room or len(part) >= SLICE_ROWS):
            yield await _whole(read_whole, session, part, heavy)
            part, heavy, room = [], [], SLICE_BYTES
        part.append(row)
        room -= size
        if is_heavy:
            heavy.append(row.id)
    if part:
        yield await _whole(read_whole, session, part, heavy)


async def _whole(read_whole: ReadWhole, session: Session, part: list[LogRow], heavy: list[int]) -> list[LogRow]:
    if not heavy:
        return part
    found = {row.id: row for row in await read_whole(session, heavy)}
    # A row that has been deleted meanwhile stays as the light reading returned it.
    gone = {i: replace(row, attrs=None) for row in part if (i := row.id) in heavy and i not in found}
    return [replace(found[r.id], ts=r.ts) if r.id in found else gone.get(r.id, r) for r in part]


def _marked(attrs: str) -> int:
    size = attrs[len(joblog.TOO_LONG) :]
    return int(size) if joblog.is_count(size) else 0


@dataclass(slots=True)
class BatchSize:
    """`rows` per read, at most `most`: what the database can send before its deadline. Rows may have 1 MB each.

    A read is a `with` block. One of less than `quick` seconds doubles the next, one that the database fails halves it.
    """

    most: int = 1000
    quick: float = 1.0
    rows: int = field(init=False)
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.most

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, SourceUnavailable):
            self.rows = max(SMALLEST, self.rows // 2)
        elif time.monotonic() - self._began < self.quick:
            self.rows = min(self.most, self.rows * 2)


# -- the past


WATCHED = 50_000
"""Ids below the newest of the past among which missing ones are still probed."""

BETWEEN_SHOWS = 0.02
"""Seconds to wait at most after a call of `Feed.show_past`, which publishes some hundred jobs. A call that took less
time is followed by a wait of the same length: other tasks get half of the time, and 20,000 jobs wait no longer
than they need.
"""

Miss = Callable[[int, Sequence[int], int], None]
"""(after, ids, last): of the ids above `after` and up to `last`, only `ids` were visible."""


@dataclass(slots=True)
class Past:
    """The past of the log: the rows that existed when the tables were first read. They are read while the tail follows.

    A first start begins at the newest row, so that new rows never wait for old ones. The past is read in order, in
    small parts, on a session of its own, and only while the tail has nothing to catch up with. It has the ids above
    `before` and up to `last`; `at` is the highest that has been read. Every id of it is in exactly one of read, still
    to be read, and missing. Missing ids above `floor` become windows of `Gaps`, as their rows may be committed late;
    older ones are given up at once.
    """

    before: int
    at: int
    last: int
    floor: int
    _newest: Micros = field(default=0)

    @classmethod
    def between(cls, before: int, last: int) -> Past:
        """A past of which nothing has been read yet."""
        last = max(before, last)
        return cls(before, before, last, max(before, last - WATCHED))

    def cut(self, last: int) -> None:
        """End the past at `last`: ids above it are new again."""
        self.last = min(self.last, last)
        self.at = min(self.at, last)

    def kept(self) -> tuple[int, int, int, int]:
        """The position for the checkpoint: `Past(*kept)` restores it."""
        return self.before, self.at, self.last, self.floor

    async def read(
        self,
        queries: Queries,
        session: Session,
        apply: Callable[[Sequence[LogRow]], None],
        miss: Miss,
        turn: Callable[[], Awaitable[None]],
        batch: BatchSize,
    ) -> None:
        """Read to the end of the past.

        Args:
            apply: Gets the rows of each part.
            miss: Gets the ids that were missing.
            turn: Returns when the tail has nothing to catch up with.
            batch: Rows per read.

        Raises:
            SourceUnavailable: The database failed. The position stays, and nothing is read twice.
        """
        while self.at < self.last:
            await turn()
            last, limit = self.last, batch.rows
            with batch:
                found = await queries.light_rows_from(session, self.at + 1, limit, last=last, after=self._newest)
            async for rows in slices(queries.rows_in, session, found):
                apply(rows)
                self._passed([r.id for r in rows], rows[-1].id, miss)
                self._newest = rows[-1].ts
                await turn()
            if len(found) < limit:
                self._passed([], last, miss)

    def _passed(self, ids: Sequence[int], upto: int, miss: Miss) -> None:
        after = max(self.at, self.floor)
        if upto > after:
            miss(after, [i for i in ids if i > after], upto)
        self.at = max(self.at, upto)


# -- the tail


log = logging.getLogger(__name__)

Note = Callable[[Outcome], None]
"""Gets the outcome of each batch that was applied to the index."""

MAX_UNLOADED = 200
LOADED_WITHIN = 10.0
"""Pending rows above which a catch-up pauses until the tables have been read, and the most seconds that it pauses."""

SLACK = 60_000_000
"""Microseconds by which the time of a row may be before that of a row with a lower id."""

COME_BACK_WITHIN = 900.0
"""Seconds after a reset in which rows that were read before may come back."""

HOLES_AT_ONCE = 256
"""Most missing ids below the head that are read after a wake-up by the doorbell. Probes cover the others."""

VERIFY_EVERY = 1.0
"""Seconds for which a read that found nothing stands for the rows of the next idle ones, which ask for the highest id
alone: a driver in Python spends most of a small answer on its columns."""

REPORT_EVERY = 2.0
"""Seconds between reports of the progress of a catch-up."""


@dataclass(slots=True)
class Tail:
    """The position in log_events, and the tasks that advance it. It outlives connections.

    Args:
        poll: Seconds between two reads while windows are open or `Feed.wants_fast_poll` is true.
        idle_poll: Seconds between two reads otherwise.
        grace: Seconds without evidence after which missing ids are settled (`Gaps`).
        cold_for, sweep_every: Seconds (`Gaps`).
        batch: Rows per read. A full batch is followed by the next without a pause.
        past_batch: The same for the past.
        reset_check_every: Seconds between checks of the next id.
        max_read_again: Most ids below the head that are read again once a column is back that they were read without.
        clock: Monotonic seconds.
    """

    poll: float = 0.02
    idle_poll: float = 0.25
    grace: float = 5.0
    cold_for: float = 600.0
    sweep_every: float = 10.0
    batch: BatchSize = field(default_factory=BatchSize)
    past_batch: BatchSize = field(default_factory=BatchSize)
    reset_check_every: float = 2.0
    max_read_again: int = 100_000
    clock: Callable[[], float] = time.monotonic
    gaps: Gaps = field(init=False)
    doorbell_retry: DoorbellRetry = field(default_factory=DoorbellRetry)
    started: bool = False
    past: Past | None = None
    """The rows that a first start has still to read or to publish; None when that is done."""
    busy: bool = True
    """True while there may be new rows that have not been read. The past waits for it to become false."""
    sample: tuple[str, ...] = ()
    """Jobs by which the database is recognized (`correlator.sources.db.identity`)."""
    _begun: bool = False
    _head_row: LogRow | None = None
    _reset_markers: ResetMarkers = field(default_factory=ResetMarkers)
    _again: tuple[Micros, Past] | None = None
    """The rows that are read again for jobs that came back, and since when."""
    _read_rows: ReadRows = field(default_factory=ReadRows)
    _reset_at: float = -math.inf
    """When the log was last not as it was read, by `clock`."""
    _target: int = 0
    _behind: bool = True
    _reported_at: float = 0.0
    _new_holes: asyncio.Event = field(default_factory=asyncio.Event)
    _read_at: float | None = None
    """When the head was last seen to be the newest row, by `clock`; None: not since the start."""
    _complete_to: int | None = None
    """The id up to which rows were read with all columns, while they are read without some."""

    def __post_init__(self) -> None:
        self._clear_gaps()

    def _clear_gaps(self) -> None:
        self.gaps = Gaps(grace=self.grace, poll=self.poll, cold_for=self.cold_for, sweep_every=self.sweep_every)

    def cursor(self) -> Cursor:
        """The position for the checkpoint (`resume`)."""
        past = self.past.kept() if self.past is not None else None
        markers = self._reset_markers
        return Cursor(
            self.gaps.head,
            self._head_row,
            self.gaps.kept(),
            past,
            markers.packed(),
            self._complete_to,
            self.sample,
            markers.shapes(),
        )

    def resume(self, cursor: Cursor) -> None:
        """Continue where an earlier run stopped. Its windows are open again, as transactions outlive the daemon."""
        self._clear_gaps()
        self.gaps.head, self._head_row = cursor.head, cursor.row
        self._reset_markers = ResetMarkers(cursor.marks, cursor.shapes)
        self._read_rows.add(list(self._reset_markers))
        self.past = Past(*cursor.past) if cursor.past is not None else None
        self._await([list(w) for w in cursor.holes])
        self._target = cursor.head
        self._complete_to = cursor.complete_to
        self.started = self._begun = True

    def _await(self, holes: Sequence[list[Range]]) -> None:
        now = self.clock()
        self.gaps.open = [Window(w, now, now, now + self.poll, self.poll) for w in holes if w]

    async def begin(self, queries: Queries, rows: Session, since: Micros) -> None:
        """Set the position of a first start: the head at the newest row, the past from `since` (microseconds) on.

        After a reset the head goes to the newest row that was read. If there is none, it goes to the newest row that is
        older than what was read: rows that a backup restored are the past, later ones are new. The position changes
        only after the last query has succeeded. Raises `SourceUnavailable`.
        """
        target = await queries.last_id(rows)
        if (known := await self._newest_known(queries, rows)) is not None:
            self._move_back(known.id, known)
            self._reset(known.id)
            self._target = target
            self.started = True
            log.info("row %d of log_events was read: reading continues after it", known.id)
            return
        first = await queries.first_since(rows, since)
        last = target
        if self._begun:
            read_to = await self._read_to(queries, rows)
            last = await queries.first_since(rows, max(since, read_to)) - 1
        with self.batch:
            newest = await queries.light_rows_upto(rows, last, min(RECENT, self.batch.rows))
        self._clear_gaps()
        self._complete_to = None
        self._reset(last)
        self._reset_markers = ResetMarkers()
        self._reset_markers.add(self._seen(newest[::-1]))
        self._head_row = newest[0] if newest and newest[0].id == last else None
        self.gaps.head = last
        self.past = Past.between(first - 1, last)
        self._target = target
        self.started = self._begun = True

    async def _read_to(self, queries: Queries, rows: Session) -> Micros:
        """The time of the database up to which rows were read. The row at the head may have one in the future."""
        if self._head_row is None:
            return 0
        read_before = self.clock() - self._read_at if self._read_at is not None else 0.0
        now = await queries.now(rows)
        return min(self._head_row.ts, now - int(read_before * 1_000_000)) - SLACK

    async def _newest_known(self, queries: Queries, rows: Session) -> LogRow | None:
        """The newest row that was read, though it may have another time by now."""
        found: dict[int, LogRow] = {}
        for part in chunks(list(self._reset_markers.ids()), IN_ONE):
            found |= {row.id: row for row in await queries.light_rows_in(rows, part)}
            if (known := self._reset_markers.newest_known(found, part[-1])) is not None:
                if renewed := self._reset_markers.renew(found):
                    log.warning("the times of rows in log_events are others than when they were read (%d)", renewed)
                return known
        return None

    def _reset(self, last: int) -> None:
        """Note that the rows above `last` are not there any more. They may come back."""
        self._read_rows.reset(last)
        self._reset_at = self.clock()

    def _seen(self, rows: Sequence[LogRow]) -> Sequence[Mark]:
        """Note that rows have been read. Returns their marks."""
        marks = [mark_of(row) for row in rows]
        self._read_rows.add(marks)
        return marks

    def _deliver(self, rows: Sequence[LogRow], feed: Feed, note: Note) -> Sequence[Mark]:
        """Pass rows on that have been read: as new ones, unless they were read before a reset. Returns their marks."""
        marks, again = self._seen(rows), []
        if self._read_rows and self.clock() > self._reset_at + COME_BACK_WITHIN:
            self._read_rows.forget()
        if self._read_rows:
            known = [self._read_rows.is_known(mark) for mark in marks]
            again = [row for row, is_known in zip(rows, known, strict=True) if is_known]
            rows = [row for row, is_known in zip(rows, known, strict=True) if not is_known]
        if again:
            note(feed.again(again))
        if rows:
            note(feed.rows(rows))
        return marks

    def _move_back(self, head: int, row: LogRow | None) -> None:
        """Move the head back. Rows above it are read again; windows below it stay open."""
        last = head if row is None else head - 1
        windows = (*self.gaps.open, *self.gaps.cold)
        holes = [[(a, min(b, last)) for a, b in w.holes if a <= last] for w in windows]
        self._clear_gaps()
        self._await(holes)
        self.gaps.head, self._head_row = head, row
        self._reset_markers.cut(head)
        if self._complete_to is not None:
            self._complete_to = min(self._complete_to, head)
        if self.past is not None:
            self.past.cut(head)

    def read_without_columns(self) -> None:
        """Note that rows are read without some columns from now on."""
        if self._complete_to is None:
            self._complete_to = self.gaps.head

    def read_again(self) -> None:
        """Go back to where rows were last read with all columns, at most `max_read_again` ids."""
        complete_to, self._complete_to = self._complete_to, None
        if complete_to is None or complete_to >= self.gaps.head:
            return
        back = max(complete_to, self.gaps.head - self.max_read_again)
        log.info("rows of log_events are read again from id %d on: they were read without a column", back + 1)
        self._move_back(back, None)

    async def follow(self, queries: Queries, rows: Session, feed: Feed, note: Note) -> None:
        """Read new rows until cancelled. Raises `SourceUnavailable`, and `LogReset` if ids have started again lower."""
        self._target = max(self._target, await queries.last_id(rows))
        self._reported_at = self.clock()
        self._behind = self.busy = True
        metrics.GAPS_OPEN.set_function(lambda: len(self.gaps.open))
        metrics.GAP_OLDEST.set_function(lambda: self.gaps.oldest(self.clock()))
        idle, verified = False, -math.inf
        while True:
            began = self.clock()
            asked = self.batch.rows
            found: Sequence[LogRow] = ()
            new: Sequence[LogRow] = ()
            quiet = idle and not self.doorbell_retry.pending and began < verified + VERIFY_EVERY
            if not (quiet and await queries.last_id(rows) == self.gaps.head):
                found = await self._read_on(queries, rows, asked)
                new, verified = self._after_head(found), began
            feed.status.answered()
            if new:
                await self._emit(new, began, queries, rows, feed, note)
            self.busy = len(found) == asked
            self._read_at = began
            if self.busy:
                self.doorbell_retry.clear()
                self._report_progress(feed)
                await self._wait_until_loaded(feed)
                continue
            if self._behind:
                self._behind = False
                feed.status.progress(self.gaps.head, self.gaps.head)
            if (read_to := min(began, self.gaps.read_to())) > -math.inf:
                feed.status.caught_up(self.clock() - read_to)
            if self.doorbell_retry.pending and (await self._read_late_rows(queries, rows, feed, note) or new):
                self.doorbell_retry.rows_found()
            idle = not (self.gaps.open or feed.wants_fast_poll())
            now = self.clock()
            await self.doorbell_retry.wait(until_next(self.idle_poll, now) if idle else began + self.poll - now)

    async def _read_late_rows(self, queries: Queries, rows: Session, feed: Feed, note: Note) -> int:
        """Read rows that were missing below the head and are visible by now. Returns how many there were."""
        missing = self.gaps.newest(HOLES_AT_ONCE)
        return await self._fill(missing, queries, rows, feed, note) if missing else 0

    async def _fill(self, ids: Sequence[int], queries: Queries, rows: Session, feed: Feed, note: Note) -> int:
        """Read and emit missing rows. Returns how many were emitted; another task may have emitted some meanwhile.

        The row at the head is read last. Only while it is the same the others are rows that were missing, and none of
        ids that have started again: these would be read once more after the reset.
        """
        emitted, head = 0, self._head_row
        read = await queries.light_rows_in(rows, ids if head is None else [*ids, head.id])
        if head is not None:
            _check_head(next((row for row in read if row.id == head.id), None), head)
            read = [row for row in read if row.id != head.id]
        async for found in slices(queries.rows_in, rows, read):
            by_id = {r.id: r for r in found}
            late = self.gaps.late
            new = self.gaps.fill(by_id)
            metrics.LATE_ROWS.inc(self.gaps.late - late)
            if new:
                self._reset_markers.add_late(self._deliver([by_id[i] for i in new], feed, note))
            emitted += len(new)
            await asyncio.sleep(0)
        return emitted

    async def _read_on(self, queries: Queries, rows: Session, limit: int) -> Sequence[LogRow]:
        """The next rows, beginning with the row at the head."""
        after = self._head_row.ts if self._behind and self._head_row is not None else None
        with self.batch:
            return await queries.light_rows_from(rows, max(self.gaps.head, 1), limit, after=after)

    async def _wait_until_loaded(self, feed: Feed) -> None:
        """In a catch-up, wait until the jobs of most pending rows have been loaded from the tables."""
        await asyncio.sleep(0)
        deadline = self.clock() + LOADED_WITHIN
        while feed.known.unloaded_rows > MAX_UNLOADED and self.clock() < deadline:  # noqa: ASYNC110 - no worse than the tail itself
            await asyncio.sleep(self.poll)

    async def read_past(
        self, queries: Queries, session: Session, feed: Feed, note: Note, beat: Callable[[], None]
    ) -> None:
        """Read the rest of the past, and publish it. Calls `beat` while it waits. Raises `SourceUnavailable`."""
        if (past := self.past) is None:
            return

        def apply(rows: Sequence[LogRow]) -> None:
            note(feed.past(rows))
            self._seen(rows)

        async def turn() -> None:
            feed.status.past_progress(past.at - past.before, past.last - past.before)
            await self.wait_while_busy(beat)

        await past.read(queries, session, apply, self._miss, turn, self.past_batch)
        began = time.monotonic()
        while feed.show_past():
            await asyncio.sleep(min(BETWEEN_SHOWS, time.monotonic() - began))
            began = time.monotonic()
        self.past = None
        log.info("the past of the log has been read")

    async def read_again_from(
        self, since: Micros, queries: Queries, session: Session, feed: Feed, note: Note, beat: Callable[[], None]
    ) -> None:
        """Read the log again from a time on, to the head, for jobs that came back. Goes on where a failure ended it.

        Calls `beat` while it waits. Raises `SourceUnavailable`.
        """
        if self._again is None or self._again[0] > since:
            first = await queries.first_since(session, since - SLACK)
            self._again = since, Past.between(first - 1, self.gaps.head)
        log.info("the log is read again from id %d on: jobs have come back", self._again[1].at + 1)
        turn = partial(self.wait_while_busy, beat)
        await self._again[1].read(
            queries, session, lambda rows: note(feed.again(rows)), lambda *_: None, turn, self.past_batch
        )
        self._again = None

    async def wait_while_busy(self, beat: Callable[[], None]) -> None:
        """Wait until there are no new rows to catch up with."""
        beat()
        await asyncio.sleep(0)
        while self.busy:
            beat()
            await asyncio.sleep(self.poll)

    def _miss(self, after: int, ids: Sequence[int], last: int) -> None:
        self.gaps.behind(after, ids, last, self.clock())
        if self.gaps.open:
            self._new_holes.set()

    async def watch(
        self, queries: Queries, rows: Session, dirty: Session, feed: Feed, note: Note, beat: Callable[[], None]
    ) -> None:
        """Probe the windows until cancelled. Calls `beat` at least once a second. Raises `SourceUnavailable`."""
        while True:
            beat()
            now = self.clock()
            # Both in each cycle: some window may always be due, and a sweep may need many probes.
            probes = [p for p in (self.gaps.probe(now), self.gaps.sweep(now)) if p is not None]
            for probe in probes:
                await self._probe(probe, queries, rows, dirty, feed, note)
            if probes or not self.gaps.open:
                feed.status.part_answered(SourcePart.LATE_ROWS)
            if probes:
                continue
            due = self.gaps.next_due()
            await set_within(self._new_holes, until_next(1.0, now) if due is None else max(0.001, due - now))
            self._new_holes.clear()

    async def watch_for_reset(self, database: Database, session: Session) -> None:
        """Check the next id of log_events until cancelled. Raises `LogReset` if it is not above the head."""
        while True:
            head = self.gaps.head  # before the query: rows that arrive meanwhile are no evidence
            next_id = await database.next_id(session)
            if 0 < next_id <= head:
                raise LogReset(f"the next id of log_events is {next_id}, but {head} has already been read")
            await asyncio.sleep(until_next(self.reset_check_every, self.clock()))

    async def _probe(
        self, probe: Probe, queries: Queries, rows: Session, dirty: Session, feed: Feed, note: Note
    ) -> None:
        probe.started = self.clock()
        seen = await queries.ids_in(dirty, probe.ranges)
        alive = self.gaps.answer(probe, seen, self.clock())
        if alive:
            await self._fill(alive, queries, rows, feed, note)
        self.gaps.probed(probe)

    def _after_head(self, found: Sequence[LogRow]) -> Sequence[LogRow]:
        """The rows above the head. Raises `LogReset` if the row at the head is gone, or is another row."""
        if self._head_row is not None:
            _check_head(found[0] if found else None, self._head_row)
        return [r for r in found if r.id > self.gaps.head]

    async def _emit(
        self, new: Sequence[LogRow], asked: float, queries: Queries, session: Session, feed: Feed, note: Note
    ) -> None:
        """Apply `new`, asked for at that time, in parts, so that a checkpoint between two parts is consistent."""
        async for part in slices(queries.rows_in, session, new):
            self.gaps.advance([r.id for r in part], self.clock(), asked)
            if self.gaps.open:
                self._new_holes.set()
            self._head_row = _without_bulk(part[-1])
            self._reset_markers.add(self._deliver(part, feed, note))
            if part[-1].id != new[-1].id:
                await asyncio.sleep(0)

    def _report_progress(self, feed: Feed) -> None:
        """Report the progress of a catch-up every `REPORT_EVERY` seconds."""
        now = self.clock()
        if now - self._reported_at >= REPORT_EVERY:
            self._reported_at = now
            self._target = max(self._target, self.gaps.head)
            feed.status.progress(self.gaps.head, self._target)


def _without_bulk(row: LogRow) -> LogRow:
    """What `same` compares of a row: every checkpoint has it."""
    return replace(row, message=row.message[:MESSAGE_COMPARED], attrs=None)


def _check_head(found: LogRow | None, head: LogRow) -> None:
    """Raises `LogReset` if `found`, the row that is where the row at the head was, is another one or none.

    If that row is gone, either retention has deleted (nearly) everything that was read, and little is read again; or
    the ids have started again lower and have passed the head. Nothing else distinguishes that from new rows.
    """
    if found is None or found.id != head.id:
        raise LogReset(f"row {head.id} of log_events, the last that was read, does not exist any more")
    if not same(found, head):
        raise LogReset(f"row {head.id} of log_events is not the row that was read")
