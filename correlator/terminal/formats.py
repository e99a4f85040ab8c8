"""A job document in words: times, durations, sizes, steps, what was cut, and what a forecast says. Pure.

Invariants: no forecast is worded as certain. Without a forecast every text of it is empty. A text may contain the
untrusted name of a step. `now` is in seconds since 1970 by the daemon's clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import to_builtins

from correlator.client.documents import moment, remaining
from correlator.client.messages import Document, LogMessage
from correlator.client.replica import Update
from correlator.failures.sentence import sentence
from correlator.model.facts import ENDED


def stamp(text: object) -> str:
    """Format a time as ``2025-09-22T10:00:00Z``, in UTC; the current time if there is none."""
    when = moment(text) or datetime.now(UTC)
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def elapsed(thing: Document, now: float) -> float | None:
    """Seconds from the start of a job or step to its end, or to `now` (seconds since 1970) while it runs."""
    if thing.get("status") in ENDED:
        seconds = thing.get("duration_seconds")
        return float(seconds) if seconds is not None else None
    began = moment(thing.get("started_at"))
    return max(0.0, now - began.timestamp()) if began is not None else None


def duration(seconds: float | None, *, fine: bool = False) -> str:
    """Format seconds as ``12s``, ``4m 02s``, ``3h 05m`` or ``2d 04h``; with `fine`, ``3.1s`` below ten seconds."""
    if seconds is None:
        return ""
    if fine and seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def names(job: Document) -> Iterator[str]:
    """All IDs by which a job can be found."""
    yield str(job.get("job_id"))
    yield from job.get("external_ids") or ()
    if job.get("context_id"):
        yield str(job["context_id"])


def vm_name(job: Document) -> str:
    """The name of the job's virtual machine; "" if its metadata has none."""
    metadata = job.get("metadata") or {}
    found = metadata.get("vm_name") or metadata.get("vm_name_or_id")
    return found if isinstance(found, str) else ""


def operation(job: Document) -> object:
    """What people call the operation of a job."""
    return job.get("title") or job.get("operation")


def current_step(job: Document) -> object:
    """What people call the running step of a job."""
    return job.get("current_step_title") or job.get("current_step")


def step_title(step: Document) -> object:
    """What people call a step, also one that is still to come."""
    return step.get("title") or step.get("name")


def instance(job: Document) -> str:
    """The appliance of a job of a gateway; "" elsewhere."""
    return str(job.get("instance") or "")


def document_percent(job: Document) -> float:
    return float((job.get("progress") or {}).get("percent") or 0.0)


def steps_of(job: Document) -> list[tuple[str, Document]]:
    """(id, step) in the order of `seq`. Steps without one are not in the tables yet and come last."""
    steps: Mapping[str, Document] = job.get("steps") or {}
    return sorted(steps.items(), key=lambda item: (not item[1].get("seq"), item[1].get("seq") or 0, item[0].zfill(20)))


def size(count: object) -> str:
    """Format a number of bytes: ``512 bytes``, ``18 MB``."""
    number = float(count) if isinstance(count, int | float) else 0.0
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= one:
            return f"{number / one:.3g} {unit}"
    return f"{number:.0f} bytes"


def cut_error(thing: Document) -> str:
    """A note with the full size of an error that was cut; "" if it is complete."""
    return f"cut: {size(thing['error_cut'])} in full" if thing.get("error_cut") else ""


def failure_sentence(job: Document) -> str:
    """Why a job failed; "" if it has not failed, or no reason was logged."""
    failure = job.get("failure") or {}
    if not failure.get("text"):
        return ""
    steps = steps_of(job)
    last = steps[-1][1].get("name") if steps else None
    # A member that is null is missing in a document that a merge patch built.
    return sentence(failure.get("certainty", ""), failure.get("step"), failure["text"], last)


def metadata_of(job: Document) -> tuple[dict[str, Any], dict[str, str]]:
    """The members of a job's metadata, and by name a note on each member that was cut."""
    members = dict(job.get("metadata") or {})
    cut = found if isinstance(found := members.pop("_cut", None), dict) else {}
    # "*" is the sum of all members without a name there.
    words = {"others" if name == "*" else str(name): f"cut: {size(full)} in full" for name, full in cut.items()}
    return members, words


def counts(job: Document) -> str:
    """The number of warnings and errors in a job's log, and whether counting is still in progress."""
    numbers = ((job.get(f"{word}s") or 0, word) for word in ("warning", "error"))
    words = ", ".join(f"{number} {word}{'s' if number != 1 else ''}" for number, word in numbers)
    return words if job.get("counts_complete", True) else f"{words} so far: the log is still being counted"


def log_object(line: LogMessage) -> dict[str, Any]:
    """The members of a log line that docs/protocol.md describes."""
    members: dict[str, Any] = to_builtins(line)
    return {name: value for name, value in members.items() if name not in ("type", "dropped")}


def as_json(value: Any, indent: int | None = None) -> str:
    """Encode as ASCII JSON, which contains no control sequences for a terminal."""
    return json.dumps(value, indent=indent)


Clock = Callable[[datetime], str]
"""Formats the time of an end."""

_REASONS = {"late": "longer at this point than 90 %", "overdue": "longer at this point than any"}


def conditions(job: Document) -> list[str]:
    """Which of stalled, overdue and late the job is, the most urgent first."""
    state = _forecast_of(job).get("state")
    return (["stalled"] if job.get("stalled") else []) + ([state] if state in _REASONS else [])


def percent_at(job: Document, now: float) -> float:
    found = remaining(job, now)
    return found.percent if found is not None else document_percent(job)


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
        return f"{_about(found.p50, rough=_is_rough(job))} left (by {clock(_time_of(now + found.p50))})"
    by = f" (9 of 10 by {clock(_time_of(now + found.p90))})" if found.p90 > 0 and not _is_rough(job) else ""
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
    by = f" (by {clock(_time_of(now + found.p50))})" if clock is not None else ""
    return f"~{_coarse(found.p50)}{doubt}{by}"


def reason(job: Document) -> str:
    """Why the job is late or overdue: ``late: longer at this point than 90 % of 37 earlier runs``."""
    forecast = _forecast_of(job)
    state = str(forecast.get("state"))
    return f"{state}: {_REASONS[state]} of {_runs(forecast)}" if state in _REASONS else ""


def basis(job: Document, now: float, clock: Clock) -> str:
    """What the forecast rests on, unless `reason` says it: ``from 37 earlier runs, 9 of 10 ended by 14:36``."""
    found, forecast = remaining(job, now), _forecast_of(job)
    if found is None:
        return ""
    if _is_rough(job):
        return f"from only {_runs(forecast)}"
    runs = "" if reason(job) else f"from {_runs(forecast)}"
    by = (
        f"9 of 10 ended by {clock(_time_of(now + found.p90))}"
        if found.p90 > 0 and "overdue" not in conditions(job)
        else ""
    )
    return ", ".join(filter(None, (runs, by)))


def typical(job: Document) -> str:
    """``typical 96 s, 8 % of runs failed``."""
    forecast = _forecast_of(job)
    if forecast.get("typical_seconds") is None:
        return ""
    failed = f", {100 * forecast['failure_rate']:.0f} % of runs failed" if forecast.get("failure_rate") else ""
    return f"typical {_exact(forecast['typical_seconds'])}{failed}"


def steps_ahead(job: Document) -> Iterator[str]:
    """``then vm-creation, about 12 s, in 97 % of runs``, for each step that may follow."""
    for step in _forecast_of(job).get("steps_ahead") or ():
        share, seconds = step.get("share") or 0.0, step.get("typical_seconds") or 0.0
        took = f"about {_exact(seconds)}" if seconds >= 1 else "under 1 s"
        runs = f"{100 * share:.0f} % of runs" if share < 0.995 else "all earlier runs"
        yield f"then {step_title(step)}, {took}, in {runs}"


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


def _forecast_of(job: Document) -> Document:
    return job.get("forecast") or {}


def _is_rough(job: Document) -> bool:
    return _forecast_of(job).get("state") == "rough"


def _runs(thing: Document) -> str:
    return f"{thing.get('runs') or 'some'} earlier runs"


def _time_of(seconds: float) -> datetime:
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


class Percents:
    """The percent of jobs as a terminal shows them, frame after frame. It holds the jobs of one frame.

    It goes on by the clock, and goes back only where a document has less than the one before: the daemon's do not while
    the same steps run. `Progress` in web/page/outlook.js does the same.
    """

    def __init__(self) -> None:
        self._shown: dict[str, tuple[float, float]] = {}
        """The percent of the document, and the one that was shown, by job ID."""

    def of(self, jobs: Iterable[Document], now: float) -> Mapping[str, float]:
        """The percent of each of these jobs by its ID, in a frame at `now`. All other jobs are forgotten."""
        shown = dict[str, tuple[float, float]]()
        for job in jobs:
            job_id, percent = str(job.get("job_id")), document_percent(job)
            before, at_least = self._shown.get(job_id, (0.0, 0.0))
            shown[job_id] = percent, max(percent_at(job, now), at_least if percent >= before else 0.0)
        self._shown = shown
        return {job_id: percent for job_id, (_, percent) in shown.items()}


SAME_CLOCK = 2.0
"""Seconds of clock difference that are ignored, because they may be the latency of a message."""


def ahead(update: Update) -> float:
    """Seconds that the daemon's clock is ahead of ours. Latency is no difference: it would take bars back."""
    return update.ahead if abs(update.ahead) > SAME_CLOCK else 0.0


def note(update: Update) -> str:
    """Describe a problem of the connection or of the daemon's database; "" if there is none."""
    if update.connection.state == "offline":
        reason = (update.connection.error or "the connection ended").splitlines()[0]
        return f"{reason}; trying again"
    if update.database is not None and update.database.source != "live":
        return f"this may be out of date: {update.database.error or 'nothing of the database has been read yet'}"
    return ""
