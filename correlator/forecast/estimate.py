"""The estimate of a job's remaining time: which earlier runs answer, and the quantiles of what they took."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from msgspec import Struct

from correlator.forecast.points import Point, seconds
from correlator.forecast.window import Tails
from correlator.model.document import ForecastState
from correlator.model.rows import Micros

MIN_ANSWERS = 3
"""Runs that waited as long as this job, below which the next coarser point answers."""

GRACE = 0.01
"""Share of a typical run by which a run may have waited less than this job and still answer. An event is known some
milliseconds after it happened; meanwhile a job seems to wait longer at a point that every run leaves at once."""

LATE_GRACE = 0.05
"""The same for the state: a job that is late by less than this share of a typical run is not reported."""

LEAST_LATE_GRACE = 1.0
"""Seconds. At least so much, whatever a run takes: events are read within a second."""

ROUGH_BELOW = 10
"""Runs at a point below which quantiles are rough: p90 is the longest of them, or beyond."""

LATE_SHARE = 0.1
"""A job is late if at most this share of the earlier runs waited as long at the same point."""

PERCENT_LEVEL = 0.55
"""Quantile of the remaining time that percent is computed from. Above p50, so that percent rarely has to stand."""

HORIZON = 10 * 366 * 86_400.0
"""Seconds. No forecast is further away, so that its end stays a time that RFC 3339 can express."""


class Estimate(Struct, frozen=True, gc=False):
    """The remaining time of a job in seconds, at its quantiles; and the number of earlier runs that it rests on.

    `extrapolated`: no earlier run waited as long at the same point.
    """

    p50: float
    p90: float
    for_percent: float
    runs: int
    state: ForecastState
    extrapolated: bool


AtPoint = tuple[Point, Micros, float]
"""A point of the earlier runs, the time at which the job was there, and the seconds that it took up to there."""


def estimate(
    known: Sequence[AtPoint], now: Micros, vm: int, level: float, tails: Tails, known_within: float = 0.0
) -> Estimate:
    """The estimate for a job, with p90 at `level`. `known`: where it is and was, the finest first, its start last.

    The first of `known` at which `MIN_ANSWERS` runs answer decides; without one, the first of all.
    `vm`: the index of its VM, or -1. `known_within`: seconds until an event is known. That a job still waits is known
    only of the time before that.
    """
    typical = known[-1][0].median
    share, answer = 1.0, None
    for point, since, elapsed in known:
        scale = point.scale(vm, elapsed)
        waited = seconds(since, now) / scale
        longer = point.longer(waited - max(GRACE * typical, known_within / scale))
        if answer is None:
            share = len(longer) / len(point)
            if share <= LATE_SHARE:
                late_grace = max(LATE_GRACE * typical, LEAST_LATE_GRACE / scale)
                share = len(point.longer(waited - late_grace)) / len(point)
        if answer is None or len(longer) >= MIN_ANSWERS:
            answer = longer, point, waited, scale
        if len(longer) >= MIN_ANSWERS:
            break
    assert answer is not None
    longer, point, waited, scale = answer
    runs, longest = len(point), max(point.remaining[-1], waited)
    if not longer:  # It waited longer than any run: what followed the wait in those is still to come.
        longest = max(longest, waited + point.typical_rest())

    def quantile(level: float) -> float:
        """Seconds. One run more is counted, longer than all known ones: beyond them, its Pareto tail answers."""
        place = level * (len(longer) + 1)
        rank = ceil(place - 1e-9)
        total = longer[max(1, rank) - 1] if rank <= len(longer) else tails.beyond(runs, longest, place - len(longer))
        return min(HORIZON, scale * max(0.0, total - waited))

    p50 = quantile(0.5)
    return Estimate(p50, max(p50, quantile(level)), quantile(PERCENT_LEVEL), runs, _state(runs, share), not share)


def _state(runs: int, share: float) -> ForecastState:
    """`share`: of the earlier runs at the finest point that waited longer than this job."""
    if runs < ROUGH_BELOW:
        return ForecastState.ROUGH
    if not share:
        return ForecastState.OVERDUE
    return ForecastState.LATE if share <= LATE_SHARE else ForecastState.ON_TRACK
