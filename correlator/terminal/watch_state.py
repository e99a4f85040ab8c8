"""State of a watch: the given IDs, the job of each ID, and the events that follow from its changes. Pure.

Invariant: an event is reported once. After an outage the same state arrives again, and a daemon that is still loading
may send an older one: neither is an event. A final status that is corrected to another one is reported again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from correlator.client.documents import moment, named
from correlator.client.messages import Document, Log
from correlator.client.replica import Update
from correlator.jobs.model.facts import ENDED
from correlator.terminal import forecasts, formats
from correlator.terminal.ids import names

KEPT_LINES = 200

COMPLETED, FAILED, CANCELLED, NOT_FOUND, NOT_ENDED = 0, 10, 11, 12, 1
"""Exit codes."""

_ENDINGS = {"completed": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}
_RANKS = {"pending": 0, "running": 1}
_FORECASTS = {"rough": 0, "on_track": 0, "late": 1, "overdue": 2}

Kind = Literal["job", "step", "log", "error", "stalled", "recovered", "forecast", "deleted", "lost"]


class WatchEvent(Struct, frozen=True):
    """One event of the job with the ID `name`. `status`: the new status, if a job or step changed it."""

    name: str
    job_id: str
    kind: Kind
    at: str | None
    text: str
    status: str = ""
    log: Log | None = None


class WatchedId:
    """One ID and its job, which keeps its last state while a restarted daemon does not know it yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wanted = name
        """The ID to subscribe to: `name`, or the full ID if `name` is a short form."""
        self.past = False
        """True if the job had ended when it was first received, so its log lines have to be fetched."""
        self.job: Document | None = None
        self.logs: deque[Log] = deque(maxlen=KEPT_LINES)
        self.deleted = False
        self._reported: dict[str, str] = {}
        self._forecast = -1
        """The highest of `_FORECASTS` that was reported."""
        self._error: str | None = None

    @property
    def status(self) -> str:
        return str(self.job.get("status")) if self.job is not None else ""

    @property
    def ended(self) -> bool:
        return self.deleted or self.status in _ENDINGS

    def code(self, *, by_status: bool) -> int:
        """The exit code for this ID. Without `by_status` every final status counts as success."""
        if self.job is None or (self.deleted and self.status not in _ENDINGS):
            return NOT_FOUND
        if self.status not in _ENDINGS:
            return NOT_ENDED
        return _ENDINGS[self.status] if by_status else COMPLETED

    def set_job(self, job: Document) -> Iterator[WatchEvent]:
        """Set the current document of the job, and return the events that follow from it."""
        before, self.job, self.deleted = self.job, job, False
        if before is None:
            self.past = self.ended
        if before is not None and before.get("job_id") != job.get("job_id"):
            self._error = None
            self.logs.clear()
            self.past = self.ended
            self._forecast = -1
            if before.get("source") != "legacy" or job.get("source") == "legacy":
                self._reported.clear()  # another job; a legacy job that became a regular one is the same
        job_id = str(job["job_id"])
        events = [*self._of_job(job, job_id)]
        started = [h for h in events if h.kind == "job" and h.status not in _ENDINGS]
        ended = [h for h in events if h not in started]
        yield from started
        yield from sorted(self._of_steps(job, job_id), key=lambda event: event.at or "")
        yield from ended
        if bool(job.get("stalled")) != bool((before or {}).get("stalled")):
            text = "stalled: no sign of life" if job.get("stalled") else "no longer stalled"
            kind: Kind = "stalled" if job.get("stalled") else "recovered"
            yield WatchEvent(self.name, job_id, kind, job.get("updated_at"), text)
        yield from self._of_forecast(job, job_id)

    def add_log(self, log: Log) -> Iterator[WatchEvent]:
        """Add a log line of the job; a duplicate is ignored."""
        if log.event_id not in {known.event_id for known in self.logs}:
            self.logs.append(log)
            yield WatchEvent(self.name, log.job_id, "log", log.at, f"{log.level} {log.message}", log=log)

    def mark_deleted(self) -> Iterator[WatchEvent]:
        """Record that the job's row was deleted."""
        if self.job is not None and not self.deleted:
            self.deleted = True
            yield WatchEvent(self.name, str(self.job["job_id"]), "deleted", None, "deleted")

    def _of_job(self, job: Document, job_id: str) -> Iterator[WatchEvent]:
        status, error = str(job.get("status")), job.get("error")
        error_text = _error_text(job)
        if self._is_new("job", status):
            at = job.get("ended_at" if status in _ENDINGS else "started_at") or job.get("updated_at")
            took = formats.duration(job.get("duration_seconds"), fine=True)
            after = f" after {took}" if status in _ENDINGS and took else ""
            if beside := forecasts.comparison(job):
                after += f" ({beside})"
            where = f"on {formats.instance(job)}" if formats.instance(job) else ""
            what = " ".join(str(part) for part in (job.get("operation"), formats.vm_name(job), where) if part)
            yield WatchEvent(self.name, job_id, "job", at, f"{what} {status}{after}{error_text}".strip(), status)
        elif error and error != self._error:
            yield WatchEvent(self.name, job_id, "error", job.get("updated_at"), f"error{error_text}", status)
        self._error = error or self._error

    def _of_forecast(self, job: Document, job_id: str) -> Iterator[WatchEvent]:
        """The first forecast of a job, and once each that it became late and overdue."""
        forecast = job.get("forecast") or {}
        as_of, rank = moment(forecast.get("as_of")), _FORECASTS.get(str(forecast.get("state")), -1)
        if as_of is None or rank <= self._forecast:
            return
        self._forecast, now, clock = rank, as_of.timestamp(), forecasts.utc_clock
        texts = (forecasts.reason(job), forecasts.outlook(job, now, clock), forecasts.basis(job, now, clock))
        yield WatchEvent(self.name, job_id, "forecast", forecast["as_of"], ", ".join(filter(None, texts)))

    def _of_steps(self, job: Document, job_id: str) -> Iterator[WatchEvent]:
        for number, step in formats.steps_of(job):
            status = str(step.get("status"))
            if self._is_new(number, status):
                at = step.get("ended_at" if status in ENDED else "started_at") or job.get("updated_at")
                took = formats.duration(step.get("duration_seconds"), fine=True)
                after = f" after {took}" if status in ENDED and took else ""
                what = f"step {step.get('name')} {status}{after}{_error_text(step)}"
                yield WatchEvent(self.name, job_id, "step", at, what, status)

    def _is_new(self, what: str, status: str) -> bool:
        reported = self._reported.get(what)
        if reported == status or _RANKS.get(status, 2) < _RANKS.get(reported or "pending", 2):
            return False
        self._reported[what] = status
        return True


class WatchState:
    """All IDs of one watch, without duplicates."""

    def __init__(self, given: Sequence[str]) -> None:
        self.all = [WatchedId(name) for name in dict.fromkeys(given)]

    @property
    def ended(self) -> bool:
        return all(entry.ended for entry in self.all)

    def code(self, *, by_status: bool) -> int:
        """The highest exit code of all IDs."""
        return max(entry.code(by_status=by_status) for entry in self.all)

    def apply(self, update: Update) -> list[WatchEvent]:
        """Apply an update of the client, and return the events in order."""
        found: list[WatchEvent] = []
        changed = [update.jobs[job_id] for job_id in update.changed if job_id in update.jobs]
        touched = {name for job in changed for name in names(job)}
        for entry in self.all:
            known = str(entry.job["job_id"]) if entry.job is not None else ""
            if entry.wanted in touched or known in update.changed or known in update.gone:
                job = named(update.jobs, entry.wanted)
                if job is not None and job is not entry.job:
                    found += entry.set_job(job)
                elif job is None and update.gone.get(known) == "gone":
                    found += entry.mark_deleted()
            for log in update.logs:
                if log.dropped:
                    continue
                if entry.job is not None and log.job_id == entry.job["job_id"]:
                    found += entry.add_log(log)
        dropped = sum(log.dropped for log in update.logs)
        if dropped:
            text = f"{dropped} log lines were dropped, because they came faster than they could be sent"
            found.append(WatchEvent("", "", "lost", None, text))
        return found


def _error_text(thing: Document) -> str:
    """The error of a job or step with a note if it was cut; "" if there is none."""
    note = formats.cut_error(thing)
    return f": {thing['error']}{f' ({note})' if note else ''}" if thing.get("error") else ""
