"""The tail of log_events: every committed row once, whatever the order in which ids become visible.

Two sessions: rows are read where only committed rows show, holes are probed where dirty ones do (`gaps`). What a
dirty read sees is evidence and never shown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from correlator import metrics
from correlator.errors import SourceUnavailable
from correlator.jobs.index import Outcome
from correlator.jobs.model import Cursor, LogRow, Micros
from correlator.sources import Feed
from correlator.sources.database import Database, Heard, Session
from correlator.sources.gaps import Gaps, Probe, Window
from correlator.sources.landmarks import Landmarks
from correlator.sources.queries import Queries, chunks
from correlator.sources.rings import Rings

log = logging.getLogger(__name__)

Note = Callable[[Outcome], None]
"""Who wants to know what a batch did to the index."""

BATCH = 1000
"""Rows a read. A full batch is followed by the next at once."""

SMALLEST_BATCH = 2
"""The row at the head is one of them."""

QUICK = 1.0
"""Seconds within which a read may be a larger one the next time."""

MAX_UNTOLD = 200
TOLD_WITHIN = 10.0
"""Lines that may wait for their jobs before more are read, and the seconds that they are given."""

PROBED_BELOW_START = 50_000
"""At a first start, holes this far below the head are still watched; what is older has long been decided."""

HOLES_AT_ONCE = 256
"""Ids missing below the head that are looked for whenever the doorbell rings, at the most; the probes see to all."""

SIGNS_EVERY = 2.0
SPEAK_EVERY = 2.0


@dataclass(slots=True)
class Tail:
    """Where the log has been read to. It outlives connections; `poll`, `idle_poll` and `grace` are seconds."""

    poll: float = 0.02
    idle_poll: float = 0.25
    grace: float = 5.0
    patience: float = 60.0
    """Seconds without the end of a query, whatever it was, that mean that a task is stuck."""
    gaps: Gaps = field(init=False)
    rings: Rings = field(default_factory=Rings)
    started: bool = False
    _batch: int = BATCH
    _head_row: LogRow | None = None
    _landmarks: Landmarks = field(default_factory=Landmarks)
    _floor: int = 0
    _target: int = 0
    _behind: bool = True
    _spoke: float = 0.0
    _holes: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._fresh()

    def _fresh(self) -> None:
        self.gaps = Gaps(grace=self.grace, poll=self.poll)

    def cursor(self) -> Cursor:
        """Where to go on after a restart."""
        windows = (*self.gaps.open, *self.gaps.cold)
        return Cursor(self.gaps.head, self._head_row, tuple(tuple(w.holes) for w in windows))

    def resume(self, cursor: Cursor) -> None:
        """Go on where an earlier run stopped. What it awaited is awaited anew: transactions outlive us."""
        self._fresh()
        self.gaps.head, self._head_row = cursor.head, cursor.row
        self._landmarks.add([cursor.row] if cursor.row is not None else ())
        now = time.monotonic()
        self.gaps.open = [Window(list(w), now, now, now + self.poll, self.poll) for w in cursor.holes if w]
        self._target = cursor.head
        self._floor = 0  # what is above the cursor is news
        self.started = True

    async def begin(self, queries: Queries, rows: Session, since: Micros) -> None:
        """A first start: the head goes to where the log at `since` begins; later, to what is still as it was read."""
        if (known := await self._last_known(queries, rows)) is not None:
            await self._go_back(known, queries, rows)
            return
        self._fresh()
        self._head_row, self._landmarks = None, Landmarks()
        first = await queries.first_since(rows, since)
        self._target = await queries.last_id(rows)
        self._floor = max(first - 1, self._target - PROBED_BELOW_START)
        self.gaps.head = first - 1
        self.started = True

    async def _last_known(self, queries: Queries, rows: Session) -> LogRow | None:
        for part in chunks(list(self._landmarks.ids())):
            if (known := self._landmarks.newest_of(await queries.rows_in(rows, part))) is not None:
                return known
        return None

    async def _go_back(self, known: LogRow, queries: Queries, rows: Session) -> None:
        """Everything above `known` is read anew; the holes below it are awaited as before."""
        holes = [
            [(a, min(b, known.id - 1)) for a, b in w.holes if a < known.id] for w in (*self.gaps.open, *self.gaps.cold)
        ]
        self.resume(Cursor(known.id, None, tuple(tuple(w) for w in holes if w)))
        self._head_row = known
        self._landmarks.cut(known.id)
        self._target = await queries.last_id(rows)
        log.info("row %d of log_events is as it was: going on after it", known.id)

    async def follow(self, queries: Queries, rows: Session, feed: Feed, note: Note) -> None:
        """Read on for ever. Raises `SourceUnavailable` when the database does not answer, `LogReset` on new ids."""
        self._target = max(self._target, await queries.last_id(rows))
        self._spoke = time.monotonic()
        self._behind = True
        metrics.GAPS_OPEN.set_function(lambda: len(self.gaps.open))
        metrics.GAP_OLDEST.set_function(lambda: self.gaps.oldest(time.monotonic()))
        with feed.part("tail", self.patience) as beat:
            await self._follow(queries, Heard(rows, beat), feed, note, beat)

    async def _follow(self, queries: Queries, rows: Session, feed: Feed, note: Note, beat: Callable[[], None]) -> None:
        while True:
            beat()
            began = time.monotonic()
            asked = self._batch
            found = await self._read_on(queries, rows, asked)
            feed.state(connected=True)
            new = self._after_head(found)
            if new:
                self._take(new, feed, note)
            if len(found) == asked:
                self.rings.forget()
                self._say(feed)
                await self._until_told(feed)
                continue
            if self._behind:
                self._behind = False
                feed.loading(self.gaps.head, self.gaps.head)
            if self.rings.owed and (await self._late_ones(queries, rows, feed, note) or new):
                self.rings.found()
            pause = self.poll if self.gaps.open or feed.attention() else self.idle_poll
            await self.rings.rest(began + pause - time.monotonic())

    async def _late_ones(self, queries: Queries, rows: Session, feed: Feed, note: Note) -> int:
        """Read what is there by now of the rows that are missing below the head. Returns how many there were."""
        missing = self.gaps.newest(HOLES_AT_ONCE)
        return self._fill(await queries.rows_in(rows, missing), feed, note) if missing else 0

    def _fill(self, found: Sequence[LogRow], feed: Feed, note: Note) -> int:
        """Take rows that were missing. Returns how many nobody has taken meanwhile."""
        by_id = {r.id: r for r in found}
        late = self.gaps.late
        new = self.gaps.fill(by_id)
        metrics.LATE_ROWS.inc(self.gaps.late - late)
        if new:
            note(feed.rows([by_id[i] for i in new]))
        return len(new)

    async def _read_on(self, queries: Queries, rows: Session, limit: int) -> Sequence[LogRow]:
        """The next rows, the one at the head first. Fewer at a time where so many do not come within the deadline."""
        began = time.monotonic()
        try:
            found = await queries.rows_from(rows, max(self.gaps.head, 1), limit)
        except SourceUnavailable:
            self._batch = max(SMALLEST_BATCH, limit // 2)
            raise
        if time.monotonic() - began < QUICK:
            self._batch = min(BATCH, limit * 2)
        return found

    async def _until_told(self, feed: Feed) -> None:
        """In a catch-up, wait until the tables have told of the jobs of what was read: lines wait for that."""
        await asyncio.sleep(0)
        deadline = time.monotonic() + TOLD_WITHIN
        while feed.untold() > MAX_UNTOLD and time.monotonic() < deadline:  # noqa: ASYNC110 - no worse than the tail itself
            await asyncio.sleep(self.poll)

    async def watch(self, queries: Queries, rows: Session, dirty: Session, feed: Feed, note: Note) -> None:
        """Look after the holes for ever."""
        with feed.part("gaps", self.patience) as beat:
            await self._watch(queries, Heard(rows, beat), Heard(dirty, beat), feed, note, beat)

    async def _watch(
        self, queries: Queries, rows: Session, dirty: Session, feed: Feed, note: Note, beat: Callable[[], None]
    ) -> None:
        while True:
            beat()
            now = time.monotonic()
            # Both in turn: some window may always be due, and a sweep may have many parts.
            probes = [p for p in (self.gaps.probe(now), self.gaps.sweep(now)) if p is not None]
            for probe in probes:
                await self._probe(probe, queries, rows, dirty, feed, note)
            if probes:
                continue
            due = self.gaps.next_due()
            try:
                async with asyncio.timeout(1.0 if due is None else max(0.001, due - now)):
                    await self._holes.wait()
            except TimeoutError:
                pass
            self._holes.clear()

    async def signs(self, database: Database, session: Session) -> None:
        """Watch for ever for ids that start again lower. Raises `LogReset`."""
        while True:
            head = self.gaps.head  # before the question: rows that come meanwhile are no sign
            coming, _ = await database.reset_signs(session)
            if 0 < coming <= head:
                raise LogReset(f"log_events will give id {coming} next, but {head} has been read")
            await asyncio.sleep(SIGNS_EVERY)

    async def _probe(
        self,
        probe: Probe,
        queries: Queries,
        rows: Session,
        dirty: Session,
        feed: Feed,
        note: Note,
    ) -> None:
        probe.started = time.monotonic()
        seen = await queries.ids_in(dirty, probe.ranges)
        alive = self.gaps.answer(probe, seen, time.monotonic())
        if not alive:
            return
        self._fill(await queries.rows_in(rows, alive), feed, note)

    def _after_head(self, found: Sequence[LogRow]) -> Sequence[LogRow]:
        """The rows above the head, once the row at the head has been seen to be the same as ever.

        If it is gone, retention has deleted (nearly) all that was read, and little is read again; or ids have started
        again lower and passed this one, which was rolled back: nothing else tells that from rows that just go on.
        """
        head = self.gaps.head
        if self._head_row is not None:
            if not found or found[0].id != head:
                raise LogReset(f"row {head} of log_events, the last that was read, is gone")
            if _identity(found[0]) != _identity(self._head_row):
                raise LogReset(f"row {head} of log_events is another than before")
        return [r for r in found if r.id > head]

    def _take(self, new: Sequence[LogRow], feed: Feed, note: Note) -> None:
        ids = [r.id for r in new]
        if ids[-1] <= self._floor:
            self.gaps.head = ids[-1]  # long ago: holes there are nobody's any more
        else:
            self.gaps.advance(ids, time.monotonic())
            if self.gaps.open:
                self._holes.set()
        self._head_row = new[-1]
        self._landmarks.add(new)
        note(feed.rows(new))

    def _say(self, feed: Feed) -> None:
        """A catch-up that takes long says how far it is."""
        now = time.monotonic()
        if now - self._spoke >= SPEAK_EVERY:
            self._spoke = now
            self._target = max(self._target, self.gaps.head)
            feed.loading(self.gaps.head, self._target)


class LogReset(Exception):
    """The ids of log_events have started again lower: TRUNCATE, a restored backup, or a crash of the server."""


def _identity(row: LogRow) -> tuple[Micros, str]:
    # job_id and step_id may be nulled under our eyes when a job is deleted; the rest of a row never changes, but its ts
    # is read in another zone when the appliance's clock goes an hour forward: zones differ by whole quarters of one.
    return row.ts % 900_000_000, row.message
