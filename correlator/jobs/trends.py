"""How the newest run of each operation compares with the runs before it. Pure.

Only completed runs have a duration that can be compared: a failed run ends early or late for reasons of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import TypeAlias

from msgspec import Struct

TYPICAL_RUNS = 20
"""Completed runs before the newest one, at the most, whose median is the typical duration."""

Operation: TypeAlias = tuple[str, str]
"""(job_type, operation); "" for none."""


class Run(Struct, frozen=True):
    """One job. `seconds`: its duration; None if it is unknown or the job runs."""

    operation: Operation
    status: str
    seconds: float | None


class Trend(Struct, frozen=True):
    """The runs of one operation. `typical_seconds`: the median of the completed runs before the newest of them."""

    operation: Operation
    runs: int
    completed: int
    failed: int
    newest_seconds: float | None = None
    typical_seconds: float | None = None

    @property
    def ratio(self) -> float | None:
        """The newest duration divided by the typical one; None if either is unknown, or the typical one is 0."""
        if self.newest_seconds is None or not self.typical_seconds:
            return None
        return self.newest_seconds / self.typical_seconds


def trends(newest_first: Iterable[Run]) -> list[Trend]:
    """The trend of each operation, in the order of its newest run."""
    by_operation: dict[Operation, list[Run]] = {}
    for run in newest_first:
        by_operation.setdefault(run.operation, []).append(run)
    return [_trend(operation, runs) for operation, runs in by_operation.items()]


def _trend(operation: Operation, runs: list[Run]) -> Trend:
    durations = [r.seconds for r in runs if r.status == "completed" and r.seconds is not None]
    earlier = durations[1 : TYPICAL_RUNS + 1]
    return Trend(
        operation,
        len(runs),
        sum(r.status == "completed" for r in runs),
        sum(r.status == "failed" for r in runs),
        durations[0] if durations else None,
        median(earlier) if earlier else None,
    )
