"""How good the forecasts of the jobs that ended last were: what an operator compares with nine in ten."""

from __future__ import annotations

from statistics import fmean, median

from msgspec import Struct

WINDOW = 200
"""Ended jobs that count, the newest ones."""


class JudgedForecast(Struct, frozen=True, array_like=True):
    """One ended job. `kept`: the share of the ends named by p90 that it did not exceed, 0 to 1.

    `relative_error`: how far its first p50 was from its end, divided by its duration. None if that is not known.
    """

    kept: float
    relative_error: float | None


class Accuracy(Struct):
    """The newest `WINDOW` ended jobs that had a forecast, the oldest first. A checkpoint may store the whole object."""

    jobs: list[JudgedForecast] = []

    def add(self, kept: int, named: int, relative_error: float | None) -> None:
        """Add a job that ended. A job without a forecast (`named` is 0) does not count.

        `named`: the number of ends that p90 gave while the job ran. `kept`: how many of them it did not exceed.
        """
        if named > 0:
            self.jobs.append(JudgedForecast(kept / named, relative_error))
            del self.jobs[:-WINDOW]

    def coverage(self) -> float | None:
        """The share of ends within their p90, 0 to 1; each job has the same weight. None before the first job."""
        return fmean(job.kept for job in self.jobs) if self.jobs else None

    def median_error(self) -> float | None:
        """The median relative error of p50 when the jobs began: 0.1 is a tenth of the duration. None before any."""
        errors = [job.relative_error for job in self.jobs if job.relative_error is not None]
        return median(errors) if errors else None
