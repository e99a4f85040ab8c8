"""The tables against what the log said: job_tracking and job_steps are the authority, failover_jobs a tracker beside.

A job is read when it is first heard of, when it ends and twice after, and every `interval` while it runs; all jobs in
memory are read again within five minutes, so that deletions show.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from correlator import metrics
from correlator.jobs.corrections import LOST
from correlator.jobs.index import Outcome
from correlator.jobs.model import LegacyRecord
from correlator.sources import Feed
from correlator.sources.database import Heard, Session
from correlator.sources.lookup import Lookup
from correlator.sources.queries import IN_ONE, Queries, read_readings

TOGETHER = 0.02
"""Seconds that a first reading waits for others to share its query."""

AGAIN_AFTER = (0.0, 2.0, 30.0)
"""Seconds after an ending at which the job is read again: it may end twice."""

HELD_EVERY = 0.05
"""Seconds between looks for new jobs while somebody waits for an ID."""

RUNG_EVERY = 0.2
"""Seconds between looks that the doorbell calls for, at the least."""

ROUND = 300.0
"""Seconds in which every job in memory is read again."""

LATE_COMMIT = 60.0
"""Seconds by which a commit may lag behind its started_at or completed_at."""

LEGACY_ACTIVE = (
    "pending",
    "validating",
    "snapshotting",
    "creating_vm",
    "switching_volume",
    "powering_on",
    "reverting",
)

LEGACY_TAIL = 200
"""Rows of failover_jobs read again below the highest id: they may commit late, or end between two looks."""


@dataclass(slots=True)
class Reconcile:
    """What to read next. Intervals are seconds; `retention` is how far back ended jobs are loaded."""

    interval: float = 1.0
    retention: float = 86_400.0
    legacy: bool = True
    patience: float = 60.0
    """Seconds without the end of a query, whatever it was, that mean that this is stuck."""
    lookup: Lookup = field(default_factory=Lookup)
    _urgent: set[str] = field(default_factory=set)
    _steps: set[int] = field(default_factory=set)
    _later: list[tuple[float, str]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _round: list[str] = field(default_factory=list)
    _share: int = 1
    _legacy_id: int = 0
    _mark: str | None = None
    """From when on the next look asks. It outlives connections: jobs begin and end while the database is away."""
    _looked_up: set[str] = field(default_factory=set)
    _rung: bool = False

    def __post_init__(self) -> None:
        for kind in LOST:
            metrics.CORRECTIONS.labels(kind)  # nothing lost is a 0, not a series that is not there

    def note(self, outcome: Outcome) -> None:
        """Take in what a batch of facts calls for, and count what it corrected."""
        for kind in outcome.lost:
            metrics.CORRECTIONS.labels(kind).inc()
        if outcome.unread or outcome.unread_steps:
            self._urgent |= outcome.unread
            self._steps |= outcome.unread_steps
            self._wake.set()
        now = time.monotonic()
        for job_id in outcome.ended:
            for after in AGAIN_AFTER:
                heapq.heappush(self._later, (now + after, job_id))
            self._wake.set()

    async def load(self, queries: Queries, session: Session, feed: Feed) -> None:
        """Everything that belongs in memory: what has not ended, and what began or ended within the retention."""
        if queries.schema.has("job_tracking", "id", "status"):
            since = await queries.clock(session, self.retention)
            ids = await queries.active_ids(session) | set(feed.known())
            for column in ("started_at", "completed_at"):
                ids |= await queries.ids_since(session, column, since)
            await self._read(queries, session, feed, ids)
        await self._legacy_rows(queries, session, feed, first=True)

    async def follow(self, queries: Queries, session: Session, feed: Feed) -> None:
        """Read what is called for, for ever. Raises `SourceUnavailable`."""
        tracking = queries.schema.has("job_tracking", "id", "status")
        with feed.part("reconcile", self.patience) as beat:
            await self._follow(queries, Heard(session, beat), feed, beat, tracking=tracking)

    async def _follow(
        self, queries: Queries, session: Session, feed: Feed, beat: Callable[[], None], *, tracking: bool
    ) -> None:
        regular, rung, held = 0.0, 0.0, 0.0
        if self._mark is None:
            self._mark = await queries.clock(session, LATE_COMMIT)
        while True:
            beat()
            now = time.monotonic()
            if now >= regular:
                self._rung = False
                regular, rung = now + self.interval, now + RUNG_EVERY
                if tracking:
                    self._mark = await self._regular(queries, session, feed, self._mark)
                await self._legacy_rows(queries, session, feed)
            elif tracking and self._rung and now >= rung:
                self._rung, rung = False, now + RUNG_EVERY
                await self._read(queries, session, feed, await self._moving(queries, session, feed, self._mark))
            elif tracking and now >= held and feed.holding():
                held = now + HELD_EVERY
                await self._newcomers(queries, session, feed)
            while self._later and self._later[0][0] <= now:
                self._urgent.add(heapq.heappop(self._later)[1])
            if tracking and self._steps:
                steps, self._steps = self._steps, set()
                self._urgent |= await queries.jobs_of_steps(session, steps)
            if not tracking:
                self._urgent.clear()
                self._steps.clear()
            if self._urgent:
                urgent, self._urgent = self._urgent, set()
                await self._read(queries, session, feed, urgent)
            until = min(regular, held) if tracking and feed.holding() else regular
            await self._rest(min(until, rung) if self._rung else until)

    async def _rest(self, until: float) -> None:
        """Sleep until the next look is due, or something is heard that calls for one sooner."""
        if self._later:
            until = min(until, self._later[0][0])
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        await asyncio.sleep(TOGETHER)

    def held(self) -> None:
        """Somebody has begun to wait for an ID: look for it now rather than at the next look."""
        self._wake.set()

    def rung(self) -> None:
        """The tables have changed: compare what moves in them now rather than at the next look."""
        self._rung = True
        self._wake.set()

    async def _regular(self, queries: Queries, session: Session, feed: Feed, mark: str) -> str:
        """The look of every interval. Returns the mark from which the next one takes up."""
        following = await queries.clock(session, LATE_COMMIT)
        ids = await self._moving(queries, session, feed, mark)
        if not self._round:
            self._round = feed.known()
            self._share = math.ceil(len(self._round) * self.interval / ROUND)
        ids.update(self._round[-self._share :])
        del self._round[-self._share :]
        await self._read(queries, session, feed, ids)
        return following

    async def _moving(self, queries: Queries, session: Session, feed: Feed, mark: str) -> set[str]:
        """Jobs that run, as the tables or we have it, and those that began or ended since `mark` and want a look."""
        ids = await queries.active_ids(session)
        for column in ("started_at", "completed_at"):
            ids |= {i for i in await queries.ids_since(session, column, mark) if feed.needs(i)}
        return ids | feed.active()

    async def _newcomers(self, queries: Queries, session: Session, feed: Feed) -> None:
        since = await queries.clock(session, 5.0)
        ids = {i for i in await queries.ids_since(session, "started_at", since) if feed.is_new(i)}
        await self._read(queries, session, feed, ids)

    async def _read(self, queries: Queries, session: Session, feed: Feed, job_ids: Iterable[str]) -> None:
        wanted = sorted(job_ids)
        for i in range(0, len(wanted), IN_ONE):
            readings = await read_readings(queries, session, feed.look(), wanted[i : i + IN_ONE])
            self.note(feed.readings(readings))
            await asyncio.sleep(0)

    async def _legacy_rows(self, queries: Queries, session: Session, feed: Feed, *, first: bool = False) -> None:
        """New and unfinished rows of failover_jobs; and those that were unfinished, to see how they ended."""
        if not self.legacy or not queries.schema.has("failover_jobs", "id", "job_id", "status"):
            return
        ended = "('completed', 'failed', 'cleanup')"
        if first:
            since = await queries.clock(session, self.retention)
            mark = queries.dialect.placeholder
            found = await queries.legacy_where(session, f"status NOT IN {ended} OR created_at >= {mark}", (since,))
            self._legacy_id = max(self._legacy_id, await queries.last_legacy_id(session))
        else:
            active = ", ".join(f"'{s}'" for s in LEGACY_ACTIVE)
            found = await queries.legacy_where(session, f"status IN ({active})")
            found += await queries.legacy_where(session, f"id > {self._legacy_id - LEGACY_TAIL}")
        rows = {r.id: r for r in found}
        unfinished = {r.id: r for r in feed.unfinished_legacy()}
        if asked := [i for i in unfinished if i not in rows]:
            again = await queries.legacy_where(session, f"id IN ({','.join(map(str, asked))})")
            rows |= {r.id: r for r in again}
        self._legacy_id = max([self._legacy_id, *rows])
        gone = [unfinished[i].job_id for i in asked if i not in rows]
        feed.legacy(await self._owned(queries, session, feed, rows.values()), gone)

    async def _owned(
        self, queries: Queries, session: Session, feed: Feed, rows: Iterable[LegacyRecord]
    ) -> list[LegacyRecord]:
        """`rows`, those marked whose ID is an external one of a JobLog job that is no longer in memory."""
        found: list[LegacyRecord] = []
        for row in rows:
            owned = False
            if row.job_id not in self._looked_up and not feed.claimed(row.job_id):
                self._looked_up.add(row.job_id)
                tracking = queries.schema.has("job_tracking", "id")
                owned = tracking and bool(await self.lookup.by_external_id(queries, session, row.job_id))
            found.append(replace(row, claimed=True) if owned else row)
        return found
