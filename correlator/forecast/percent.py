"""Percent never falls while the same steps run, and is at most `MAX_PERCENT` until the job has completed. Pure.

It is what the job reports, or is counted by its steps (`progress`), or comes from a forecast (`percent_of`). While no
new forecast comes it goes on by the clock (`percent_by_clock`), and `held` keeps a forecast from taking back what was
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from correlator.model.facts import Status
from correlator.model.published import JobForecast, JobView, PublishedJob
from correlator.model.rows import StepRecord

MAX_PERCENT = 99.0
"""The largest percent before a job has completed."""


def percent_of(elapsed: float, total: float) -> float:
    """Percent of a running job after `elapsed` of `total`, both in one unit. 0 without a total."""
    return min(MAX_PERCENT, 100.0 * elapsed / total) if total > 0 else 0.0


def percent_by_clock(now: float, *, percent: float, as_of: float, started: float, p50: float) -> float:
    """Percent at `now`, which was `percent` at `as_of`. The times and the expected end `p50` are in one unit.

    It is elapsed time divided by total time, as `RunningJob.forecast` computes it, so that the next forecast finds a
    bar where the clock has put it. The total is the one that `percent` came from. Where `percent` was higher than its
    forecast because it must not fall, the total is that of p50, and percent stands until the elapsed time has caught
    up. It never falls, and it stands from p50 on.
    """
    total = p50 - started
    if percent > 0:
        total = max(total, 100 * (as_of - started) / percent)
    if total <= 0:
        return percent
    return max(percent, percent_of(min(now, p50) - started, total))


def held(made: JobForecast | None, old: PublishedJob | None, view: JobView) -> JobForecast | None:
    """`made`, with no less percent than `old` while the same steps run, and at their failure."""
    if made is None or made.percent is None or old is None or made.percent >= old.percent:
        return made
    if old.view.status is not Status.RUNNING or not _same_steps(old.view.steps, view.steps):
        return made
    return replace(made, percent=old.percent)


def _same_steps(old: Sequence[StepRecord], new: Sequence[StepRecord]) -> bool:
    """True if no step has begun since `old`, or begun again."""
    return len(old) == len(new) and all(
        was is now or (was.id == now.id and (was.status == "running" or now.status != "running"))
        for was, now in zip(old, new, strict=True)
    )


def progress(
    status: Status, reported: int | None, steps: tuple[StepRecord, ...]
) -> tuple[float, Literal["reported", "steps"]]:
    """Percent without a forecast, and what it rests on: `reported` by the job, or the share of its completed steps."""
    basis: Literal["reported", "steps"]
    if reported is not None:
        percent, basis = float(min(max(reported, 0), 100)), "reported"
    else:
        done = sum(1 for s in steps if s.status == "completed")
        percent, basis = (round(100.0 * done / len(steps), 1) if steps else 0.0), "steps"
    if status is Status.COMPLETED:
        return 100.0, basis
    return min(percent, MAX_PERCENT), basis
