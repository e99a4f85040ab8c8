"""Runs of operations for tests of forecasts: built from durations, and drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from correlator.forecast.forecaster import Forecaster, Operation
from correlator.forecast.points import EndedRun, JobPlace, StepTimes, events_of
from correlator.forecast.running import RunningJob
from correlator.model.published import Forecast
from correlator.model.rows import Micros

OPERATION = ("failover", "live")
BASE = 1_758_553_933_000_000
SECOND = 1_000_000


def ended(
    *steps: tuple[str, float], start: Micros = BASE, vm: str = "", operation=OPERATION, completed: bool = True
) -> EndedRun:
    """A run of these steps, one after the other: (name, seconds)."""
    times, at = [], start
    for name, seconds in steps:
        end = at + round(seconds * SECOND)
        times.append(StepTimes(name, at, end))
        at = end
    return EndedRun(operation, vm, start, at, completed, tuple(times))


def learned(runs: Sequence[EndedRun], forecaster: Forecaster | None = None) -> Forecaster:
    forecaster = Forecaster() if forecaster is None else forecaster
    for run in runs:
        forecaster.learn(run)
    return forecaster


def job(*, start: Micros = BASE, vm: str = "", operation=OPERATION) -> RunningJob:
    return RunningJob(operation, vm, JobPlace(start))


def step_started(place: JobPlace, name: str, at: Micros) -> None:
    (start,) = events_of([StepTimes(name, at, None)])
    place.apply(start)


def step_ended(place: JobPlace, name: str, started_at: Micros, at: Micros) -> None:
    runs, ended = (set(events_of([StepTimes(name, started_at, end)])) for end in (None, at))
    (end,) = ended - runs
    place.apply(end)


def forecast(running: RunningJob, forecaster: Forecaster, at: Micros) -> Forecast:
    """The forecast of a job that has a basis."""
    found = running.forecast(forecaster, at)
    assert found is not None
    return found


def operation(forecaster: Forecaster) -> Operation:
    """What is known of `OPERATION`."""
    found = forecaster.operation(OPERATION)
    assert found is not None
    return found


def left(found: Forecast) -> float:
    """Seconds until p50."""
    return (found.p50 - found.as_of) / SECOND


names = st.sampled_from(["copy", "snapshot", "attach", "start", "x" * 200])
durations = st.one_of(st.integers(0, 20 * SECOND), st.integers(0, 40 * 86_400 * SECOND))


@st.composite
def runs(draw, vms=("", "vm1", "vm2")) -> EndedRun:
    """A run whose steps may overlap, repeat, take no time, or lie outside of the run; and what it reported."""
    start = BASE + draw(st.integers(0, 10**12))
    steps = []
    for name in draw(st.lists(names, max_size=6)):
        began = start + draw(st.integers(-SECOND, 3600 * SECOND))
        steps.append(StepTimes(name, began, began + draw(durations)))
    ends = [step.ended_at for step in steps if step.ended_at is not None]
    end = max([start, *ends]) + draw(st.sampled_from([0, 1, SECOND, -SECOND]))
    reported = st.tuples(st.integers(start, start + 3600 * SECOND), st.integers(0, 100))
    percents = tuple(sorted(draw(st.lists(reported, max_size=4))))
    completed = draw(st.integers(0, 9)) > 0
    return EndedRun(OPERATION, draw(st.sampled_from(vms)), start, end, completed, tuple(steps), percents)


histories = st.lists(runs(), max_size=40)
