"""Reconciliation: it reads job_tracking and job_steps, the authority on jobs, and corrects what the log left out.

The problem: the log announces most changes first, but not all of them. JobLog drops rows under load, processes die
without a last row, and people change and delete rows by hand. The tables have the truth, but cannot be read as a
whole every second.

The model: a job is read (`read_readings`) when the log first mentions it, when it ends and twice after that, and every
`interval` while it is active. A silent job is read more and more rarely, but at least every `SILENT_EVERY` (`Cadence`);
a log row or a new updated_at makes it active again. While the database says that the tables have not changed, only a
few jobs are read (`_to_read`). Each interval, indexed queries find what was updated, began or ended since the last
ones. All ended jobs in memory are read again within `ROUND`, which finds deletions, and so are listed those that belong
in memory, which finds what somebody has restored. A job that is gone is looked for (`Absent`) for as long as the index
keeps it. While job_steps fails, jobs are read without it (`pause_steps`), until everything has been read with it again.
If only the steps of several jobs together take too long, each job is read by itself, the slow ones last (`_read`).

Invariants: every reading gets its logical time before its query begins, so that a row of the log that is newer than the
query is never overwritten (`Feed.advance_clock`). One session runs one query at a time, and none of them scans a whole
table. The time mark of the next query only moves after a query has succeeded.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from zlib import crc32

from correlator.bounded import BoundedDict, Schedule, chunks
from correlator.errors import Away, SourceUnavailable
from correlator.model.facts import Reading
from correlator.model.published import LOST, Outcome
from correlator.model.rows import Micros
from correlator.ops import metrics
from correlator.pipeline.source_status import SourcePart
from correlator.sources import Feed
from correlator.sources.db.queries import Queries, read_readings
from correlator.sources.db.session import Session
from correlator.tasks import set_within, until_next

GROWTH = 10
"""A job that has been silent for t seconds is read again after t / GROWTH."""

TOGETHER = 0.02
"""Seconds by which a first reading is delayed, so that others share its query."""

READ_TOGETHER = 100
"""Most jobs in one query and one call of the feed: with ten steps each, about 10 ms without another task."""

STEPS_TOGETHER = 2_000
"""Maximum number of steps in one call of the feed, which takes about 10 ms. A job with more is passed alone."""

SLOW_FOR, MAX_SLOW = 60.0, 1_000
"""Seconds for which a job with slow steps is read by itself, and the most such jobs. InnoDB walks over all steps that a
transaction has not committed yet: 100,000 of them take 0.15 s."""

AGAIN_AFTER = (0.0, 2.0, 30.0)
"""Seconds after the end of a job at which it is read again: it may end twice."""

WATCHED_EVERY = 0.05
"""Seconds between queries for new jobs while a client waits for an ID."""

DOORBELL_EVERY = 0.2
"""Fewest seconds between queries that the doorbell triggers."""

ROUND = 300.0
"""Seconds within which every ended job in memory is read again."""

BEHIND = 2_000
"""Jobs that were ended in the checkpoint and are read again at each interval after a restart, behind all others."""

SILENT_EVERY = 120.0
"""Most seconds between two readings of a job that has not ended and is silent."""

SILENT_WITHOUT_STAMP = 10.0
"""The same on an appliance whose job_tracking has no updated_at: nothing else shows that a percentage changes."""

ALL_ACTIVE_EVERY = 60.0
"""Seconds between comparisons of the active jobs in the table and in memory. A changed number in the table triggers an
earlier one, but at least n / `ALL_ACTIVE_RATE` intervals after the last one, where n is that number."""

ALL_ACTIVE_RATE = 500

SEEK_GROWTH = 20
"""Jobs that are gone are looked for again after a 1/`SEEK_GROWTH` of the time since the last of them went."""

UNCHANGED_FOR = 10
"""Seconds after a change of the tables in which jobs are read as if there were more. Only a transaction that lasts for
longer may commit a change that the time of the last one does not show."""

POSTPONED_FOR = 60.0
"""Most seconds for which the reading of a job waits for a change of the tables."""

ZONES_AT_ONCE = 3
"""Further changes of the server's zone that may follow the first one quickly, because somebody corrects it."""

UNSEEN = 10.0
"""Seconds without a complete reading of the tables, after which all active jobs are read first: any of them may have
changed in a way that no time in the tables shows."""

LATE_COMMIT = 61.0
"""Seconds by which a commit may lag behind its started_at or completed_at: a minute, and they have whole seconds."""


@dataclass(slots=True)
class Reconcile:
    """What to read next, and the task that reads it. It outlives connections.

    Args:
        interval: Seconds between two readings of an active job.
        retention: Seconds back for which ended jobs are loaded.
        max_jobs: Jobs that memory holds: of those that have ended, only the newest are loaded.
        zone_every: Seconds between two readings of all jobs because the server's zone changes again and again.
        slow_alone: Seconds of the reading of one job from which on its steps are slow.
    """

    interval: float = 1.0
    retention: float = 86_400.0
    max_jobs: int = 20_000
    zone_every: float = 60.0
    slow_alone: float = 0.05
    _urgent: set[str] = field(default_factory=set)
    _steps: set[int] = field(default_factory=set)
    _later: list[tuple[float, str]] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _round: list[str] = field(default_factory=list)
    _share: int = 1
    behind: bool = False
    """True while jobs of the checkpoint that had ended have not been read since the restart."""
    _cadence: Cadence = field(init=False)
    _postponed: dict[str, None] = field(default_factory=dict)
    """The jobs to read once the tables have changed, those that wait for the longest first."""
    _changes: object = None
    """What showed changes of the tables at the last query."""
    _stamps: dict[str, int] = field(default_factory=dict)
    """The updated_at of recently updated jobs, as of the last query."""
    _active_count: int = -1
    _compared: float = -math.inf
    _mark: str | None = None
    """The database's time from which the next query reads. It outlives connections: jobs also change between two."""
    _doorbell_rang: bool = False
    _listed_at: float = math.inf
    """When the jobs that belong in memory were last listed, in monotonic seconds. `inf`: they have to be loaded."""
    _absent: Absent = field(init=False)
    log_from: Micros | None = None
    """The log has to be read again from this time on: jobs have come back of which nobody remembers what it said."""
    log_needed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while `log_from` is not None, by each job that comes back."""
    _round_at: float = -math.inf
    """When the tables were last read completely, in monotonic seconds."""
    _zone_due: float = -math.inf
    """When all jobs may be read again for a change of the zone; the first ones may come sooner. Monotonic seconds."""
    _zone_changes: int = 0
    """The changes of the zone after which all jobs were read: their times may read differently."""
    steps_paused: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while jobs are read without their steps."""
    _without_steps: set[str] = field(default_factory=set)
    """The jobs that were read without their steps since then, or since `load_steps` began."""
    _slow: BoundedDict[str, float] = field(default_factory=lambda: BoundedDict(MAX_SLOW))
    """The jobs that are read by themselves, and the monotonic seconds until which they are."""

    def __post_init__(self) -> None:
        self._cadence = Cadence(self.interval)
        self._absent = Absent(self.interval)
        for kind in LOST:
            metrics.CORRECTIONS.labels(kind)  # nothing lost is a series with the value 0, not a missing one

    def note(self, outcome: Outcome) -> None:
        """Schedule the readings that an outcome requires, and count its corrections. Call it for every outcome."""
        for kind in outcome.lost:
            metrics.CORRECTIONS.labels(kind).inc()
        now = time.monotonic()
        self._cadence.touch(
            {t.job_id for t in outcome.attributed if t.job_id} | {c.job_id for c in outcome.changes}, now
        )
        if outcome.unread or outcome.unread_steps:
            self._urgent |= outcome.unread
            self._steps |= outcome.unread_steps
            self._wake.set()
        if outcome.log_from is not None:
            self.log_from = min(outcome.log_from, self.log_from if self.log_from is not None else outcome.log_from)
            self.log_needed.set()
        for job_id in outcome.ended:
            for after in AGAIN_AFTER:
                heapq.heappush(self._later, (now + after, job_id))
            self._wake.set()

    async def load(self, queries: Queries, session: Session, feed: Feed, *, all_steps: bool = False) -> None:
        """Read every job that belongs in memory: not ended, or among the newest of the retention.

        After a restart, `follow` reads those that had ended in the checkpoint (`behind`). `all_steps`: read all of them
        now, with their steps though these are paused. Raises `SourceUnavailable`.
        """
        began, self.behind = time.monotonic(), False
        if queries.schema.has("job_tracking", "id", "status"):
            since = await queries.clock(session, self.retention)
            _note_time(queries, feed, since, self.retention, began)
            active = await queries.active_ids(session)
            listed = await self._list(queries, session, feed, since, len(active))
            ids = active.union(feed.known.joblog_ids(), listed)
            if feed.status.restored_jobs and not all_steps:
                self._round, self._share = [i for i in ids - active if feed.known.has_ended(i)], BEHIND
                self.behind = bool(self._round)
                ids.difference_update(self._round)
            await self._read(queries, session, feed, ids, with_steps=all_steps)
        self._read_all(queries, feed, began)
        if not self.behind:
            feed.status.read_again(SourcePart.JOBS)

    async def _list(self, queries: Queries, session: Session, feed: Feed, since: str, active: int) -> set[str]:
        """The newest jobs since then that belong in memory if they have ended, beside `active` ones that have not."""
        ended = await queries.newest_since(session, since, "completed_at", self.max_jobs - active)
        begun = await queries.newest_since(session, since, "started_at", self.max_jobs)
        if len(begun) == self.max_jobs:
            feed.left_out(begun[-1][1] or 0)
        self._listed_at = time.monotonic()
        return {i for i, _ in ended} | {i for i, _ in begun}

    def _read_all(self, queries: Queries, feed: Feed, began: float) -> None:
        """Note a complete reading that began at this time, in monotonic seconds. None is complete without the jobs."""
        if "job_tracking" not in queries.lost:
            self._round_at = time.monotonic()
            feed.status.tables_read(self._round_at - began)

    def pause_steps(self) -> None:
        """Read jobs without their steps from now on: a query of job_steps has failed."""
        self.steps_paused.set()

    def resume_steps(self) -> None:
        """Read jobs with their steps again."""
        self.steps_paused.clear()
        self._urgent |= self._without_steps
        self._without_steps.clear()
        self._wake.set()

    async def load_steps(self, queries: Queries, session: Session, feed: Feed) -> None:
        """Load all jobs with their steps, and read them from then on. Raises `SourceUnavailable`, and stays paused."""
        self._without_steps.clear()
        await self.load(queries, session, feed, all_steps=True)
        self.resume_steps()

    async def follow(self, queries: Queries, session: Session, feed: Feed) -> None:
        """Read the jobs that are due until cancelled. Raises `SourceUnavailable`."""
        tracking = queries.schema.has("job_tracking", "id", "status")
        regular_due, doorbell_due, watched_due = 0.0, 0.0, 0.0
        self._stamps, self._compared = {}, -math.inf  # the end of the last connection may have interrupted a query
        everything = time.monotonic() - self._round_at > UNSEEN
        if self._mark is None:
            self._mark = await queries.clock(session, LATE_COMMIT)
        while True:
            now = time.monotonic()
            if now >= regular_due:
                self._doorbell_rang = False
                regular_due, doorbell_due = now + until_next(self.interval, now), now + DOORBELL_EVERY
                if everything and tracking:
                    await self._read(queries, session, feed, await queries.active_ids(session) | feed.known.active())
                    everything = False
                self._mark = await self._regular(queries, session, feed, self._mark, tracking=tracking)
                if (
                    tracking
                    and self._zone_changes != queries.zone.changes
                    and now >= self._zone_due - ZONES_AT_ONCE * self.zone_every
                ):
                    changes, self._zone_due = queries.zone.changes, max(self._zone_due, now) + self.zone_every
                    await self._read(queries, session, feed, feed.known.joblog_ids())
                    self._zone_changes = changes
                self._read_all(queries, feed, now)
                feed.status.part_answered(SourcePart.JOBS)
            elif tracking and self._doorbell_rang and now >= doorbell_due:
                self._doorbell_rang, doorbell_due = False, now + DOORBELL_EVERY
                ids = await self._stamped(queries, session, self._mark)
                ids |= await self._recent(queries, session, feed, self._mark)
                await self._read(queries, session, feed, ids.union(self._cadence.lively(now)))
            elif tracking and now >= watched_due and feed.waiting_ids.has_waiting_ids():
                watched_due = now + WATCHED_EVERY
                await self._newcomers(queries, session, feed)
            while self._later and self._later[0][0] <= now:
                self._urgent.add(heapq.heappop(self._later)[1])
            if tracking:
                await self._read_urgent(queries, session, feed)
            else:
                self._urgent.clear()
                self._steps.clear()
            until = min(regular_due, watched_due) if tracking and feed.waiting_ids.has_waiting_ids() else regular_due
            await self._wait(min(until, doorbell_due) if self._doorbell_rang else until)

    async def _read_urgent(self, queries: Queries, session: Session, feed: Feed) -> None:
        """Read the jobs that are due at once. After a failure the next connection reads them."""
        if self._steps and not self.steps_paused.is_set():
            steps, self._steps = self._steps, set()
            try:
                self._urgent.update((await queries.jobs_of_steps(session, steps)).values())
            except BaseException:
                self._steps |= steps
                raise
        if self._urgent:
            urgent, self._urgent = self._urgent, set()
            try:
                await self._read(queries, session, feed, urgent)
            except BaseException:
                self._urgent |= urgent
                raise

    async def _wait(self, until: float) -> None:
        """Sleep until `until` (monotonic seconds), the next reading after an end, or an earlier wake-up."""
        if self._later:
            until = min(until, self._later[0][0])
        if await set_within(self._wake, max(0.0, until - time.monotonic())):
            self._wake.clear()
            await asyncio.sleep(TOGETHER)

    def on_watch(self) -> None:
        """Query new jobs now: a client has begun to wait for an ID."""
        self._wake.set()

    def on_doorbell(self) -> None:
        """Query changed jobs now: the doorbell has reported a change of the tables."""
        self._doorbell_rang = True
        self._wake.set()

    async def _regular(self, queries: Queries, session: Session, feed: Feed, mark: str, *, tracking: bool) -> str:
        """Run the queries of every interval. Returns the time mark for the next ones."""
        asked = time.monotonic()
        if tracking:
            following, count = await queries.clock_and_active_count(session, LATE_COMMIT)
            _note_time(queries, feed, following, LATE_COMMIT, asked)
            ids = await self._stamped(queries, session, mark, active=count)
            recent = await self._recent(queries, session, feed, mark)
            ids |= {i for i in recent if not feed.known.is_in_memory(i)}
            now, active = time.monotonic(), feed.known.active()
            ids |= await self._compare(queries, session, count, active, now)
            stamped = queries.schema.has("job_tracking", "updated_at")
            longest = SILENT_EVERY if stamped else SILENT_WITHOUT_STAMP
            if self._absent.is_due(away := feed.known.away(), now):
                ids |= await queries.existing(session, away)
            if now - self._listed_at > ROUND:
                since = await queries.clock(session, self.retention)
                listed = await self._list(queries, session, feed, since, count)
                ids |= {i for i in listed if feed.known.is_new(i)}
            at = feed.status.clock()
            due = self._cadence.due(active, lambda i: feed.known.silent_for(i, at), now, longest)
            ids.update(
                self._to_read([*recent - ids, *due], changed=not count or await self._have_changed(queries, session))
            )
            if not self._round:
                self._round = [i for i in feed.known.joblog_ids() if i not in active]
                self._share = math.ceil(len(self._round) * self.interval / ROUND)
            share = self._round[-self._share :]
            del self._round[-self._share :]
            try:
                await self._read(queries, session, feed, ids.union(filter(feed.known.is_in_memory, share)))
            except BaseException:
                self._round += share if self.behind else ()
                raise
            if self.behind and not self._round:
                self.behind = False
                feed.status.read_again(SourcePart.JOBS)
        else:
            following = await queries.clock(session, LATE_COMMIT)
            _note_time(queries, feed, following, LATE_COMMIT, asked)
        return following

    async def _have_changed(self, queries: Queries, session: Session) -> bool:
        """True if the tables may have changed since the last query."""
        tables = [table for table in ("job_tracking", "job_steps") if queries.schema.has(table)]
        before = self._changes
        self._changes, age = await queries.last_changes(session, *tables)
        return self._changes is None or self._changes != before or age <= UNCHANGED_FOR

    def _to_read(self, due: Iterable[str], *, changed: bool) -> list[str]:
        """The jobs to read of those that are due and those that were postponed. The others are postponed."""
        self._postponed.update(dict.fromkeys(due))
        count = len(self._postponed)
        if not changed:
            count = math.ceil(count * self.interval / POSTPONED_FOR)
        found = list(islice(self._postponed, count))
        for job_id in found:
            del self._postponed[job_id]
        return found

    async def _stamped(self, queries: Queries, session: Session, mark: str, *, active: int | None = None) -> set[str]:
        """Jobs updated since the last query. `active`: the number of active jobs, if it has just been counted."""
        if not queries.schema.has("job_tracking", "updated_at"):
            return set()
        stamps = await queries.active_since(session, mark) if active != 0 else {}
        ids = {i for i, at in stamps.items() if self._stamps.get(i) != at}
        self._stamps = stamps
        return ids

    async def _recent(self, queries: Queries, session: Session, feed: Feed, mark: str) -> set[str]:
        """Jobs that began or ended since `mark` and may have changed."""
        recent = await queries.ids_since(session, mark, "started_at", "completed_at")
        return {i for i in recent if feed.known.needs_reading(i)}

    async def _compare(self, queries: Queries, session: Session, count: int, active: set[str], now: float) -> set[str]:
        """Jobs that have ended in the table but not in memory, or the reverse; empty if no comparison is due.

        `count` is the number of active jobs in the table.
        """
        rest = ALL_ACTIVE_EVERY if count == self._active_count else count / ALL_ACTIVE_RATE * self.interval
        if now - self._compared < rest:
            return set()
        ids = await queries.active_ids(session)
        self._active_count, self._compared = count, now
        return ids ^ active

    async def _newcomers(self, queries: Queries, session: Session, feed: Feed) -> None:
        since = await queries.clock(session, 5.0)
        ids = {i for i in await queries.ids_since(session, since, "started_at") if feed.known.is_new(i)}
        await self._read(queries, session, feed, ids)

    async def _read(
        self,
        queries: Queries,
        session: Session,
        feed: Feed,
        job_ids: Iterable[str],
        *,
        with_steps: bool = False,
    ) -> None:
        """Read jobs. `with_steps`: with their steps though these are paused.

        Those whose steps take long are read after all others, each by itself.
        """
        now, wanted = time.monotonic(), sorted(job_ids)
        alone = [i for i in wanted if self._slow.get(i, now) > now]
        for part in chunks([i for i in wanted if self._slow.get(i, now) <= now], READ_TOGETHER):
            try:
                await self._read_together(queries, session, feed, part, with_steps=with_steps)
            except SourceUnavailable as error:
                if error.reason is not Away.SLOW or error.table != SourcePart.STEPS.table or len(part) == 1:
                    raise
                alone += part
        for job_id in alone:
            began = time.monotonic()
            await self._read_together(queries, session, feed, [job_id], with_steps=with_steps)
            if time.monotonic() - began <= self.slow_alone:
                self._slow.pop(job_id, None)
            elif self._slow.get(job_id, began) <= began:
                self._slow[job_id] = began + SLOW_FOR

    async def _read_together(
        self, queries: Queries, session: Session, feed: Feed, job_ids: Sequence[str], *, with_steps: bool
    ) -> None:
        steps = with_steps or not self.steps_paused.is_set()
        if not steps:
            self._without_steps.update(job_ids)
        readings = await read_readings(
            queries,
            session,
            feed.advance_clock(),
            job_ids,
            feed.known.reading,
            with_steps=steps,
            briefly=len(job_ids) > 1,
        )
        for some in _of_few_steps(readings):
            self.note(feed.readings(some))
            await asyncio.sleep(0)


def _of_few_steps(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """Readings in parts of at most `STEPS_TOGETHER` steps, or of one job."""
    some, steps = list[Reading](), 0
    for one in readings:
        steps += len(one.steps or ())
        if some and steps > STEPS_TOGETHER:
            yield some
            some, steps = [], len(one.steps or ())
        some.append(one)
    yield some


class Absent:
    """When jobs that are gone are looked for: often at first, as most that come back do so at once.

    Args:
        shortest: Seconds between two searches.
    """

    def __init__(self, shortest: float) -> None:
        self._shortest = shortest
        self._newest: str | None = None
        self._since = self._due = 0.0

    def is_due(self, away: Sequence[str], now: float) -> bool:
        """True if they are to be looked for now. `away`: their IDs, in the order in which they went."""
        if not away:
            return False
        if away[-1] != self._newest:
            self._newest, self._since, self._due = away[-1], now, now
        if now < self._due:
            return False
        self._due = now + max(self._shortest, (now - self._since) / SEEK_GROWTH)
        return True


class Cadence:
    """When a job that has not ended is read again: often while it is active, more and more rarely while it is silent.

    A job whose process died stays `running` forever, and a thousand of them must not cost what a thousand live ones do.
    Invariant: each job of the last `due` is due within `longest` seconds, and right after `touch`. Times are monotonic.

    Args:
        shortest: Seconds between two readings of an active job.
    """

    def __init__(self, shortest: float) -> None:
        self._shortest = shortest
        self._alive: dict[str, float] = {}
        """When each job was last active."""
        self._due = Schedule[str]()

    def touch(self, job_ids: Iterable[str], now: float) -> None:
        """Record activity of these jobs. Unknown ones are ignored: `due` adds them."""
        for job_id in job_ids:
            if job_id in self._alive:
                self._alive[job_id] = now
                self._due.put_earlier(job_id, now)

    def due(
        self, active: AbstractSet[str], silent_for: Callable[[str], float], now: float, longest: float
    ) -> list[str]:
        """The jobs to read now; their next reading is scheduled.

        Args:
            active: All jobs that have not ended.
            silent_for: Seconds since the last activity of a job; called for new ones.
            longest: Seconds between two readings of a silent job.
        """
        for job_id in active - self._alive.keys():
            self._alive[job_id] = now - max(0.0, silent_for(job_id))
            # The first round is spread: otherwise all jobs of a start would be due together, again and again.
            self._due.put(job_id, now + self._wait(job_id, now, longest) * crc32(job_id.encode()) / 2**32)
        found = []
        for job_id in self._due.pop_until(now, len(self._due)):
            if job_id in active:
                found.append(job_id)
                self._due.put(job_id, now + self._wait(job_id, now, longest))
            else:
                del self._alive[job_id]
        return found

    def lively(self, now: float) -> list[str]:
        """The jobs that are read at the shortest interval."""
        return [i for i, at in self._alive.items() if now - at < self._shortest * GROWTH]

    def _wait(self, job_id: str, now: float, longest: float) -> float:
        return max(self._shortest, min(longest, (now - self._alive[job_id]) / GROWTH))


def _note_time(queries: Queries, feed: Feed, text: str, back: float, asked: float) -> None:
    """Report the time of `Queries.clock`, which was asked at this time, in monotonic seconds."""
    feed.status.database_time(queries.micros(text) + int(back) * 1_000_000, time.monotonic() - asked)
