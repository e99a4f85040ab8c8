"""Counters of jobs by state and of ended jobs, updated from the changes: a scrape does not iterate over the jobs.
Figures of the forecasts are those that the index keeps.

An end counts once in a run of the daemon, whatever happens to the job afterwards: a second end, another reading,
eviction and return. Jobs that had ended before the start do not count: neither those that a first start reads, nor
those of the last run, nor those that a client requests from the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from operator import attrgetter

from correlator.bounded import BoundedDict
from correlator.forecast.points import MIN_RUNS
from correlator.jobs.forecasts import Forecasts
from correlator.model.document import FAILURE_STATES, ForecastState
from correlator.model.facts import Status
from correlator.model.published import Change, PublishedJob
from correlator.model.rows import Micros
from correlator.ops import metrics

STATUSES = tuple(s for s in Status if s is not Status.SKIPPED)
ENDED = tuple(s for s in STATUSES if s.ended)

MAX_ENDED = 20_000
"""Most jobs remembered as counted. The oldest are dropped first: they are the least likely to return."""


class JobMetrics:
    """The gauges count from the start, ended jobs from the time that `count` is given. One instance per process."""

    def __init__(self, forecasts: Forecasts, max_ended: int = MAX_ENDED) -> None:
        self._counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self._stalled = 0
        self._states = dict.fromkeys(ForecastState, 0)
        self._counted: BoundedDict[str, None] = BoundedDict(max_ended)
        self._failures: BoundedDict[str, None] = BoundedDict(max_ended)
        self._kinds = metrics.Bounded()
        self._prepared: set[tuple[str, ...]] = set()
        for state in FAILURE_STATES:
            metrics.FAILURES.labels(state)  # The series exist before the first failure, so that it is an increase.
        for status in STATUSES:
            metrics.JOBS.labels(status).set_function(partial(self._counts.__getitem__, status))
        metrics.JOBS_STALLED.set_function(lambda: self._stalled)
        metrics.JOBS_LATE.set_function(lambda: self._states[ForecastState.LATE])
        metrics.JOBS_OVERDUE.set_function(lambda: self._states[ForecastState.OVERDUE])
        metrics.FORECAST_HISTORY_READ.set_function(lambda: forecasts.history_read)
        # A restart replaces `forecasts.accuracy`.
        metrics.FORECAST_COVERAGE.set_function(lambda: forecasts.accuracy.coverage())  # noqa: PLW0108
        metrics.FORECAST_ERROR.set_function(lambda: forecasts.accuracy.median_error())  # noqa: PLW0108
        operations = metrics.FORECAST_OPERATIONS.labels
        operations("yes").set_function(lambda: _with_basis(forecasts))
        operations("no").set_function(lambda: len(forecasts.forecaster) - _with_basis(forecasts))

    def count(self, changes: Iterable[Change], since: Micros | None) -> None:
        """Update the counters from the changes of one outcome.

        `since`: a new job counts as ended if it ended then or later, in microseconds. None: ends do not count yet.
        """
        for change in changes:
            old, new = change.old, change.new
            if change.goes_on or (old is not None and new is not None and _counted(old) == _counted(new)):
                continue
            before, after = (s.view.status if s is not None else None for s in (old, new))
            if before is not after:
                if before is not None:
                    self._counts[before] -= 1
                if after is not None:
                    self._counts[after] += 1
                if new is not None:
                    self._changed(old, new, since)
            if new is not None:
                self._count_failure(new)
            self._stalled += (new is not None and new.stalled) - (old is not None and old.stalled)
            was, state = _state(old), _state(new)
            if was is not state:
                if was is not None:
                    self._states[was] -= 1
                if state is not None:
                    self._states[state] += 1

    def _changed(self, old: PublishedJob | None, new: PublishedJob, since: Micros | None) -> None:
        view = new.view
        kind = self._kinds(view.job_type, view.operation)
        if kind not in self._prepared:
            self._prepared.add(kind)
            for status in ENDED:
                # The series exist before the first end, so that it is an increase.
                metrics.JOBS_ENDED.labels(status, *kind)
        if not view.terminal or since is None or (old is not None and old.view.terminal):
            return
        if old is None and (view.ended_at or 0) < since - since % 1_000_000:  # job_tracking has whole seconds
            return
        if any(name in self._counted for name in (view.job_id, *view.external_ids)):
            return  # By an external ID: the job was counted as a legacy job before.
        self._counted[view.job_id] = None
        metrics.JOBS_ENDED.labels(view.status, *kind).inc()
        if view.started_at is not None and view.ended_at is not None:
            metrics.JOB_SECONDS.labels(*kind).observe(max(0, view.ended_at - view.started_at) / 1_000_000)

    def _count_failure(self, new: PublishedJob) -> None:
        """Count why a job of this run failed, once."""
        if new.failure is not None and new.job_id in self._counted and new.job_id not in self._failures:
            self._failures[new.job_id] = None
            metrics.FAILURES.labels(new.failure.state).inc()


_counted = attrgetter("view.status", "stalled", "forecast", "failure")
"""What the counters use of a job. Most changes leave it as it is."""


def _state(shown: PublishedJob | None) -> ForecastState | None:
    """The state of the forecast of a running job."""
    forecast = shown.forecast.forecast if shown is not None and shown.forecast is not None else None
    return forecast.state if forecast is not None else None


def _with_basis(forecasts: Forecasts) -> int:
    """The number of operations whose jobs have a forecast."""
    return sum(operation.completed >= MIN_RUNS for _, operation in forecasts.forecaster)
