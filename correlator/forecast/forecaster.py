"""All operations and what is kept of the earlier runs of each: the entry to the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.forecast.estimate import ROUGH_BELOW, AtPoint, Estimate, estimate
from correlator.forecast.points import MIN_RUNS, EndedRun, JobPlace, Moment, Point, Visit
from correlator.forecast.steps import StepHistory, StepsState
from correlator.forecast.window import Tails, Window
from correlator.model.document import Comparison
from correlator.model.rows import Micros

MAX_OPERATIONS = 256
"""Pairs of job type and operation. The least recently learned is evicted first."""

MAX_ALL_ENTITIES = 20_000
"""VMs, counted once per operation. Beyond that, the least recently learned operation forgets its own."""

FIRST_LEVEL = 0.9
"""The level of p90 while nothing is known."""

LEVEL_SHARE = 0.01
"""Weight of one run in the level that a new operation begins with."""

OperationKey = tuple[str, str]
"""(job type, operation)."""

MAX_POINTS = 96
"""Points of an operation, besides its start: 48 steps. A longer run is compared at its first ones and at its start."""

MAX_ENTITIES = 2_000
"""VMs of an operation whose own earlier runs count. The one that was learned first is forgotten first."""

LEVELS = (0.80, 0.98)
"""Bounds of the level of p90, so that a lucky or an unlucky series does not make it useless."""

LEVEL_STEP = 0.03
"""How far one run moves the level: it follows a change within some 30 runs."""

MISS_RATE = 0.1
"""The share of jobs that should end after their p90."""


class Forecaster:
    """The earlier runs of all operations. One instance per daemon, called from the event loop's thread only.

    `learn` and `RunningJob.forecast` are bounded in time: some 200 µs for a run of 10 steps, some 10 µs for a forecast.
    """

    def __init__(
        self, level: float = FIRST_LEVEL, tails: Tails | None = None, max_entities: int = MAX_ALL_ENTITIES
    ) -> None:
        self.level = level
        """The level of p90 for new operations: the average of the known ones."""
        self.tails = Tails() if tails is None else tails
        self._max_entities = max_entities
        self._operations: BoundedDict[OperationKey, Operation] = BoundedDict(MAX_OPERATIONS)

    def __iter__(self) -> Iterator[tuple[OperationKey, Operation]]:
        """The operations, the least recently learned first."""
        return iter(self._operations.items())

    def __len__(self) -> int:
        return len(self._operations)

    def operation(self, key: OperationKey) -> Operation | None:
        return self._operations.get(key)

    def estimate(
        self, key: OperationKey, entity: str, place: JobPlace, now: Micros, known_within: float = 0.0
    ) -> Estimate | None:
        """The remaining time of a job; None without a basis. `RunningJob.forecast` adds percent.

        `known_within`: seconds until an event of the job is known.
        """
        operation = self._operations.get(key)
        return None if operation is None else operation.estimate(place, entity, now, self.tails, known_within)

    def has_basis(self, key: OperationKey) -> bool:
        """True if enough runs of the operation have completed for a forecast."""
        operation = self._operations.get(key)
        return operation is not None and operation.completed >= MIN_RUNS

    def compare(self, key: OperationKey, duration: float) -> Comparison | None:
        """Compare a run that took `duration` seconds with the earlier ones. None without a basis."""
        operation = self._operations.get(key)
        if operation is None or operation.completed < MIN_RUNS:
            return None
        durations = operation.durations
        return Comparison(operation.typical_seconds, len(durations), durations.percentile(duration))

    def learn(self, run: EndedRun, predicted_ends: Sequence[Micros] = ()) -> None:
        """Add a run that ended, in order of the ends. A run that ends before it starts teaches nothing."""
        if run.end < run.start:
            return
        operation = self._operations.get(run.operation)
        if operation is None:
            operation = self._operations[run.operation] = Operation(self.level)
        self._operations.move_to_end(run.operation)
        entities = operation.entities
        operation.learn(run, predicted_ends, self.tails)
        if run.completed and predicted_ends:
            self.level += LEVEL_SHARE * (operation.level - self.level)
        if operation.entities > entities:
            self._bound_entities()

    def restore(self, operations: Iterable[tuple[OperationKey, Operation]]) -> None:
        """Add operations as stored, the least recently learned first."""
        self._operations.update(operations)
        self._bound_entities()

    def _bound_entities(self) -> None:
        known = sum(operation.entities for operation in self._operations.values())
        for operation in self._operations.values():
            if known <= self._max_entities:
                return
            known -= operation.entities
            operation.forget_entities()


class OperationState(Struct, frozen=True):
    """`Operation` as stored, the least recently used points and VMs first."""

    level: float
    completed: int
    failed: int
    start: Point
    points: dict[str, Point]
    entities: dict[str, int]
    steps: StepsState
    durations: Window


class Operation:
    """The earlier runs of one operation. `level`: of p90, to begin with. Only `Forecaster` calls `learn`.

    Raises ValueError if `state` is inconsistent.
    """

    def __init__(self, level: float, state: OperationState | None = None) -> None:
        self.level = level
        self.completed = 0
        self.failed = 0
        self._start = Point()
        """Where every job begins. It answers for jobs whose own point is unknown, and it is never evicted."""
        self._points: BoundedDict[str, Point] = BoundedDict(MAX_POINTS)
        self._entities: BoundedDict[str, int] = BoundedDict(MAX_ENTITIES)
        """The index of each VM in the arrays of the points."""
        self.steps = StepHistory()
        self.durations = Window()
        """Seconds that completed runs took, as they were."""
        self._typical: float | None = None
        """The median of `durations`, None until it is asked for."""
        if state is not None:
            self._restore(state)

    @property
    def state(self) -> OperationState:
        return OperationState(
            self.level, self.completed, self.failed, self._start,
            dict(self._points), dict(self._entities), self.steps.state, self.durations,
        )  # fmt: skip

    def _restore(self, state: OperationState) -> None:
        indexes = sorted(state.entities.values())
        if len(indexes) > MAX_ENTITIES or indexes != [*range(len(indexes))] or len(state.points) > MAX_POINTS:
            raise ValueError("the operation is inconsistent")
        if min(len(state.start), len(state.durations)) < min(state.completed, MIN_RUNS):
            raise ValueError("the operation is inconsistent")
        self.level = min(max(state.level, LEVELS[0]), LEVELS[1])
        self.completed, self.failed = state.completed, state.failed
        self._start, self.durations, self.steps = state.start, state.durations, StepHistory(state.steps)
        self._points.update(state.points)
        self._entities.update(state.entities)

    @property
    def failure_rate(self) -> float:
        """The share of runs that did not complete, 0 to 1."""
        return self.failed / max(1, self.failed + self.completed)

    @property
    def typical_seconds(self) -> float:
        """The median duration of completed runs; 0 if there are none."""
        if self._typical is None:
            self._typical = self.durations.quantile(0.5)
        return self._typical

    @property
    def entities(self) -> int:
        """The number of VMs that are known."""
        return len(self._entities)

    def estimate(
        self, place: JobPlace, entity: str, now: Micros, tails: Tails, known_within: float = 0.0
    ) -> Estimate | None:
        """The remaining time of a job; None if fewer than `MIN_RUNS` runs have completed."""
        if self.completed < MIN_RUNS:
            return None
        found = [self._known(moment) for moment in place.moments]
        if len(found) > 1 and _most(found[0]) < ROUGH_BELOW <= _most(found[1]):
            del found[0]  # Few runs are known to have reported this percent, and enough to have been at the step.
        known = [one for comparisons in found for one in comparisons]
        known.append((self._start, place.start, 0.0))
        return estimate(known, now, self._entities.get(entity, -1), self.level, tails, known_within)

    def _known(self, moment: Moment) -> list[AtPoint]:
        keys, at, elapsed = moment
        return [(p, at, elapsed) for key in keys if (p := self._points.get(key)) and len(p) >= MIN_RUNS]

    def learn(self, run: EndedRun, predicted_ends: Sequence[Micros], tails: Tails) -> None:
        """Add a run. `predicted_ends`: the ends that p90 named while it ran."""
        if not run.completed:
            self.failed += 1
            return
        if predicted_ends:
            missed = sum(run.end > end for end in predicted_ends) / len(predicted_ends)
            self.level = min(max(self.level + LEVEL_STEP * (missed - MISS_RATE), LEVELS[0]), LEVELS[1])
        vm = self._index(run.entity) if run.entity else -1
        whole = Visit((), run.seconds, run.seconds, 0.0)
        self._start.learn(whole, vm, run.end, self._start.median if len(self._start) else 0.0, tails)
        typical = self._start.median
        places = ((key, visit) for visit in run.visits() for key in visit.keys)
        for key, visit in islice(places, MAX_POINTS):
            point = self._points.get(key)
            if point is None:
                point = self._points[key] = Point()
            self._points.move_to_end(key)
            point.learn(visit, vm, run.end, typical, tails)
        self.completed += 1
        self.durations.add(run.seconds)
        self._typical = None
        self.steps.learn(run.first_steps())

    def forget_entities(self) -> None:
        """Forget the VMs, but not their runs."""
        self._entities.clear()
        for point in (self._start, *self._points.values()):
            point.forget_vms()

    def _index(self, entity: str) -> int:
        """The index of a VM. A new one beyond `MAX_ENTITIES` gets that of the least recently used."""
        index = self._entities.get(entity)
        if index is None:
            index = len(self._entities)
            evicted = self._entities.put(entity, index)
            if evicted is not None:
                index = self._entities[entity] = evicted[1]
                for point in (self._start, *self._points.values()):
                    point.forget_vm(index)
        self._entities.move_to_end(entity)
        return index


def _most(comparisons: Sequence[AtPoint]) -> int:
    """The number of runs at the best known of these points."""
    return max((len(point) for point, _, _ in comparisons), default=0)
