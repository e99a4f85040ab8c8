"""The remaining time and the percent of a running job at a moment, between two changes of its document. Pure.

`remaining` of client.js applies the same rule; tests/data/remaining.json has the cases that both are tested with.
"""

from __future__ import annotations

from msgspec import Struct

from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.jobs.forecast.percent import percent_by_clock


class Remaining(Struct, frozen=True):
    """Seconds until the job ends: in half of all cases before `p50`, in nine of ten before `p90`; 0 where that is over.

    `percent`: how far the job is.
    """

    p50: float
    p90: float
    percent: float


def remaining(job: Document, now: float) -> Remaining | None:
    """The forecast of a document at `now`, in seconds since 1970 by the daemon's clock; None without a forecast.

    Percent moves with the clock, but never falls and is at most 99. It stands while the job is overdue, since no
    earlier run supports that it is getting on, and where the job itself reports a percent.
    """
    forecast, progress = job.get("forecast") or {}, job.get("progress") or {}
    ends = forecast.get("ends_at") or {}
    p50, p90, as_of = moment(ends.get("p50")), moment(ends.get("p90")), moment(forecast.get("as_of"))
    if p50 is None or p90 is None or as_of is None:
        return None
    percent, started = float(progress.get("percent") or 0.0), moment(job.get("started_at"))
    if started is not None and progress.get("basis") == "history" and forecast.get("state") != "overdue":
        percent = percent_by_clock(
            now, percent=percent, as_of=as_of.timestamp(), started=started.timestamp(), p50=p50.timestamp()
        )
    return Remaining(max(0.0, p50.timestamp() - now), max(0.0, p90.timestamp() - now), percent)
