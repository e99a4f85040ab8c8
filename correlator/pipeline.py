"""The one writer: what a source reads goes into the index here, and what that changes goes to the hub.

Satisfies `correlator.sources.Feed`. Every call runs to its end without waiting, so two batches never mix.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from correlator import metrics
from correlator.census import Census
from correlator.hub import Hub
from correlator.jobs import joblog
from correlator.jobs.index import Outcome
from correlator.jobs.model import Kept, LegacyRecord, LogRow, Memory, Micros, Reading
from correlator.liveness import STUCK_AFTER

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between looks at what time alone changes."""

STALE_AFTER = 3.0
"""Seconds without a whole answer after which what is shown is called stale."""

DOWN_AFTER = 15.0

QUIET_AFTER = 10.0
"""Seconds without a row, a running job, or a reader that comes or goes, after which readers watch nothing happen."""


def wall_clock() -> Micros:
    return time.time_ns() // 1000


class Pipeline:
    """`clock` gives the time in microseconds, UTC."""

    def __init__(self, hub: Hub, *, clock: Callable[[], Micros] = wall_clock) -> None:
        self._hub = hub
        self._index = hub.index
        self._clock = clock
        self._answered = time.monotonic()
        self._answered_at: Micros = 0
        self._error: str | None = None
        self._readers = 0
        self._heard = time.monotonic()
        self._census = Census()
        self._behind = True
        """Whether the log is being caught up with: what is read then is late for no fault of ours."""
        self._past = self._read_to = 0
        """In the last catch-up, the highest id and the newest time that were read."""
        metrics.SOURCE_LAG.set_function(self._lag)
        metrics.SOURCE_SUCCESS.set_function(lambda: self._answered_at / 1_000_000)
        self.before_ready: Callable[[], Awaitable[None]] | None = None
        """Done once the past is known, and before all is ready."""
        self._loaded = asyncio.Event()
        self.ready = asyncio.Event()
        hub.learn = self.readings

    async def run(self) -> None:
        """What time alone changes, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._become_ready(), name="ready")
            with self.part("pipeline", STUCK_AFTER) as beat:
                while True:
                    await asyncio.sleep(TICK)
                    self._publish(self._index.tick(self._clock()))
                    self._judge()
                    beat()

    async def _become_ready(self) -> None:
        await self._loaded.wait()
        if self.before_ready is not None:
            await self.before_ready()
        self._hub.loading = None
        log.info("ready: %d jobs in memory", len(self._index))
        self.ready.set()

    def restore(self, kept: Iterable[Kept], legacy: Iterable[LegacyRecord], memory: Memory, age: float) -> None:
        """Begin with what an earlier run knew `age` seconds ago: it is shown at once, as stale."""
        now = self._clock()
        self._publish(self._index.restore(kept, legacy, memory, now))
        self._answered = time.monotonic() - age
        self._answered_at = now - int(age * 1_000_000)
        self._hub.answered(age)
        self._hub.set_source("stale", "not asked yet")
        self._census.begin(self._answered_at)
        self.loaded()

    # -- the feed

    def look(self) -> int:
        return self._index.look()

    def rows(self, rows: Sequence[LogRow]) -> Outcome:
        tick, keys = self._index.look(), self._index.id_keys
        entries = []
        for row in rows:
            entry, bad = joblog.read(row, tick, keys)
            for reason in bad:
                self.malformed(reason)
            entries.append(entry)
        metrics.ROWS.inc(len(rows))
        self._heard = time.monotonic()
        if self._behind and rows:
            self._past = max(self._past, rows[-1].id)
            self._read_to = max(self._read_to, rows[-1].ts)
        return self._measure(self._publish(self._index.apply(entries, self._clock())))

    def readings(self, readings: Iterable[Reading]) -> Outcome:
        return self._measure(self._publish(self._index.apply(readings, self._clock())))

    def legacy(self, records: Iterable[LegacyRecord], gone: Iterable[str]) -> Outcome:
        return self._publish(self._index.apply_legacy(records, gone, self._clock()))

    def schema(self, *, tracking: bool) -> None:
        self._index.tracking = tracking
        self._behind, self._past, self._read_to = True, 0, 0  # a connection begins

    def malformed(self, reason: str) -> None:
        metrics.MALFORMED.labels(reason).inc()
        log.debug("a row could not be understood in full: %s", reason)

    def state(self, *, connected: bool, error: str | None = None) -> None:
        if connected:
            self._answered, self._answered_at = time.monotonic(), self._clock()
            self._hub.answered()
            if self._error is not None or self._hub.source == "down":
                log.info("the database answers")
            self._error = None
            self._hub.set_source("live")
            return
        metrics.SOURCE_FAILURES.inc()
        if error != self._error:
            log.warning("the database is away: %s", error)
        self._error = error or "no answer"
        self._judge()

    def loading(self, done: int, total: int) -> None:
        if done >= total:
            self._behind = False
            if self._loaded.is_set():
                self._hub.loading = None if self.ready.is_set() else self._hub.loading
            else:
                self.loaded()
            return
        log.info("reading the log: %d of %d (%.0f %%)", done, total, 100 * done / max(1, total))
        self._hub.loading = (done, total)

    def loaded(self) -> None:
        self._index.loading = False
        self._census.begin(self._clock())
        self._loaded.set()

    def attention(self) -> bool:
        if self._index.active():
            return True
        readers, now = self._hub.readers, time.monotonic()
        if readers != self._readers:
            self._readers, self._heard = readers, now
        return readers > 0 and now - self._heard < QUIET_AFTER

    def untold(self) -> int:
        return self._index.untold

    def holding(self) -> bool:
        return self._hub.holding()

    def active(self) -> set[str]:
        return self._index.active()

    def known(self) -> list[str]:
        return self._index.joblog_ids()

    def needs(self, job_id: str) -> bool:
        return self._index.needs_reading(job_id)

    def is_new(self, job_id: str) -> bool:
        return self._index.is_new(job_id)

    def part(self, name: str, within: float) -> AbstractContextManager[Callable[[], None]]:
        return self._hub.live.part(name, within)

    def unfinished_legacy(self) -> list[LegacyRecord]:
        return self._index.active_legacy()

    def claimed(self, external_id: str) -> bool:
        return self._index.claims(external_id)

    # --

    def _publish(self, outcome: Outcome) -> Outcome:
        self._hub.publish(outcome)
        self._census.take(outcome.changes)
        return outcome

    def _measure(self, outcome: Outcome) -> Outcome:
        """How long after they were written the rows that have just been published were."""
        if not self._behind:
            now = self._clock()
            for line in outcome.tied:
                if line.entry.event_id > self._past:
                    metrics.END_TO_END.observe(max(0, now - line.entry.at) / 1_000_000)
        return outcome

    def _lag(self) -> float:
        read_to = self._read_to if self._behind else 0
        return max(self._hub.lag_seconds, (self._clock() - read_to) / 1_000_000 if read_to else 0.0)

    def _judge(self) -> None:
        """Live while answers come; stale, then down, when they have not come for a while."""
        if self._error is None and time.monotonic() - self._answered < STALE_AFTER:
            return
        silent = time.monotonic() - self._answered
        state = "down" if silent >= DOWN_AFTER or not self.ready.is_set() else "stale"
        self._hub.set_source("down" if state == "down" else "stale", self._error or f"no answer for {silent:.0f} s")
