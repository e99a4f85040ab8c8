"""The pipeline: the only writer. It applies what the source reads to the index, and publishes the outcome to the hub.

Problem. Facts about one job come from several tasks (the log's tail, the comparison with the tables, the archive), and
time alone changes jobs too. Subscribers must see one ordered stream of changes.

Model. Every task calls a method of `Pipeline` with what it has read (`correlator.sources.Feed` is the protocol). The
method parses the rows, applies them to the index, and passes the returned `Outcome` to `LocalHub.publish` and to the
counters. It decides when the daemon is ready. What the source reports of itself is kept by `SourceStatus`.

Invariants.

* Each of these calls is synchronous: it ends before another begins, so outcomes are published in the order of `seq`.
* `ready` is set once and only after the tables have been read. Then the log's past has been read too, or was given
  `SHORT_PAST` seconds, or is read on in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from correlator.forecast.forecaster import OperationKey
from correlator.forecast.points import EndedRun
from correlator.jobs import joblog, sizes
from correlator.jobs.forecasts import HistoryState
from correlator.model.facts import Entry, Fact, Reading
from correlator.model.persisted import IndexState, PersistedJob, PersistedLegacy
from correlator.model.published import Outcome
from correlator.model.rows import LegacyRecord, LogRow, Micros
from correlator.ops import metrics
from correlator.ops.stalls import STUCK_AFTER, spare_loaded, timed
from correlator.pipeline.job_metrics import JobMetrics
from correlator.pipeline.local_hub import LocalHub
from correlator.tasks import EXPIRE_OFFSET, FORECASTS_OFFSET, until_next

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
        self._job_metrics = JobMetrics(hub.index.forecasts)
        self.ready = asyncio.Event()
        hub.apply_found_with(self.readings)

    async def run(self, before_ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run the periodic housekeeping until cancelled.

        `before_ready` is awaited once, after the tables have been read and before `ready` is set.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._become_ready(before_ready), name="ready")
            tasks.create_task(self._follow_forecasts(), name="forecasts")
            with self.live.heartbeat("pipeline", STUCK_AFTER) as beat:
                while True:
                    await asyncio.sleep(until_next(EXPIRE_EVERY, time.monotonic(), EXPIRE_OFFSET))
                    self.expire()
                    self.status.judge()
                    beat()

    def expire(self) -> Outcome:
        """Apply what time alone changes: stalled and expired jobs."""
        with timed("expire"):
            return self._publish(self._index.expire(self._clock()))

    def renew_forecasts(self) -> bool:
        """Learn some ended runs, and renew some forecasts. Returns True while there is more to do at once."""
        now = self._clock()
        learn = self._index.horizon.log_read_to >= now - LEARN_WITHIN
        with timed("forecasts"):
            self._publish(self._index.renew_forecasts(now, learn=learn))
        return self._index.forecasts.has_due(now, learn=learn)

    async def _follow_forecasts(self) -> None:
        await self.ready.wait()
        while True:
            more = self.renew_forecasts()
            await asyncio.sleep(0 if more else until_next(EXPIRE_EVERY, time.monotonic(), FORECASTS_OFFSET))

    async def _become_ready(self, before_ready: Callable[[], Awaitable[None]] | None) -> None:
        await self.status.tables_loaded.wait()
        with contextlib.suppress(TimeoutError):
            # Without job_tracking only the log has jobs: there is nothing to serve before it has been read.
            async with asyncio.timeout(SHORT_PAST if self._index.tracking else None):
                await self.status.complete.wait()
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
                    self._publish(outcome)
            await asyncio.sleep(0)
        self.status.restored(now, age)

    # -- correlator.sources.Feed; its docstrings describe the calls

    def rows(self, rows: Sequence[LogRow]) -> Outcome:
        with self._reading_rows:
            entries = self._entries(rows, self._index.advance_clock())
            self._active_at = time.monotonic()
            self.status.reads(rows)
            return self._apply(entries)

    def past(self, rows: Sequence[LogRow]) -> Outcome:
        # Logical time 0: the tables had these transitions before they were read, so any reading is newer.
        return self._publish(self._index.apply_past(self._entries(rows, 0), self._clock()))

    def show_past(self) -> bool:
        self._publish(self._index.show_past(PUBLISHED_AT_ONCE, self._clock()))
        if self._hub.published.past_unread is not None:
            return True
        self.status.past_published()
        return False

    def left_out(self, started_at: Micros) -> None:
        self._index.published.leave_out(started_at)

    def readings(self, readings: Iterable[Reading]) -> Outcome:
        with timed("readings"):
            outcome = self._apply([one for one in readings if not self._index.is_overtaken(one)])
        if self.status.loading:
            spare_loaded()
        return outcome

    def legacy(self, records: Iterable[LegacyRecord], gone: Iterable[str], *, past: bool = False) -> Outcome:
        with timed("legacy"):
            return self._publish(self._index.apply_legacy(records, gone, self._clock(), past=past))

    def decide_legacy(self, owned: Iterable[str], apart: Iterable[str]) -> Outcome:
        return self._publish(self._index.decide_legacy(owned, apart, self._clock()))

    def history_wanted(self) -> bool:
        return self._index.forecasts.history is not HistoryState.READ

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

    def _apply(self, facts: Iterable[Fact]) -> Outcome:
        outcome = self._publish(self._index.apply(facts, self._clock()))
        self.status.measure(outcome)
        return outcome

    def _publish(self, outcome: Outcome) -> Outcome:
        if outcome.dropped:
            metrics.TRANSITIONS_DROPPED.inc(outcome.dropped)
        self._hub.publish(outcome)
        self._job_metrics.count(outcome.changes, self.status.since)
        return outcome
