"""How the newest run of each operation compares with the runs before it. Pure.

Only completed runs have a duration that can be compared: a failed run ends early or late for reasons of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import TypeAlias

from msgspec import Struct

from correlator.model.replies import OperationTrend

TYPICAL_RUNS = 20
"""Completed runs before the newest one, at the most, whose median is the typical duration."""

Operation: TypeAlias = tuple[str, str]
"""(job_type, operation); "" for none."""


class ComparedRun(Struct, frozen=True):
    """One job. `seconds`: its duration; None if it is unknown or the job runs."""

    operation: Operation
    status: str
    seconds: float | None


def trends(newest_first: Iterable[ComparedRun]) -> list[OperationTrend]:
    """The trend of each operation, in the order of its newest run."""
    by_operation: dict[Operation, list[ComparedRun]] = {}
    for run in newest_first:
        by_operation.setdefault(run.operation, []).append(run)
    return [_trend(operation, runs) for operation, runs in by_operation.items()]


def _trend(operation: Operation, runs: list[ComparedRun]) -> OperationTrend:
    durations = [r.seconds for r in runs if r.status == "completed" and r.seconds is not None]
    newest, earlier = next(iter(durations), None), durations[1 : TYPICAL_RUNS + 1]
    typical = median(earlier) if earlier else None
    return OperationTrend(
        operation[0] or None,
        operation[1] or None,
        len(runs),
        sum(r.status == "completed" for r in runs),
        sum(r.status == "failed" for r in runs),
        newest,
        typical,
        round(newest / typical, 3) if newest is not None and typical else None,
    )
