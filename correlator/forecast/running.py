"""The forecast of one running job, and what was forecast so far."""

from __future__ import annotations

from msgspec import Struct

from correlator.forecast.estimate import Estimate
from correlator.forecast.forecaster import Forecaster
from correlator.forecast.percent import percent_of
from correlator.forecast.points import JobPlace, seconds
from correlator.forecast.steps import StepHistory
from correlator.model.document import StepAhead
from correlator.model.published import Forecast
from correlator.model.rows import Micros

MAX_PREDICTED = 32
"""Ends that are judged when the job has ended, one for each of its first events."""


class RunningJob(Struct):
    """A job that runs. Apply its events to `place`; a checkpoint may store the whole object.

    `operation`: (job type, operation). `entity`: its VM, or "" if that is not known.
    `percent`: as last forecast, None without a basis. It never falls.
    `reported`: the highest percent that the job itself reported, None without one. It then is the percent.
    `predicted_ends`: the p90 of the first forecast after each event. `Forecaster.learn` compares them with the end.
    """

    operation: tuple[str, str]
    entity: str
    place: JobPlace
    percent: float | None = None
    reported: float | None = None
    predicted_ends: list[Micros] = []
    predicted_events: int = -1
    """The number of events at the last forecast."""

    def forecast(self, forecaster: Forecaster, now: Micros, known_within: float = 0.0) -> Forecast | None:
        """The forecast at `now`; None without a basis. `known_within`: seconds until an event of the job is known."""
        operation = forecaster.operation(self.operation)
        estimate = forecaster.estimate(self.operation, self.entity, self.place, now, known_within)
        if operation is None or estimate is None:
            return None
        percent = self._percent(estimate, now)
        p90 = now + round(estimate.p90 * 1_000_000)
        if self.predicted_events != self.place.events and len(self.predicted_ends) < MAX_PREDICTED:
            self.predicted_ends.append(p90)
        self.predicted_events = self.place.events
        return Forecast(
            as_of=now,
            p50=now + round(estimate.p50 * 1_000_000),
            p90=p90,
            percent=percent,
            runs=estimate.runs,
            state=estimate.state,
            typical_seconds=operation.typical_seconds,
            failure_rate=operation.failure_rate,
            steps_ahead=self._ahead(operation.steps),
        )

    def report(self, percent: float) -> None:
        """Apply the percent that the job itself reports, at most `MAX_PERCENT`. It does not fall."""
        self.reported = max(percent, self.reported or 0.0)
        self.percent = max(self.reported, self.percent or 0.0)

    def _ahead(self, steps: StepHistory) -> tuple[StepAhead, ...]:
        """The steps that may follow, without those that run: parallel steps may begin in any order."""
        found, running = steps.ahead(self.place.last_step), self.place.running
        return found if len(running) < 2 else tuple(step for step in found if running.get(step.name, 0) <= 0)

    def _percent(self, estimate: Estimate, now: Micros) -> float:
        """Advance `percent`. It stands while no earlier run supports that the job is getting on."""
        if self.percent is None or (self.reported is None and not estimate.extrapolated):
            elapsed = seconds(self.place.start, now)
            total = elapsed + estimate.for_percent
            self.percent = max(percent_of(elapsed, total), self.percent or 0.0)
        return self.percent
