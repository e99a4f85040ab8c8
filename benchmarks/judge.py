"""The judge of forecasts: replays runs in order of time, and compares what was forecast with what came.

At any moment the forecaster knows the runs that had ended by then (prequential evaluation), and of running jobs the
events so far. It is asked at each event, and at moments that are spread evenly over each run, as many as the run is
long: over these, every second of every run has the same weight. Only completed runs are scored.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from statistics import median

from benchmarks.forecast_sets import JudgedRun
from correlator.forecast.forecaster import Forecaster
from correlator.forecast.points import JobPlace, PlaceEvent, events_of
from correlator.forecast.running import RunningJob
from correlator.model.document import ForecastState
from correlator.model.published import Forecast

MOMENTS = 16
"""Moments between events in a run of median duration. A run has 4 to 48."""

_END, _EVENT, _SAMPLE = range(3)
"""The order of what happens at one time: what an ended run teaches is known to all others."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was forecast for a run after `elapsed` of its `total` seconds, given `known` completed runs."""

    judged: JudgedRun
    at_event: bool
    weight: float
    elapsed: float
    total: float
    known: int
    p50: float
    p90: float
    percent: float
    state: ForecastState | None
    """None: there was no basis."""

    @property
    def left(self) -> float:
        return self.total - self.elapsed


@dataclass(frozen=True, slots=True)
class Verdict:
    """Every answer; and how often a shown percent fell."""

    answers: tuple[Answer, ...]
    falls: int


@dataclass(frozen=True, slots=True)
class Measures:
    """Weighted means over answers. Shares are percentages.

    c50, c90: jobs that ended before p50, before p90. nmae: mean |error of p50| divided by the mean remaining time.
    percent: mean |error| in points. Without a forecast all are 0.
    """

    c50: float = 0.0
    c90: float = 0.0
    nmae: float = 0.0
    percent: float = 0.0


def judge(runs: Sequence[JudgedRun], *, every: int = 1, seed: int = 1, forecaster: Forecaster | None = None) -> Verdict:
    """Replay `runs`. Every run is learned from; each `every`-th is asked about."""
    forecaster = Forecaster() if forecaster is None else forecaster
    running: dict[int, RunningJob] = {}
    known: Counter[tuple[str, str]] = Counter()
    answers: list[Answer] = []
    falls = 0
    for at, what, number, event, weight in _moments(runs, every, seed):
        judged = runs[number]
        job = running.get(number)
        if job is None:
            job = running[number] = RunningJob(judged.run.operation, judged.run.entity, JobPlace(judged.run.start))
        if what == _END:
            forecaster.learn(judged.run, job.predicted_ends)
            known[judged.run.operation] += judged.run.completed
            del running[number]
            continue
        if event is not None:
            job.place.apply(event)
            if not weight:
                continue
        before = job.percent
        forecast = job.forecast(forecaster, at)
        falls += forecast is not None and before is not None and forecast.percent < before
        if judged.run.completed:
            answers.append(_answer(judged, what == _EVENT, weight, at, known[judged.run.operation], forecast))
    return Verdict(tuple(answers), falls)


def measure(answers: Iterable[Answer], where: Callable[[Answer], bool] = lambda _: True) -> Measures:
    have = [answer for answer in answers if answer.state is not None and where(answer)]
    if not have:
        return Measures()

    def mean(value: Callable[[Answer], float]) -> float:
        return sum(a.weight * value(a) for a in have) / sum(a.weight for a in have)

    return Measures(
        c50=100 * mean(lambda a: a.left <= a.p50),
        c90=100 * mean(lambda a: a.left <= a.p90),
        nmae=mean(lambda a: abs(a.left - a.p50)) / mean(lambda a: a.left),
        percent=mean(lambda a: abs(a.percent - 100 * a.elapsed / a.total)),
    )


Moment = tuple[int, int, int, PlaceEvent | None, float]
"""(time, what happens, index of the run, an event to apply, weight of the answer; 0: do not ask)."""


def _moments(runs: Sequence[JudgedRun], every: int, seed: int) -> list[Moment]:
    random = Random(seed)
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for judged in runs:
        durations[judged.run.operation].append(judged.run.seconds)
    typical = {operation: median(values) or 1.0 for operation, values in durations.items()}
    found: list[Moment] = []
    for number, judged in enumerate(runs):
        run = judged.run
        if run.end <= run.start:
            continue
        found.append((run.end, _END, number, None, 0.0))
        asked = number % every == 0
        count = max(4, min(48, round(MOMENTS * run.seconds / typical[run.operation])))
        shift, weight = random.random(), run.seconds / count / typical[run.operation]
        if not asked:
            continue
        events = [event for event in events_of(run.steps, run.percents) if event.at < run.end]
        for event, following in zip_longest(events, events[1:]):
            last = following is None or following.at > event.at
            found.append((event.at, _EVENT, number, event, float(last)))
        samples = (run.start + round((run.end - run.start) * (i + shift) / count) for i in range(count))
        found += [(at, _SAMPLE, number, None, weight) for at in samples]
    found.sort(key=lambda moment: moment[:3])
    return found


def _answer(judged: JudgedRun, at_event: bool, weight: float, at: int, known: int, forecast: Forecast | None) -> Answer:
    elapsed, total = (at - judged.run.start) / 1e6, judged.run.seconds
    if forecast is None:
        return Answer(judged, at_event, weight, elapsed, total, known, 0.0, 0.0, 0.0, None)
    p50, p90 = ((end - at) / 1e6 for end in (forecast.p50, forecast.p90))
    return Answer(judged, at_event, weight, elapsed, total, known, p50, p90, forecast.percent, forecast.state)
