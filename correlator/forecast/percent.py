"""Percent of a running job at a moment: while no new forecast comes, it goes on by the clock. Pure."""

from __future__ import annotations

MAX_PERCENT = 99.0
"""The largest percent before a job has completed."""


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
    return max(percent, min(MAX_PERCENT, 100 * (min(now, p50) - started) / total))
