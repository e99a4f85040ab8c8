"""What is known of all operations: the entry to the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from correlator.jobs.bounded import BoundedDict
from correlator.jobs.forecast.estimate import Estimate
from correlator.jobs.forecast.operation import Operation
from correlator.jobs.forecast.place import EndedRun, Place
from correlator.jobs.forecast.points import MIN_RUNS
from correlator.jobs.forecast.tails import Tails
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


class Forecaster:
    """The earlier runs of all operations. One instance per daemon, called from the event loop's thread only.

    `learn` and `RunningJob.forecast` are bounded in time: some 200 µs for a run of 10 steps, some 10 µs for a forecast.
    """

    def __init__(self, level: float = FIRST_LEVEL, tails: Tails | None = None) -> None:
        self.level = level
        """The level of p90 for new operations: the average of the known ones."""
        self.tails = Tails() if tails is None else tails
        self._operations: BoundedDict[OperationKey, Operation] = BoundedDict(MAX_OPERATIONS)

    def __iter__(self) -> Iterator[tuple[OperationKey, Operation]]:
        """The operations, the least recently learned first."""
        return iter(self._operations.items())

    def __len__(self) -> int:
        return len(self._operations)

    def operation(self, key: OperationKey) -> Operation | None:
        return self._operations.get(key)

    def estimate(
        self, key: OperationKey, entity: str, place: Place, now: Micros, known_within: float = 0.0
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
            if known <= MAX_ALL_ENTITIES:
                return
            known -= operation.entities
            operation.forget_entities()
