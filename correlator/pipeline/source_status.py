"""What the source reports of itself: whether the database answers, what it cannot read, and how far it has read.

The state of the database is live, stale or down, and follows from the time since its last complete answer. A failed
query never removes jobs: it changes the state to stale, and later to down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from correlator.jobs.horizon import JUDGED_WITHIN, Part
from correlator.jobs.index import Index
from correlator.jobs.job_document import rfc3339
from correlator.jobs.model.rows import LogRow, Micros
from correlator.jobs.outcome import Outcome
from correlator.ops import metrics
from correlator.pipeline.status import Status

log = logging.getLogger(__name__)

STALE_AFTER = 3.0
"""Seconds without a complete answer of the database after which the published state is stale."""

DOWN_AFTER = 15.0
"""Seconds without a complete answer after which the database is down."""


class SourceStatus(Status):
    """The status of the source, and of the database that it reads. Event loop's thread only.

    The first part is for clients; the second for the source, which reports every change; the third for the pipeline.
    `clock` returns Unix time in microseconds.
    """

    def __init__(self, index: Index, clock: Callable[[], Micros]) -> None:
        super().__init__()
        self.since: Micros | None = None
        """The time from which ends of jobs count as news. None until jobs have been loaded."""
        self._index = index
        self._clock = clock
        self._began = time.monotonic()
        self._answered: float | None = None
        self._answered_at: Micros = 0
        self._failure: tuple[str, str | None] | None = None
        """The error since the last answer, for the operator and for clients."""
        self._retried: dict[str, str] = {}
        """The last error of each part that is read on a session of its own: it is logged once."""
        self._lost: tuple[str, ...] = ()
        self._behind = True
        """True while the log is being caught up with: the delay of those rows is not measured."""
        self._past = self._read_to = 0
        """The highest ID and the newest time that the last catch-up has read."""
        self.tables_loaded = asyncio.Event()
        """Set once the tables have been read for the first time."""
        self.complete = asyncio.Event()
        """Set while the past of the log has been read and published."""
        metrics.SOURCE_LAG.set_function(self._lag)
        metrics.SOURCE_SUCCESS.set_function(lambda: self._answered_at / 1_000_000)

    # -- for clients

    @property
    def lag_seconds(self) -> float:
        """Seconds since the database last answered in full; 0 while it is live, and before the first answer."""
        if self.database == "live" or self._answered is None:
            return 0.0
        return round(time.monotonic() - self._answered, 3)

    def describe_database(self) -> dict[str, Any]:
        """Describe the database for /health/ready, with the time at which jobs are judged."""
        judged_at = self._index.horizon.judged_at(self._clock())
        part = {**super().describe_database(), "judged_at": rfc3339(judged_at) if judged_at is not None else None}
        if judged_at is None and part["ok"]:
            part |= {"ok": False, "error": self._not_judged()}
        return part

    def describe_tables(self) -> dict[str, Any]:
        """Describe the tables that can no longer be read for /health/ready."""
        lost = list(self._lost)
        why = f"{', '.join(lost)} cannot be read: gone, or SELECT is not granted; correlator doctor shows the GRANT"
        return {"ok": not lost, "missing": lost, "error": why if lost else None}

    # -- reported by the source

    def schema(self, *, tracking: bool, lost: Sequence[str] = ()) -> None:
        """Report the schema of a new connection. Without `tracking`, jobs are known from the log alone.

        `lost`: required tables and columns that no longer exist, or on which SELECT is no longer granted.
        """
        self._index.tracking = tracking
        self._lost = tuple(lost)
        metrics.LOST_TABLES.set(len(lost))
        self._behind, self._past, self._read_to = True, 0, 0  # A new connection catches up with the log.

    def answered(self) -> None:
        """Report that the database answers: on a connection, and after every successful query of the tail."""
        self._answered, self._answered_at = time.monotonic(), self._clock()
        if self._failure is not None or self.database == "down":
            log.info("the database answers")
        self._failure = None
        self.set_state("live")

    def failed(self, error: str, public: str | None) -> None:
        """Report a failure. `public`: the error without host, account and query, for anybody. None: `error` itself."""
        metrics.SOURCE_FAILURES.inc()
        if self._failure is None or error != self._failure[0]:
            log.warning("the database is unreachable: %s", error)
        self._failure = error, public
        self.judge()

    def malformed(self, reason: str) -> None:
        """Count a row that could not be parsed in full."""
        metrics.MALFORMED.labels(reason).inc()
        log.debug("a row could not be parsed completely: %s", reason)

    def past_begins(self) -> None:
        """Report a first start: the tables are read next, and then the log's past."""
        self.complete.clear()
        self._index.published.begin_past(self._clock())

    def past_progress(self, done: int, total: int) -> None:
        """Report how many IDs of the log's past have been read, and how many there are."""
        self.reading = (done, total)

    def past_failed(self, error: str) -> None:
        """Report that the log's past cannot be read now. The database may answer other queries all the same."""
        self._retried_part("the past of the log", error)

    def history_failed(self, error: str) -> None:
        """Report that the earlier runs, from which forecasts learn, cannot be read now."""
        self._retried_part("the history that forecasts need", error)

    def progress(self, done: int, total: int) -> None:
        """Report the progress of a catch-up, in log IDs."""
        if done < total:
            log.info("reading the log: %d of %d (%.0f %%)", done, total, 100 * done / max(1, total))
        if self._index.published.past_unread is None:
            self.reading = (done, total) if done < total else None
        if done >= total:
            self._behind = False
            self.loaded()

    def caught_up(self, age: float = 0.0) -> None:
        """Report that every row of the log that was committed `age` seconds ago has been read."""
        self._read_all(Part.LOG, age)

    def tables_read(self, age: float = 0.0) -> None:
        """Report that all that the tables said of jobs `age` seconds ago has been read."""
        self._read_all(Part.TABLES, age)

    def loaded(self) -> None:
        """Report that the tables have been read: what changes from now on is published with events."""
        if not self.tables_loaded.is_set():
            self._index.loading = False
            self.since = self._clock() if self.since is None else self.since
            if self._index.published.past_unread is not None and self.reading is None:
                self.reading = (0, 0)  # The source reports how much there is when it begins to read the past.
            self.tables_loaded.set()

    # -- called by the pipeline

    def restored(self, now: Micros, age: float) -> None:
        """Set the state as stale: what the last run saved `age` seconds before `now` is published."""
        self._answered = time.monotonic() - age
        self._answered_at = now - int(age * 1_000_000)
        self.set_state("stale", "not asked yet")
        self.since = self._answered_at
        self.loaded()

    def judge(self) -> None:
        """Set the database to stale or down if it has not answered in full for a while."""
        silent = time.monotonic() - (self._began if self._answered is None else self._answered)
        if self._failure is None and silent < STALE_AFTER:
            return
        error, public = self._failure or (f"no answer for {silent:.0f} s", None)
        down = silent >= DOWN_AFTER or self.loading
        self.set_state("down" if down else "stale", error, public)

    def reads(self, rows: Sequence[LogRow]) -> None:
        """Note the position of a catch-up, just before `rows` are applied."""
        if self._behind and rows:
            self._past = max(self._past, rows[-1].id)
            self._read_to = max(self._read_to, rows[-1].ts)

    def measure(self, outcome: Outcome) -> None:
        """Observe the delay from each row's timestamp to now, for rows that were just published."""
        if self._behind:
            return
        now = self._clock()
        for line in outcome.attributed:
            if line.entry.event_id > self._past:
                metrics.END_TO_END.observe(max(0, now - line.entry.at) / 1_000_000)

    def past_published(self) -> None:
        """End the report on the log's past."""
        self.reading = None
        self.complete.set()

    def _not_judged(self) -> str:
        read_to = self._index.horizon.read_to
        since = f"only up to {rfc3339(read_to)}" if read_to else "not to their end yet"
        return (
            f"log and tables have been read {since}: until they are read up to {JUDGED_WITHIN // 1_000_000} s ago, no"
            " job is reported as stalled, late or overdue. If this lasts, the database answers too slowly"
        )

    def _read_all(self, part: Part, age: float) -> None:
        before, uptime = int(age * 1_000_000), time.monotonic_ns() // 1000
        self._index.horizon.report(part, self._clock() - before, uptime - before)

    def _retried_part(self, part: str, error: str) -> None:
        metrics.SOURCE_FAILURES.inc()
        if error != self._retried.get(part):
            log.warning("%s cannot be read, and is tried again: %s", part, error)
        self._retried[part] = error

    def _lag(self) -> float:
        read_to = self._read_to if self._behind else 0
        return max(self.lag_seconds, (self._clock() - read_to) / 1_000_000 if read_to else 0.0)
