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

from correlator.jobs.index import Outcome
from correlator.jobs.model import Cursor, LogRow, Micros
from correlator.sources import Feed
from correlator.sources.database import Database, Session
from correlator.sources.gaps import Gaps, Probe, Window
from correlator.sources.queries import Queries

log = logging.getLogger(__name__)

Note = Callable[[Outcome], None]
"""Who wants to know what a batch did to the index."""

BATCH = 1000
"""Rows a read. A full batch is followed by the next at once."""

PROBED_BELOW_START = 50_000
"""At a first start, holes this far below the head are still watched; what is older has long been decided."""

SIGNS_EVERY = 2.0
SPEAK_EVERY = 2.0


@dataclass(slots=True)
class Tail:
    """Where the log has been read to. It outlives connections; `poll`, `idle_poll` and `grace` are seconds."""

    poll: float = 0.02
    idle_poll: float = 0.25
    grace: float = 5.0
    gaps: Gaps = field(init=False)
    started: bool = False
    _head_row: LogRow | None = None
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
        now = time.monotonic()
        self.gaps.open = [Window(list(w), now, now, now + self.poll, self.poll) for w in cursor.holes if w]
        self._target = cursor.head
        self.started = True

    async def begin(self, queries: Queries, rows: Session, since: Micros) -> None:
        """A first start: the head goes to where the log at `since` begins."""
        self._fresh()
        self._head_row = None
        first = await queries.first_since(rows, since)
        self._target = await queries.last_id(rows)
        self._floor = max(first - 1, self._target - PROBED_BELOW_START)
        self.gaps.head = first - 1
        self.started = True

    async def follow(self, queries: Queries, rows: Session, feed: Feed, note: Note) -> None:
        """Read on for ever. Raises `SourceUnavailable` when the database does not answer, `LogReset` on new ids."""
        self._target = max(self._target, await queries.last_id(rows))
        self._spoke = time.monotonic()
        self._behind = True
        while True:
            began = time.monotonic()
            found = await queries.rows_from(rows, max(self.gaps.head, 1), BATCH)
            feed.state(connected=True)
            new = self._after_head(found)
            if new:
                self._take(new, feed, note)
            if len(found) == BATCH:
                self._say(feed)
                await asyncio.sleep(0)
                continue
            if self._behind:
                self._behind = False
                feed.loading(self.gaps.head, self.gaps.head)
            pause = self.poll if self.gaps.open or feed.attention() else self.idle_poll
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    async def watch(self, queries: Queries, rows: Session, dirty: Session, feed: Feed, note: Note) -> None:
        """Look after the holes for ever."""
        while True:
            now = time.monotonic()
            probe = self.gaps.probe(now) or self.gaps.sweep(now)
            if probe is not None:
                await self._probe(probe, queries, rows, dirty, feed, note)
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
        found = {r.id: r for r in await queries.rows_in(rows, alive)}
        new = self.gaps.fill(found)
        if new:
            note(feed.rows([found[i] for i in new]))

    def _after_head(self, found: Sequence[LogRow]) -> Sequence[LogRow]:
        """The rows above the head, once the row at the head has been seen to be the same as ever."""
        head = self.gaps.head
        if self._head_row is not None and found and found[0].id == head and found[0] != self._head_row:
            changed = _identity(found[0]) != _identity(self._head_row)
            if changed:
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
    # job_id and step_id may be nulled under our eyes when a job is deleted; the rest of a row never changes.
    return row.ts, row.message
