"""Jobs that ended days ago, with their steps, in the tables of an appliance: what forecasts learn from at a start."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tests.support.bulk_rows import fill, job_id
from tests.support.mariadb import Database

FAILOVER = ("failover", "unified-live-failover")
"""The operation of the jobs that `Appliance.job` writes."""

_FIRST = 40_000_000
"""The number of the first job: no other function writes jobs of such numbers."""


class PastRun(NamedTuple):
    """A completed run of `seconds`. `steps`: name, begin and end in seconds after the start of the job."""

    operation: tuple[str, str]
    seconds: float
    steps: Sequence[tuple[str, float, float]] = ()


def in_sequence(*steps: tuple[str, float], operation: tuple[str, str] = FAILOVER) -> PastRun:
    """A run of these steps, one after the other: (name, seconds)."""
    ends = list(itertools.accumulate(seconds for _, seconds in steps))
    times = [(name, end - seconds, end) for (name, seconds), end in zip(steps, ends, strict=True)]
    return PastRun(operation, ends[-1], times)


def in_the_past(runs: Iterable[PastRun], now: datetime) -> Iterator[tuple[datetime, PastRun]]:
    """The runs with their starts: an hour apart, the last one two days ago."""
    placed, rnd = list(runs), random.Random(1)
    for n, run in enumerate(placed):
        yield now - timedelta(days=2, hours=len(placed) - n, seconds=rnd.random()), run


async def write_past_runs(database: Database, runs: Iterable[PastRun]) -> None:
    """Write the runs one after the other, an hour apart; the last began two days ago, so that none is in memory.

    A job's own times have whole seconds. The runs begin at random within a second, as on an appliance.
    """
    jobs, steps = [], []
    for n, (began, run) in enumerate(in_the_past(runs, datetime.now(UTC))):
        ended, name = began + timedelta(seconds=run.seconds), job_id(_FIRST + n)
        jobs.append((name, *run.operation, "completed", f"{began:%F %T}", f"{ended:%F %T}", f"{began:%F %T}"))
        for seq, (step, begin, end) in enumerate(run.steps, 1):
            times = (began + timedelta(seconds=at) for at in (begin, end))
            steps.append((name, step, seq, "completed", *(f"{at:%F %T.%f}" for at in times)))
    columns = ("id", "job_type", "operation", "status", "started_at", "completed_at", "created_at")
    await fill(database, "job_tracking", columns, jobs)
    await fill(database, "job_steps", ("job_id", "name", "seq", "status", "started_at", "completed_at"), steps)
