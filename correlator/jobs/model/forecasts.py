"""What earlier runs of an operation say of one job: as it is published, and as a checkpoint stores it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from msgspec import Struct

from correlator.jobs.model.rows import Int64, Micros


class State(StrEnum):
    """How a job compares with earlier runs that were at the same point."""

    ROUGH = "rough"
    """Too few runs were at the point."""
    ON_TRACK = "on_track"
    LATE = "late"
    """It has waited there longer than 90 % of them."""
    OVERDUE = "overdue"
    """It has waited there longer than any: p50 and p90 are extrapolated."""


class StepAhead(Struct, frozen=True, gc=False):
    """A step that came later in `share` (0 to 1) of the earlier runs. `typical_seconds`: the median of its time."""

    name: str
    share: float
    typical_seconds: float


class Forecast(Struct, frozen=True, gc=False):
    """When a job will end, as of `as_of`: in half of all cases before `p50`, in nine of ten before `p90`.

    `runs`: the earlier runs that it rests on. `typical_seconds`: the median duration of completed runs.
    `failure_rate`: the share of runs that did not complete, 0 to 1.
    """

    as_of: Micros
    p50: Micros
    p90: Micros
    percent: float
    runs: int
    state: State
    typical_seconds: float = 0.0
    failure_rate: float = 0.0
    steps_ahead: tuple[StepAhead, ...] = ()


class Comparison(Struct, frozen=True, gc=False):
    """An ended run beside `runs` earlier ones. `percentile`: the percentage of them that took less time."""

    typical_seconds: float
    runs: Int64
    percentile: float


class JobForecast(Struct, frozen=True, gc=False):
    """What is published of a job besides its view.

    `percent` and `basis` replace those of the view; None: the view's are published. `forecast`: of a running job.
    `compared_with`: of an ended one.
    """

    percent: float | None = None
    basis: Literal["reported", "history"] | None = None
    forecast: Forecast | None = None
    compared_with: Comparison | None = None


class PersistedForecast(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a checkpoint stores of the forecast of one job: what is published, and what `TrackedJob` remembers.

    `tracked`: there is a `TrackedJob`. `unlearned`: the job has ended, and its run was not learned yet.
    """

    published: JobForecast | None = None
    tracked: bool = False
    unlearned: bool = False
    percent: float | None = None
    reported: float | None = None
    predicted_ends: tuple[Micros, ...] = ()
    predicted_events: int = -1
    percents: tuple[tuple[Micros, float], ...] = ()
    first_p50: Micros | None = None
    announced: State | None = None
