"""What a forecast says, in words: the time that remains, the steps ahead, and how an ended job compares. Pure.

Invariants: no forecast is worded as certain. Without a forecast every text is empty. A text may contain the untrusted
name of a step. `now` is in seconds since 1970 by the daemon's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from correlator.client.messages import Document
from correlator.client.remaining import remaining
from correlator.terminal import formats

Clock = Callable[[datetime], str]
"""Formats the time of an end."""

_REASONS = {"late": "longer at this point than 90 %", "overdue": "longer at this point than any"}


def conditions(job: Document) -> list[str]:
    """Which of stalled, overdue and late the job is, the most urgent first."""
    state = _forecast(job).get("state")
    return (["stalled"] if job.get("stalled") else []) + ([state] if state in _REASONS else [])


def percent(job: Document, now: float) -> float:
    found = remaining(job, now)
    return found.percent if found is not None else formats.percent(job)


def local_clock(now: float, *, zone: bool = True) -> Clock:
    """A clock that prints local time, rounded up: ``14:32 CET``, with the date unless it is that of `now`.

    `zone`: append the name of the time zone.
    """
    today = datetime.fromtimestamp(now).astimezone().date()

    def clock(at: datetime) -> str:
        local = (at + timedelta(minutes=1, microseconds=-1)).astimezone()
        text = f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"
        return f"{text} {local:%Z}" if zone else text

    return clock


def utc_clock(at: datetime) -> str:
    """``2025-09-22T14:32:00Z``, rounded up."""
    return f"{at.astimezone(UTC) + timedelta(seconds=1, microseconds=-1):%Y-%m-%dT%H:%M:%SZ}"


def outlook(job: Document, now: float, clock: Clock) -> str:
    """When the job may end: ``about 3 min left (by 14:32 CET)``; "" of an overdue job: no run took so long."""
    found = remaining(job, now)
    if found is None or "overdue" in conditions(job):
        return ""
    if found.p50 > 0:
        return f"{_about(found.p50, rough=_is_rough(job))} left (by {clock(_time(now + found.p50))})"
    by = f" (9 of 10 by {clock(_time(now + found.p90))})" if found.p90 > 0 and not _is_rough(job) else ""
    return f"may end at any moment{by}"


def short_outlook(job: Document, now: float, clock: Clock | None = None) -> str:
    """The same in a few cells: ``~3 min``, or ``~3 min (by 14:32)``. A question mark: few runs or none support it."""
    found = remaining(job, now)
    if found is None:
        return ""
    if "overdue" in conditions(job):
        return "?"
    doubt = "?" if _is_rough(job) else ""
    if found.p50 <= 0:
        return f"soon{doubt}"
    by = f" (by {clock(_time(now + found.p50))})" if clock is not None else ""
    return f"~{_coarse(found.p50)}{doubt}{by}"


def reason(job: Document) -> str:
    """Why the job is late or overdue: ``late: longer at this point than 90 % of 37 earlier runs``."""
    forecast = _forecast(job)
    state = str(forecast.get("state"))
    return f"{state}: {_REASONS[state]} of {_runs(forecast)}" if state in _REASONS else ""


def basis(job: Document, now: float, clock: Clock) -> str:
    """What the forecast rests on, unless `reason` says it: ``from 37 earlier runs, 9 of 10 ended by 14:36``."""
    found, forecast = remaining(job, now), _forecast(job)
    if found is None:
        return ""
    if _is_rough(job):
        return f"from only {_runs(forecast)}"
    runs = "" if reason(job) else f"from {_runs(forecast)}"
    by = (
        f"9 of 10 ended by {clock(_time(now + found.p90))}"
        if found.p90 > 0 and "overdue" not in conditions(job)
        else ""
    )
    return ", ".join(filter(None, (runs, by)))


def typical(job: Document) -> str:
    """``typical 96 s, 8 % of runs failed``."""
    forecast = _forecast(job)
    if forecast.get("typical_seconds") is None:
        return ""
    failed = f", {100 * forecast['failure_rate']:.0f} % of runs failed" if forecast.get("failure_rate") else ""
    return f"typical {_exact(forecast['typical_seconds'])}{failed}"


def steps_ahead(job: Document) -> Iterator[str]:
    """``then vm-creation, about 12 s, in 97 % of runs``, for each step that may follow."""
    for step in _forecast(job).get("steps_ahead") or ():
        share, seconds = step.get("share") or 0.0, step.get("typical_seconds") or 0.0
        took = f"about {_exact(seconds)}" if seconds >= 1 else "under 1 s"
        runs = f"{100 * share:.0f} % of runs" if share < 0.995 else "all earlier runs"
        yield f"then {formats.step_title(step)}, {took}, in {runs}"


def comparison(job: Document) -> str:
    """How an ended job compares: ``typical 80 s; slower than 88 % of 37 earlier runs``.

    Only completed runs are known, so that a job that ended otherwise is compared with none of them.
    """
    compared = job.get("compared_with") or {}
    if compared.get("typical_seconds") is None:
        return ""
    faster, words = float(compared.get("percentile") or 0.0), f"typical {_exact(compared['typical_seconds'])}"
    if job.get("status") != "completed":
        return f"{words} for one that completes"
    if faster >= 50:
        return f"{words}; slower than {faster:.0f} % of {_runs(compared)}"
    return f"{words}; {faster:.0f} % of {_runs(compared)} were faster"


def took(job: Document) -> str:
    """``took 96 s, typical 80 s; …``: the duration of an ended job before `comparison`."""
    words, seconds = comparison(job), job.get("duration_seconds")
    return f"took {_exact(seconds)}, {words}" if words and seconds is not None else ""


def _forecast(job: Document) -> Document:
    return job.get("forecast") or {}


def _is_rough(job: Document) -> bool:
    return _forecast(job).get("state") == "rough"


def _runs(thing: Document) -> str:
    return f"{thing.get('runs') or 'some'} earlier runs"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _about(seconds: float, *, rough: bool) -> str:
    if seconds < 10:
        return "a few seconds"
    return f"{'perhaps' if rough else 'about'} {_coarse(seconds)}"


def _coarse(seconds: float) -> str:
    """``35 s``, ``3 min``, ``2 h 10 min``, ``4 d``: as exact as a forecast can be."""
    if seconds < 97.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 5370:
        return f"{round(seconds / 60)} min"
    hours, tens = divmod(round(seconds / 600), 6)
    if hours < 36:
        return f"{hours} h {tens}0 min" if tens else f"{hours} h"
    return f"{round(seconds / 86400)} d"


def _exact(seconds: float) -> str:
    """``3.1 s``, ``96 s``, ``3 min 05 s``, ``2 h 10 min``, ``4 d 3 h``."""
    whole = round(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
