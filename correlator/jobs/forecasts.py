"""The forecasts of all jobs in memory, and the earlier runs that they rest on.

Problem: a forecast changes with every event of its job, with time alone, and with every run that ends. It must not
delay the rows, and a document must not change every second.

Model: `PublishedJobs` asks `of` for the forecast of a job each time the job changes. Between changes, `due` names the
jobs whose forecast has to be checked again, and `renewed` gives a new one only if it differs enough. A job that has
ended waits in `unlearned` until its end is `LEARN_AFTER` old, so that the tables have confirmed it; then `learn` adds
its run to the `Forecaster`. The runs that ended before the daemon first started are read from the tables, as history.

A forecast is made as of the time up to which its job is known (`Horizon.known_to`), and checked while jobs can be
judged: what has not been read yet makes no job late.

Invariants:
* Each call is bounded: it makes one forecast, or learns one run. The writer decides how many it makes at once.
* Runs are learned in the order of their ends, each once. Nothing is learned before the history has been read.
* Memory is bounded by the jobs in memory, and by the bounds of `forecast/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, median
from typing import Literal

from msgspec import Struct

from correlator.bounded import Schedule
from correlator.forecast.forecaster import Forecaster, OperationKey
from correlator.forecast.percent import held
from correlator.forecast.points import EndedRun, seconds
from correlator.jobs.fold import vm_name
from correlator.jobs.forecasted_job import JudgedForecast, TrackedJob, can_be_forecast, ended_run, operation_key
from correlator.jobs.horizon import FOR_EVER, Horizon
from correlator.jobs.record import Record
from correlator.model.document import Comparison, ForecastState
from correlator.model.facts import Kind, Status
from correlator.model.persisted import PersistedForecast
from correlator.model.published import JobForecast, JobView, PublishedJob
from correlator.model.rows import Micros

MAX_JUDGED = 200
"""Ended jobs that count in the accuracy of forecasts, the newest ones."""

MAX_UNLEARNED = 10_000
"""Ended jobs that wait to be learned. Beyond that, those that ended first are not learned."""

LEARN_AFTER = 2_000_000
"""Microseconds after its end until a run is learned."""

LATE_END = 60_000_000
"""Microseconds. A job that was never seen running is learned if it ended at most so long before the last learned end:
jobs are not seen in the order of their ends."""

MIN_CHECK_AFTER, MAX_CHECK_AFTER = 5_000_000, 60_000_000
"""Shortest and longest time in microseconds between two checks of a forecast. It is 1/20 of the remaining time."""

CONFIRMED_AFTER = 500_000
"""Microseconds after which it is checked again whether all has been read up to the time of a forecast."""

KNOWN_WITHIN = 1.25
"""Seconds within which an event of a running job is known. JobLog's writers flush once a second, and the tables are
read once a second for rows that never come; both take some time."""

LINES_WITHIN = 1_000_000
"""Microseconds within which log lines alone do not renew a forecast."""

MOVED = 0.1
"""Share of the remaining time by which p50 must have moved for a new forecast between changes of the job."""

_KINDS = {ForecastState.LATE: Kind.JOB_LATE, ForecastState.OVERDUE: Kind.JOB_OVERDUE}


class Forecasts:
    """See the module's docstring. Event loop's thread only. Every `now` is in microseconds since 1970.

    `records`: those of the JobLog jobs, by job ID. All published ones have one. `max_unlearned`: ended jobs that may
    wait to be learned.
    """

    def __init__(self, horizon: Horizon, records: Mapping[str, Record], max_unlearned: int = MAX_UNLEARNED) -> None:
        self._horizon = horizon
        self._max_unlearned = max_unlearned
        self._records = records
        self.forecaster = Forecaster()
        self.accuracy = Accuracy()
        self.history_read = False
        """True once the runs of the time before the daemon first started are known."""
        self.learned_to: Micros = FOR_EVER
        """The latest end that was learned or that the history covers. Nothing is learned while it is `FOR_EVER`."""
        self._history_to: Micros = 0
        """The end of the history: the tables have the runs that ended until then."""
        self.changed: dict[OperationKey, None] = {}
        """Operations that have learned a run since they were last stored."""
        self._unlearned = Schedule[str]()
        """Ended jobs that have to be learned, by their end."""
        self._checks = Schedule[str]()
        """Running jobs, by the time at which their forecast is checked again."""

    # -- published jobs

    def of(self, view: JobView, old: PublishedJob | None, alive_at: Micros, now: Micros) -> JobForecast | None:
        """The forecast to publish with a changed view. `old`: what was published of the job before.

        Percent does not fall while the same steps run, whatever it rests on: what clients see is held until the new
        one has caught up, or until a step begins, or begins again.
        """
        if view.source != "joblog":
            return None
        if old is not None and _has_only_new_rows(old.view, view) and self.stays(old, alive_at, now):
            return old.forecast
        known_to = self._horizon.known_to(now, alive_at)
        tracked = self._records[view.job_id].tracked
        if tracked is not None and old is not None:
            tracked.advance(old.forecast, now)
        if not view.terminal:
            self._unlearned.discard(view.job_id)  # It may have seemed to have ended.
        if view.status is Status.RUNNING:
            return held(self._running(view, alive_at, known_to, now), old, view)
        self._checks.discard(view.job_id)
        return held(self._end(view, old, now), old, view) if view.terminal else None

    def stays(self, old: PublishedJob, alive_at: Micros, now: Micros) -> bool:
        """True if new log rows of a running job do not renew its forecast: it is younger than `LINES_WITHIN`, or none.

        Rows may come a thousand times a second, and a forecast costs as much as all other work for a row.
        """
        if old.forecast is None or old.forecast.forecast is None:
            return old.view.job_id in self._checks
        return 0 <= self._horizon.known_to(now, alive_at) - old.forecast.forecast.as_of < LINES_WITHIN

    def announcement(self, job_id: str, forecast: JobForecast | None, now: Micros) -> Kind | None:
        """The event that a job is late or overdue, if it has not been announced yet. Each is announced once.

        It waits until all has been read up to the time of the first forecast that said so: the job may have ended by
        then. A later forecast with the same state does not delay it.
        """
        made = forecast.forecast if forecast is not None else None
        if made is None or (tracked := self._records[job_id].tracked) is None:
            return None
        if made.state not in _KINDS or tracked.announced in (made.state, ForecastState.OVERDUE):
            tracked.unconfirmed = None
            return None
        state, as_of = tracked.unconfirmed or (made.state, made.as_of)
        as_of = min(as_of, made.as_of) if state is made.state else made.as_of
        tracked.unconfirmed = made.state, as_of
        judged_at = self._horizon.judged_at(now)
        if judged_at is None or judged_at < as_of:
            self._checks.put(job_id, now + CONFIRMED_AFTER)
            return None
        tracked.announced, tracked.unconfirmed = made.state, None
        return _KINDS[made.state]

    def forget(self, job_id: str) -> None:
        """Forget a job that left memory."""
        self._unlearned.discard(job_id)
        self._checks.discard(job_id)

    # -- time

    def has_due(self, now: Micros, *, learn: bool) -> bool:
        """True if `due` would return jobs now; with `learn` also if `ended` would."""
        if self._horizon.judged_at(now) is not None and _is_due(self._checks, now):
            return True
        return learn and self.history_read and _is_due(self._unlearned, now - LEARN_AFTER)

    def due(self, now: Micros, most: int) -> list[str]:
        """Remove and return up to `most` running jobs whose forecast has to be checked. None while none is judged."""
        if self._horizon.judged_at(now) is None:
            return []
        first = self._checks.first()
        if first is not None and first[0] > now + MAX_CHECK_AFTER:
            now = FOR_EVER  # The clock was set back.
        return list(self._checks.pop_until(now, most))

    def renewed(self, shown: PublishedJob, now: Micros) -> JobForecast | None:
        """A new forecast of a job that `due` returned. While the job runs, it also schedules the next check.

        None, and the published forecast stays:

        * if that is younger than `MIN_CHECK_AFTER`, because the job has changed since the check was scheduled;
        * if the new one would have the same state and nearly the same p50 (`MOVED`), or be equal;
        * if the job has ended, or can have none.
        """
        view = shown.view
        if view.status is not Status.RUNNING or view.source != "joblog":
            return None
        tracked = self._records[shown.job_id].tracked
        before = shown.forecast.forecast if shown.forecast is not None else None
        known_to = self._horizon.known_to(now, shown.alive_at)
        if tracked is not None and before is not None:
            if 0 <= (age := known_to - before.as_of) < MIN_CHECK_AFTER:
                self._checks.put(shown.job_id, now + MIN_CHECK_AFTER - age)
                return None
            running = tracked.running
            estimate = self.forecaster.estimate(
                running.operation, running.entity, running.place, known_to, KNOWN_WITHIN
            )
            if estimate is not None and estimate.state is before.state:
                moved = abs(known_to + round(estimate.p50 * 1_000_000) - before.p50) / 1_000_000
                if moved <= MOVED * max(1.0, estimate.p50):
                    self._check_again(shown.job_id, round(estimate.p50 * 1_000_000), now)
                    return None
        if tracked is not None:
            tracked.advance(shown.forecast, now)
        made = held(self._running(view, shown.alive_at, known_to, now), shown, view)
        return made if made != shown.forecast else None

    # -- history

    def begin_history(self, cutoff: Micros) -> None:
        """Begin to learn the runs that ended at or before `cutoff` from the tables. Later ones wait until the end."""
        self.history_read, self.learned_to, self._history_to = False, cutoff, cutoff
        self.forecaster = Forecaster()  # Reading may begin again after a failure.
        for job_id in self._unlearned.pop_until(cutoff, self._max_unlearned):
            self._records[job_id].tracked = None

    def learn_history(self, runs: Iterable[EndedRun]) -> None:
        """Learn runs of the time before the start, in the order of their ends."""
        for run in runs:
            self.forecaster.learn(run)
            self.changed[run.operation] = None

    def check_next(self, running: Iterable[str]) -> None:
        """Give these jobs a forecast next: all earlier runs of their operation have been learned."""
        for job_id in running:
            self._checks.put(job_id, 0)

    def end_history(self) -> None:
        """End the history. From now on the jobs that end are learned."""
        self.history_read = True

    def restore(self, forecaster: Forecaster, accuracy: Accuracy, learned_to: Micros) -> None:
        """Go on with the runs that an earlier daemon had learned."""
        self.forecaster, self.accuracy, self.learned_to = forecaster, accuracy, learned_to
        self.history_read = True

    # -- learning

    def ended(self, now: Micros, most: int) -> list[str]:
        """Remove and return up to `most` ended jobs whose runs have to be learned, in the order of their ends."""
        if not self.history_read:
            return []
        return list(self._unlearned.pop_until(now - LEARN_AFTER, most))

    def learn(self, view: JobView) -> None:
        """Learn the run of an ended job. A job that runs again, or that completed nobody knows when, is ignored."""
        if not view.terminal:
            return
        record = self._records[view.job_id]
        tracked, record.tracked = record.tracked, None
        if not can_be_forecast(view):
            return
        if view.status is Status.COMPLETED and view.ended_at is None:
            return
        if tracked is None:
            run, predicted = ended_run(view, vm_name(view)), []
        else:
            run, predicted = tracked.ended(view), tracked.running.predicted_ends
        self.forecaster.learn(run, predicted)
        self.changed[run.operation] = None
        self.learned_to = max(self.learned_to, run.end)
        if tracked is not None and run.completed and (judged := tracked.judged(run)) is not None:
            self.accuracy.add(judged)

    # -- the checkpoint

    def restore_job(self, view: JobView, stored: PersistedForecast | None, now: Micros) -> JobForecast | None:
        """The forecast to publish of a job that is restored: as it was stored. It is checked again soon."""
        stored = stored if stored is not None else PersistedForecast()
        if stored.tracked:
            self._records[view.job_id].tracked = TrackedJob(view, stored)
        if view.terminal and stored.unlearned:
            self._unlearned.put(view.job_id, _end_of(view))
        elif view.status is Status.RUNNING:
            self._checks.put(view.job_id, now)
        elif stored.published is not None and stored.published.forecast is not None:
            return self._end(view, None, now) if view.terminal else None  # It was read on a client's request.
        return stored.published

    def persisted(self, record: Record, published: JobForecast | None) -> PersistedForecast | None:
        unlearned = record.job_id in self._unlearned
        if record.tracked is not None:
            return record.tracked.persisted(published, unlearned=unlearned)
        return PersistedForecast(published, unlearned=unlearned) if published is not None or unlearned else None

    # -- internal

    def _running(self, view: JobView, alive_at: Micros, known_to: Micros, now: Micros) -> JobForecast | None:
        record = self._records[view.job_id]
        if (tracked := record.tracked) is None:
            has_basis = can_be_forecast(view) and self.forecaster.has_basis(operation_key(view))
            if not has_basis and view.basis != "reported":
                self._check_again(view.job_id, FOR_EVER, now)
                return None
            tracked = record.tracked = TrackedJob(view)
        tracked.follow(view, alive_at)
        running = tracked.running
        forecast = running.forecast(self.forecaster, known_to, KNOWN_WITHIN) if can_be_forecast(view) else None
        if forecast is not None and tracked.first_p50 is None:
            tracked.first_p50 = forecast.p50
        self._check_again(view.job_id, FOR_EVER if forecast is None else forecast.p50 - known_to, now)
        if running.percent is None:
            return None
        basis: Literal["reported", "history"] = "history" if running.reported is None else "reported"
        return JobForecast(round(running.percent, 1), basis, forecast)

    def _end(self, view: JobView, old: PublishedJob | None, now: Micros) -> JobForecast | None:
        """The forecast of an ended job: the percent that it had, and how its duration compares with earlier runs.

        Before the history begins nobody knows yet which ends it has: `begin_history` drops them of what waits.
        """
        before, end = old.forecast if old is not None else None, _end_of(view)
        known_to = self.learned_to if self.learned_to != FOR_EVER else now - LATE_END
        is_new = not old.view.terminal if old is not None else end > known_to - LATE_END
        if (is_new and end > self._history_to) or view.job_id in self._unlearned:
            self._learn_later(view.job_id, end)
            compared = self._compared(view)
        else:
            compared = before.compared_with if before is not None else None  # The run itself may be learned already.
        tracked = self._records[view.job_id].tracked
        if tracked is not None and view.basis == "reported" and view.status is not Status.COMPLETED:
            tracked.running.report(view.percent)  # The last percent may become known together with the end.
        percent = tracked.running.percent if tracked is not None else before.percent if before is not None else None
        if view.status is Status.COMPLETED and percent is not None:
            percent = 100.0
        elif percent == 100.0:
            percent = None  # It was completed, and the tables say otherwise.
        if percent is None:
            return JobForecast(compared_with=compared) if compared is not None else None
        basis: Literal["reported", "history"] = "reported" if view.basis == "reported" else "history"
        return JobForecast(round(percent, 1), basis, None, compared)

    def _compared(self, view: JobView) -> Comparison | None:
        """How long an ended job took beside the earlier runs. None if that is not known."""
        if view.ended_at is None or view.started_at is None:
            return None
        return self.forecaster.compare(operation_key(view), seconds(view.started_at, view.ended_at))

    def _learn_later(self, job_id: str, end: Micros) -> None:
        self._unlearned.put(job_id, end)
        if len(self._unlearned) > self._max_unlearned:
            for oldest in self._unlearned.pop_until(FOR_EVER, 1):
                self._records[oldest].tracked = None

    def _check_again(self, job_id: str, remaining: Micros, now: Micros) -> None:
        """Check the forecast in 1/20 of `remaining` microseconds, unless it will be checked before that."""
        self._checks.put_earlier(job_id, now + min(max(remaining // 20, MIN_CHECK_AFTER), MAX_CHECK_AFTER))


class Accuracy(Struct):
    """How good forecasts were: the newest `MAX_JUDGED` ended jobs that had one, the oldest first."""

    jobs: list[JudgedForecast] = []

    def add(self, judged: JudgedForecast) -> None:
        """Add a job that ended."""
        self.jobs.append(judged)
        del self.jobs[:-MAX_JUDGED]

    def coverage(self) -> float | None:
        """The share of ends within their p90, 0 to 1; each job has the same weight. None before the first job."""
        return fmean(job.kept for job in self.jobs) if self.jobs else None

    def median_error(self) -> float | None:
        """The median relative error of p50 when the jobs began: 0.1 is a tenth of the duration. None before any."""
        errors = [job.relative_error for job in self.jobs if job.relative_error is not None]
        return median(errors) if errors else None


def _end_of(view: JobView) -> Micros:
    """The end of a run that has ended; its start, if nobody knows its end, which nothing is learned from."""
    return (view.ended_at if view.ended_at is not None else view.started_at) or 0


def _has_only_new_rows(was: JobView, view: JobView) -> bool:
    """True for a running job of which the log has new rows. `fold.grown` keeps the other members: `is` does."""
    return (
        view.status is was.status is Status.RUNNING
        and was.steps is view.steps
        and was.percent is view.percent
        and was.metadata is view.metadata
        and was.operation is view.operation
    )


def _is_due(schedule: Schedule[str], now: Micros) -> bool:
    first = schedule.first()
    return first is not None and first[0] <= now
