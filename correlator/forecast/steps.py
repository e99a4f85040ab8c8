"""The steps of an operation's earlier runs: which come next, in what share of the runs, and how long they take."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.forecast.points import MAX_NAME, StepTimes, seconds
from correlator.forecast.window import KEEP, Window
from correlator.model.document import StepAhead

MAX_NAMES = 96
"""Names of steps of one operation that are remembered."""

LEAST_SHARE = 0.1
"""A step that came next in a smaller share of the runs is not announced."""


class StepsState(Struct, frozen=True):
    """`StepHistory` as stored. `variants`: different runs. `runs` has the index of each run's variant, oldest first."""

    variants: tuple[tuple[str, ...], ...]
    runs: bytes
    durations: dict[str, Window]


class StepHistory:
    """The steps of the newest `KEEP` runs. Runs with equal steps are one object, so that most are stored once."""

    def __init__(self, state: StepsState | None = None) -> None:
        self._runs: deque[tuple[str, ...]] = deque(maxlen=KEEP)
        """For each run, the names of its steps in the order of their starts, with repetitions."""
        self._durations: BoundedDict[str, Window] = BoundedDict(MAX_NAMES)
        """Seconds that a run spent in all executions of a step, by its name."""
        self._typical: dict[str, float] = {}
        self._ahead: dict[str | None, tuple[StepAhead, ...]] = {}
        """Both: what was asked since the last run was learned."""
        if state is not None:
            if len(state.runs) > KEEP or max(state.runs, default=-1) >= len(state.variants):
                raise ValueError("the steps are inconsistent")
            self._durations.update(state.durations)
            for i in state.runs:
                self._remember(state.variants[i])

    @property
    def state(self) -> StepsState:
        variants = {names: i for i, names in enumerate(dict.fromkeys(self._runs))}
        return StepsState(tuple(variants), bytes(variants[names] for names in self._runs), dict(self._durations))

    def learn(self, steps: Iterable[StepTimes]) -> None:
        """Add a completed run. `steps`: its first ones (`EndedRun.first_steps`)."""
        self._ahead.clear()
        self._typical.clear()
        total: dict[str, float] = {}
        order: list[str] = []
        for step in steps:
            name = step.name[:MAX_NAME]
            order.append(name)
            duration = 0.0 if step.ended_at is None else seconds(step.started_at, step.ended_at)
            total[name] = total.get(name, 0.0) + duration
        for name, duration in total.items():
            window = self._durations.get(name)
            if window is None:
                window = self._durations[name] = Window()
            self._durations.move_to_end(name)
            window.add(duration)
        self._remember(tuple(order))

    def ahead(self, last_step: str | None) -> tuple[StepAhead, ...]:
        """The steps that came after `last_step`, the one that started last, in the order of earlier runs.

        None: the steps of a job in which none has started.
        """
        if last_step not in self._ahead:
            if len(self._ahead) > MAX_NAMES:
                self._ahead.clear()
            self._ahead[last_step] = tuple(self._find_ahead(last_step))
        return self._ahead[last_step]

    def typical_seconds(self, name: str) -> float:
        """The median time that a run spent in a step; 0 if it is not known."""
        if name not in self._durations:
            return 0.0
        if name not in self._typical:
            self._typical[name] = self._durations[name].quantile(0.5)
        return self._typical[name]

    def _find_ahead(self, last_step: str | None) -> Iterable[StepAhead]:
        """A step that ran again counts from its last execution on: what followed that is what follows now."""
        runs, counts, positions = 0, Counter[str](), Counter[str]()
        for names, count in Counter(self._runs).items():
            if last_step is not None and last_step not in names:
                continue
            runs += count
            first = 0 if last_step is None else len(names) - names[::-1].index(last_step)
            for position, name in enumerate(dict.fromkeys(names[first:])):
                counts[name] += count
                positions[name] += position * count
        for name in sorted(counts, key=lambda name: (positions[name] / counts[name], name)):
            if counts[name] >= LEAST_SHARE * runs:
                yield StepAhead(name, counts[name] / runs, self.typical_seconds(name))

    def _remember(self, names: tuple[str, ...]) -> None:
        self._runs.append(next((known for known in self._runs if known == names), names))
