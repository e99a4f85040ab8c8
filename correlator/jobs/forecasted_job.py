"""A running job as its forecast needs it: its place among earlier runs, kept up to date from its published views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from msgspec import Struct

from correlator.forecast.forecaster import OperationKey
from correlator.forecast.percent import percent_by_clock
from correlator.forecast.points import (
    MAX_STEPS,
    EndedRun,
    JobPlace,
    StepTimes,
    events_of,
    place_of,
    seconds,
)
from correlator.forecast.running import RunningJob
from correlator.jobs.fold import vm_name
from correlator.model.document import ForecastState
from correlator.model.facts import Status
from correlator.model.persisted import PersistedForecast
from correlator.model.published import JobForecast, JobView
from correlator.model.rows import Micros, StepRecord

LEAST_ELAPSED = 1.0
"""Seconds. The error of a shorter run is divided by this: `started_at` has whole seconds."""


def operation_key(view: JobView) -> OperationKey:
    """The operation whose earlier runs a job is compared with. An unknown job type is ""."""
    return view.job_type or "", view.operation or ""


def can_be_forecast(view: JobView) -> bool:
    """True for a JobLog job whose operation and start are known. Legacy jobs have no history."""
    return view.source == "joblog" and bool(view.operation) and view.started_at is not None


class JudgedForecast(Struct, frozen=True, array_like=True):
    """One ended job. `kept`: the share of the ends named by p90 that it did not exceed, 0 to 1.

    `relative_error`: how far its first p50 was from its end, divided by its duration. None if that is not known.
    """

    kept: float
    relative_error: float | None


class TrackedJob:
    """A running job that has a forecast, or that reports its own percent. `follow` it with each of its views.

    A new step, or the end of one, advances the place. Any other difference, such as a time that the tables correct,
    makes the place again from the first `MAX_STEPS` steps, so that no call costs more than these.
    """

    __slots__ = ("_metadata", "_percents", "_steps", "announced", "first_p50", "running", "unconfirmed")

    def __init__(self, view: JobView, stored: PersistedForecast | None = None) -> None:
        """A job that is new, or that is as it was when `stored` was written."""
        stored = stored if stored is not None else PersistedForecast()
        self.running = RunningJob(
            operation_key(view),
            vm_name(view),
            JobPlace(view.started_at or 0),
            stored.percent,
            stored.reported,
            list(stored.predicted_ends),
            stored.predicted_events,
        )
        self.first_p50 = stored.first_p50
        """The p50 of the first forecast."""
        self.announced = stored.announced
        """The state of the last event about the job: late or overdue."""
        self.unconfirmed: tuple[ForecastState, Micros] | None = None
        """The state that no event reports yet, and the time of the first forecast with it."""
        self._percents = list(stored.percents)
        """The reported percents that were events of the place."""
        self._metadata = view.metadata
        self._steps: tuple[StepRecord, ...] = ()
        if stored.tracked:
            self.running.place = place_of(view.started_at or 0, _times(view.steps), self._percents)
            self._steps = view.steps

    def follow(self, view: JobView, alive_at: Micros) -> None:
        """Apply the current view. `alive_at`: the last activity of the job, at which it reported its percent."""
        running, start = self.running, view.started_at or 0
        running.operation = operation_key(view)
        if view.metadata is not self._metadata:
            self._metadata, running.entity = view.metadata, vm_name(view)
        if view.steps is not self._steps or running.place.start != start:
            before, steps = self._steps[:MAX_STEPS], view.steps[:MAX_STEPS]
            gone = Counter(events_of(_times(_without(before, steps))))
            new = Counter(events_of(_times(_without(steps, before))))
            if running.place.start != start or gone - new:
                running.place = place_of(start, _times(view.steps), self._percents)
            else:
                for event in sorted((new - gone).elements()):
                    running.place.apply(event)
            self._steps = view.steps
        if view.basis == "reported" and not view.terminal:
            running.report(view.percent)
            at = max(alive_at, self._percents[-1][0] if self._percents else 0)  # The clock may have been set back.
            if running.place.percent_reported(view.percent, at):
                self._percents.append((at, view.percent))

    def advance(self, published: JobForecast | None, now: Micros) -> None:
        """Advance percent to what clients show of `published` at `now`, so that the next document does not lower it."""
        running = self.running
        if published is None or published.forecast is None or published.percent is None or running.percent is None:
            return
        if published.percent > round(running.percent, 1):
            return  # It is held: see `Forecasts.of`.
        made = published.forecast
        if running.reported is None and made.state is not ForecastState.OVERDUE:
            shown = percent_by_clock(
                now, percent=published.percent, as_of=made.as_of, started=running.place.start, p50=made.p50
            )
            running.percent = max(running.percent, shown)

    def ended(self, view: JobView) -> EndedRun:
        """The run to learn from, given the view of the ended job."""
        return ended_run(view, self.running.entity, self._percents)

    def judged(self, run: EndedRun) -> JudgedForecast | None:
        """How good the forecasts were; None if there was none. The start of `run` may have been corrected meanwhile."""
        predicted_ends = self.running.predicted_ends
        if not predicted_ends:
            return None
        kept = sum(run.end <= predicted for predicted in predicted_ends) / len(predicted_ends)
        if self.first_p50 is None:
            return JudgedForecast(kept, None)
        duration = max(LEAST_ELAPSED, seconds(run.start, run.end))
        return JudgedForecast(kept, abs(self.first_p50 - run.end) / 1_000_000 / duration)

    def persisted(self, published: JobForecast | None, *, unlearned: bool) -> PersistedForecast:
        running = self.running
        return PersistedForecast(
            published,
            tracked=True,
            unlearned=unlearned,
            percent=running.percent,
            reported=running.reported,
            predicted_ends=tuple(running.predicted_ends),
            predicted_events=running.predicted_events,
            percents=tuple(self._percents),
            first_p50=self.first_p50,
            announced=self.announced,
        )


def ended_run(view: JobView, entity: str, percents: Sequence[tuple[Micros, float]] = ()) -> EndedRun:
    """The run of an ended job, with its first `MAX_STEPS` steps."""
    start = view.started_at or 0
    end = view.ended_at if view.ended_at is not None else start
    completed = view.status is Status.COMPLETED
    return EndedRun(operation_key(view), entity, start, end, completed, tuple(_times(view.steps)), tuple(percents))


def _without(steps: Sequence[StepRecord], others: Sequence[StepRecord]) -> list[StepRecord]:
    """The steps that are not as they are among `others`. Of two views of a job, one after the other, these are few."""
    known = {step.id: step for step in others}
    return [step for step in steps if known.get(step.id) != step]


def _times(steps: Sequence[StepRecord]) -> Iterator[StepTimes]:
    """The first `MAX_STEPS` steps, without those whose start is not known."""
    for step in steps[:MAX_STEPS]:
        if step.started_at is not None:
            yield StepTimes(step.name, step.started_at, step.completed_at)
