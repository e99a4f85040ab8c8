"""The pipeline: the only writer. It applies what the source reads to the index, and publishes the outcome to the hub.

Problem. Facts about one job come from several tasks (the log's tail, the comparison with the tables, the archive), and
time alone changes jobs too. Subscribers must see one ordered stream of changes.

Model. Every task calls a method of `Pipeline` with what it has read (`correlator.sources.Feed` is the protocol). The
method parses the rows; `LocalHub` applies them to the index, and passes the returned `Outcome` to its subscribers and
to the counters. `Pipeline` decides when the daemon is ready. What the source reports of itself is kept by
`SourceStatus`.

Invariants.

* Each of these calls is synchronous: it ends before another begins, so outcomes are published in the order of `seq`.
* `ready` is set once and only after the tables have been read. Then the log's past has been read too, or was given
  `SHORT_PAST` seconds, or is read on in the background.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

from msgspec.structs import asdict

from correlator.failures.known import KnownFailures
from correlator.forecast.forecaster import Operation, OperationKey
from correlator.forecast.points import EndedRun
from correlator.jobs import fold, joblog, sizes
from correlator.jobs.directory import PublishedJobs, family
from correlator.jobs.index import Index
from correlator.model.facts import Entry, Fact, Job, Reading
from correlator.model.persisted import IndexState, PersistedJob, PersistedLegacy
from correlator.model.published import Outcome, PublishedJob, Reason
from correlator.model.replies import OperationRuns, OperationWithSteps, Resolved, UsualStep
from correlator.model.rows import LegacyRecord, LogRow, Micros
from correlator.ops import metrics
from correlator.ops.event_loop import STUCK_AFTER, spare_loaded, timed
from correlator.pipeline.failure_answers import FailureAnswers
from correlator.pipeline.hub import Batch, Hub, ResumeRing, available, wall_clock
from correlator.pipeline.job_metrics import JobMetrics
from correlator.pipeline.past_failures import read_past_failures
from correlator.pipeline.queries import (
    Archive,
    CompareFailure,
    DescribeFailure,
    FailedAlike,
    FindLines,
    Found,
    IsContext,
    JobQuery,
    LegacyRow,
    LinesFound,
    LogLines,
    Operations,
    OtherJobs,
    Question,
    UsualSteps,
)
from correlator.pipeline.source_status import ApplianceClock, SourceStatus
from correlator.tasks import EXPIRE_OFFSET, FORECASTS_OFFSET, TaskGroup, set_within, until_next

A = TypeVar("A")


class LocalHub(Hub):
    """The hub of a daemon: the index with its subscribers. Event loop's thread only.

    It is the publisher: what was read is applied to the index here, and the `Outcome` goes to the subscribers and the
    counters. `epoch` is new at every start. `archive`: the database; None: memory only. `known_failures`: returns what
    operators know of failures now.
    """

    published: PublishedJobs
    status: SourceStatus
    archive: Archive | None

    def __init__(
        self,
        index: Index,
        archive: Archive | None = None,
        *,
        epoch: str = "",
        resume_ring: ResumeRing | None = None,
        on_watch: Callable[[], None] = lambda: None,
        refusal: Callable[[], str | None] = lambda: None,
        known_failures: Callable[[], KnownFailures] = KnownFailures,
        clock: Callable[[], Micros] = wall_clock,
    ) -> None:
        status = SourceStatus(index, ApplianceClock(clock))
        super().__init__(
            index.published,
            status,
            epoch or secrets.token_hex(6),
            archive,
            resume_ring=resume_ring,
            on_watch=on_watch,
            refusal=refusal,
            clock=status.clock,
        )
        self.index = index
        self.forecasts = index.forecasts
        self.readiness["tables"] = status.describe_tables
        self._job_metrics = JobMetrics(index.forecasts)
        self._failures = FailureAnswers(index.failures, self.page, known_failures)

    # -- called by the writer

    def apply(self, facts: Iterable[Fact]) -> Outcome:
        """Apply what has just been read to the index, and publish the outcome."""
        outcome = self.publish(self.index.apply(facts, self.clock()))
        self.status.measure(outcome)
        return outcome

    def readings(self, readings: Iterable[Reading]) -> Outcome:
        """Apply what the tables say of jobs: what the source has read, or what a client has asked for."""
        with timed("readings"):
            outcome = self.apply([one for one in readings if not self.index.is_overtaken(one)])
        if self.status.loading:
            spare_loaded()
        return outcome

    def publish(self, outcome: Outcome) -> Outcome:
        """Pass `outcome` to the counters, and to every subscriber as one batch, if it changed anything. Returns it."""
        if outcome.dropped:
            metrics.TRANSITIONS_DROPPED.inc(outcome.dropped)
        lines = () if self.index.loading else outcome.attributed
        if outcome.changes or outcome.events or lines:
            self._resume_ring.add(outcome.changes)
            self._deliver(Batch(self.published.seq, outcome.changes, outcome.events, lines))
            self._job_metrics.count(outcome.changes, self.status.since)
        return outcome

    # -- called for clients

    @property
    def running(self) -> int:
        return len(self.index.known.active())

    def reaches(self, seq: int) -> bool:
        return seq <= self.seq and self._resume_ring.reaches(seq)

    def changed(self) -> Iterator[tuple[str, int]]:
        return self._resume_ring.changed()

    def reason(self, job_id: str) -> Reason | None:
        return self._resume_ring.reason(job_id)

    async def reached(self, seq: int, within: float) -> bool:
        """Return at once: no position of this epoch is ahead of this hub."""
        del within
        return seq <= self.seq

    async def is_behind(self, seq: int) -> bool:
        """False: this process writes the stream."""
        del seq
        return False

    async def _search(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        found = await available(self.archive).find(name, self.index.advance_clock)
        if found is None:
            return None
        if found.reading is not None:
            self.readings([found.reading])
        return self._from_archive(found)

    def _from_archive(self, found: Found) -> tuple[PublishedJob, Resolved] | None:
        if found.legacy is not None:
            return self._archived_legacy(found.legacy), found.resolved
        assert found.reading is not None
        shown = self.archived(found.reading)
        return (shown, found.resolved) if shown is not None else None

    def archived(self, reading: Reading) -> PublishedJob | None:
        """Return a job built from its tables alone, with the current `seq`; None if it has no record.

        A job that came into memory since the query is returned as it is published: a `rev` has one document.
        """
        if reading.record is None:
            return None
        if (published := self.published.get(reading.job_id)) is not None:
            return published
        job = fold.fold(Job(reading.job_id), reading)
        children = family(reading.children, reading.child_count, [])
        updated, view = reading.record.updated_at or fold.alive_at(job), fold.view(job, self.index.id_keys)
        return PublishedJob(
            view,
            self.seq,
            updated,
            children.ids,
            children.count,
            alive_at=fold.alive_at(job),
            titles=self.index.published.titles,
            failure=self.index.failures.archived(view, fold.alive_at(job), reading),
        )

    def _archived_legacy(self, row: LegacyRecord) -> PublishedJob:
        """Return a legacy job built from its row, with the current `seq`, or as it is published."""
        if (published := self.published.get(row.job_id)) is not None:
            return published
        updated_at, titles = row.updated_at or row.created_at or 0, self.index.published.titles
        view = fold.legacy_view(row)
        failure = self.index.failures.archived(view, fold.legacy_alive_at(row), None)
        return PublishedJob(view, self.seq, updated_at, titles=titles, failure=failure)

    def _is_owned(self, name: str) -> bool:
        """True if a JobLog job in memory has this ID, and no legacy job is published under it."""
        return self.published.is_joblog_id(name) and self.published.get(name) is None

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, known: Callable[[str], bool]
    ) -> OtherJobs[PublishedJob]:
        if query.instance:
            return OtherJobs((), None)  # the database is of one appliance, and no job in it names that
        found = await available(self.archive).page(query, before, limit, self.index.advance_clock, known)
        jobs = [shown for reading in found.readings if (shown := self.archived(reading)) is not None]
        # Memory knows more IDs of a job than its tables: those that only rows of the log name, in their attrs.
        jobs += [self._archived_legacy(row) for row in found.legacy if not self._is_owned(row.job_id)]
        return OtherJobs(jobs, found.next_before)

    async def ask(self, question: Question[A]) -> A:
        asked: Question[Any] = question
        answer: Any
        match asked:
            case LogLines():
                answer = await available(self.archive).lines(asked)
            case FindLines():  # the lines of one appliance do not name it
                answer = LinesFound() if asked.instance else await available(self.archive).find_lines(asked)
            case IsContext(name):
                answer = await available(self.archive).is_context(name)
            case LegacyRow(name):
                answer = await self._legacy_row(name)
            case Operations():
                known = sorted(self.forecasts.forecaster, key=lambda found: found[0])
                answer = tuple(_runs(key, operation) for key, operation in known)
            case UsualSteps(job_type, operation):
                answer = self._usual_steps((job_type, operation))
            case FailedAlike():
                answer = await self._failures.alike(asked)
            case DescribeFailure():
                answer = await self._failures.describe(asked)
            case CompareFailure(job_id):
                found = await self.find(job_id)
                answer = await self._failures.compare(asked, found[0] if found is not None else None)
        return cast("A", answer)

    async def _legacy_row(self, name: str) -> LegacyRecord | None:
        if (record := self.index.known.legacy(name)) is not None:
            return record
        found = await available(self.archive).find(name, self.index.advance_clock)
        return found.legacy if found is not None else None

    def _usual_steps(self, key: OperationKey) -> OperationWithSteps | None:
        operation = self.forecasts.forecaster.operation(key)
        if operation is None:
            return None
        steps = [
            UsualStep(step.name, _rounded(step.share), _rounded(step.typical_seconds))
            for step in operation.steps.ahead(None)
        ]
        return OperationWithSteps(**asdict(_runs(key, operation)), steps=tuple(steps))


def _runs(key: OperationKey, operation: Operation) -> OperationRuns:
    durations = operation.durations
    typical, p90 = (_rounded(durations.quantile(q)) if len(durations) else None for q in (0.5, 0.9))
    return OperationRuns(key[0] or None, key[1], len(durations), typical, p90, _rounded(operation.failure_rate))


def _rounded(number: float) -> float:
    """A number of 7 digits, which is how they are kept, without the digits that their conversion adds."""
    return round(number, 3)


# -- the writer


log = logging.getLogger(__name__)

EXPIRE_EVERY = 1.0
"""Seconds between two calls of `expire`."""

SHORT_PAST = 0.5
"""Seconds that readiness waits for the log's past, so that a short log is complete in the first response."""

PUBLISHED_AT_ONCE = 200
"""Jobs that are published in one call once the past has been read."""

LEARN_WITHIN = 5_000_000
"""Microseconds. Ended runs are learned while the log has been read up to at most so long ago: rows come first."""

QUIET_AFTER = 10.0
"""Seconds without a row, a running job or a new or closed connection, after which polling slows down."""


class Pipeline:
    """Applies and publishes what the source reads. Event loop's thread only.

    `max_error`: bytes of an error text that are published.
    """

    def __init__(self, hub: LocalHub, *, max_error: int = sizes.MAX_ERROR) -> None:
        self._max_error = max_error
        self._hub = hub
        self._index = hub.index
        self.known = hub.index.known
        self.waiting_ids = hub.waiting_ids
        self.status = hub.status
        self.live = hub.live
        self.advance_clock = hub.index.advance_clock
        self._clock = hub.clock
        self._reading_rows = timed("rows")
        self._clients = 0
        self._active_at = time.monotonic()
        self.readings = hub.readings
        self.ready = asyncio.Event()

    async def run(self, before_ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run the periodic housekeeping until cancelled.

        `before_ready` is awaited once, after the tables have been read and before `ready` is set.
        """
        async with TaskGroup() as tasks:
            tasks.create_task(self._become_ready(before_ready), name="ready")
            tasks.create_task(self._follow_forecasts(), name="forecasts")
            tasks.create_task(self._read_past_failures(), name="past failures")
            with self.live.heartbeat("pipeline", STUCK_AFTER) as beat:
                while True:
                    await asyncio.sleep(until_next(EXPIRE_EVERY, time.monotonic(), EXPIRE_OFFSET))
                    self.expire()
                    self.status.judge()
                    beat()

    def expire(self) -> Outcome:
        """Apply what time alone changes: stalled and expired jobs."""
        with timed("expire"):
            return self._hub.publish(self._index.expire(self._clock()))

    def renew_forecasts(self) -> bool:
        """Learn some ended runs, and renew some forecasts. Returns True while there is more to do at once."""
        now = self._clock()
        learn = self._index.horizon.log_read_to >= now - LEARN_WITHIN
        with timed("forecasts"):
            self._hub.publish(self._index.renew_forecasts(now, learn=learn))
        return self._index.forecasts.has_due(now, learn=learn)

    def decide_failures(self) -> bool:
        """Publish of some failures whether they are new. Returns True while there are more."""
        with timed("failures"):
            self._hub.publish(self._index.decide_failures(self._clock()))
        return self._index.failures.has_undecided()

    async def _read_past_failures(self) -> None:
        await self.ready.wait()
        await read_past_failures(self._index, self._hub.archive)

    async def _follow_forecasts(self) -> None:
        await self.ready.wait()
        while True:
            more = self.renew_forecasts() | self.decide_failures()
            await asyncio.sleep(0 if more else until_next(EXPIRE_EVERY, time.monotonic(), FORECASTS_OFFSET))

    async def _become_ready(self, before_ready: Callable[[], Awaitable[None]] | None) -> None:
        await self.status.tables_loaded.wait()
        # Without job_tracking only the log has jobs: there is nothing to serve before it has been read.
        await set_within(self.status.complete, SHORT_PAST if self._index.tracking else None)
        if before_ready is not None:
            await before_ready()
        self.status.loading = False
        log.info("ready: %d jobs in memory", len(self._hub.published))
        self.ready.set()

    async def restore(
        self,
        kept: Sequence[PersistedJob],
        legacy: Sequence[PersistedLegacy],
        memory: IndexState,
        age: float,
        *,
        past: bool = False,
    ) -> None:
        """Publish the state that the last run saved `age` seconds ago, as stale, some hundred jobs per step.

        `past`: the last run had not read all of the log's past, and the source continues with it.
        """
        now = self._clock()
        if past:
            self.status.past_begins()
        else:
            self.status.complete.set()
        steps, more = self._index.restore(kept, legacy, memory, now), True
        while more:
            spare_loaded()
            with timed("restore"):
                outcome = next(steps, None)
                if more := outcome is not None:
                    self._hub.publish(outcome)
            await asyncio.sleep(0)
        self.status.restored(now, age)

    # -- correlator.sources.Feed; its docstrings describe the calls

    def rows(self, rows: Sequence[LogRow]) -> Outcome:
        with self._reading_rows:
            entries = self._entries(rows, self._index.advance_clock())
            self._active_at = time.monotonic()
            self.status.reads(rows)
            return self._hub.apply(entries)

    def again(self, rows: Sequence[LogRow]) -> Outcome:
        return self._hub.publish(self._index.apply_again(self._entries(rows, 0), self._clock()))

    def past(self, rows: Sequence[LogRow]) -> Outcome:
        # Logical time 0: the tables had these transitions before they were read, so any reading is newer.
        return self._hub.publish(self._index.apply_past(self._entries(rows, 0), self._clock()))

    def show_past(self) -> bool:
        self._hub.publish(self._index.show_past(PUBLISHED_AT_ONCE, self._clock()))
        if self._hub.published.past_unread is not None:
            return True
        self.status.past_published()
        return False

    def left_out(self, started_at: Micros) -> None:
        self._index.published.leave_out(started_at, self._clock())

    def legacy(self, records: Iterable[LegacyRecord], gone: Iterable[str], *, past: bool = False) -> Outcome:
        with timed("legacy"):
            return self._hub.publish(self._index.apply_legacy(records, gone, self._clock(), past=past))

    def decide_legacy(self, owned: Iterable[str], apart: Iterable[str]) -> Outcome:
        return self._hub.publish(self._index.decide_legacy(owned, apart, self._clock()))

    def history_wanted(self) -> bool:
        return not self._index.forecasts.history_read

    def history_begins(self, cutoff: Micros) -> None:
        self._index.forecasts.begin_history(cutoff)

    def history(self, runs: Sequence[EndedRun]) -> None:
        with timed("history"):
            self._index.forecasts.learn_history(runs)

    def operation_read(self, operation: OperationKey) -> None:
        self._index.forecasts.check_next(self.known.running().get(operation, ()))

    def history_read(self) -> None:
        self._index.forecasts.end_history()

    def wants_fast_poll(self) -> bool:
        if self.known.lively:
            return True
        clients, now = self._hub.clients, time.monotonic()
        if clients != self._clients:
            self._clients, self._active_at = clients, now
        return clients > 0 and now - self._active_at < QUIET_AFTER

    # -- internal

    def _entries(self, rows: Sequence[LogRow], observed_at: int) -> list[Entry]:
        keys, entries = self._index.id_keys, []
        for row in rows:
            entry, bad = joblog.read(row, observed_at, keys, self._max_error)
            for reason in bad:
                self.status.malformed(reason)
            entries.append(entry)
        metrics.ROWS.inc(len(rows))
        return entries
