"""Job documents: how a patch is merged into one, which is the newest, which one an ID names, and their times.

`remaining` says how far a running job is at a moment between two changes of its document. client.js has the same rule;
tests/data/remaining.json has the cases that both are tested with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from correlator.client.messages import Document
from correlator.forecast.percent import percent_by_clock


def merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch and return the result; the arguments are not changed. See RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def named(jobs: Mapping[str, Document], name: str) -> Document | None:
    """Find a job by any ID, in the order of docs/protocol.md; the newest if several have the ID."""
    if name in jobs:
        return jobs[name]
    by_external = [job for job in jobs.values() if name in (job.get("external_ids") or ())]
    found = by_external or [job for job in jobs.values() if job.get("context_id") == name]
    return max(found, key=age_key, default=None)


def age_key(job: Document) -> tuple[str, float, str]:
    """Sort key by age, the newest last; the same rule as `correlator.model.published.JobView.age_key`."""
    none_yet = 0 if job.get("terminal") else math.inf
    first = min(map(int, job.get("steps") or ()), default=none_yet)
    return (job.get("started_at") or "", first, job.get("job_id") or "")


FIRST = datetime(1, 1, 2, tzinfo=UTC)
LAST = datetime(9999, 12, 30, tzinfo=UTC)
"""The times that every time zone can express, and a minute more."""


def moment(stamp: object) -> datetime | None:
    """Parse the RFC 3339 time of a document; None if it is absent or not a time. It is from `FIRST` to `LAST`."""
    try:
        found = datetime.fromisoformat(stamp) if isinstance(stamp, str) else None
    except ValueError:
        return None
    if found is None:
        return None
    return max(FIRST, min(found if found.tzinfo is not None else found.replace(tzinfo=UTC), LAST))


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
