"""What is watched: some IDs, the job that each leads to, and what has happened to it. Pure.

Always: a happening is told once. A job or step that an outage shows us again is no news, nor one that a daemon which is
still loading shows as it was before; an end that turns out to have been another one is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from correlator.replica import Update, named
from correlator.replica.messages import Document, Log
from correlator.terminal import signs

KEPT_LINES = 200

COMPLETED, FAILED, CANCELLED, NOT_FOUND, NOT_ENDED = 0, 10, 11, 12, 1
"""Exit codes."""

_ENDINGS = {"completed": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}
_RANKS = {"pending": 0, "running": 1}

Kind = Literal["job", "step", "log", "error", "stalled", "recovered", "deleted", "lost"]


class Happening(Struct, frozen=True):
    """One line of what happened to the job that `name` leads to. `status`: of the job or step, if it is about one."""

    name: str
    job_id: str
    kind: Kind
    at: str | None
    text: str
    status: str = ""
    log: Log | None = None


class Watched:
    """One ID. Its job stays as it was last seen when a daemon that has just started does not know it yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.job: Document | None = None
        self.logs: deque[Log] = deque(maxlen=KEPT_LINES)
        self.deleted = False
        self._said: dict[str, str] = {}
        self._error: str | None = None

    @property
    def status(self) -> str:
        return str(self.job.get("status")) if self.job is not None else ""

    @property
    def ended(self) -> bool:
        return self.deleted or self.status in _ENDINGS

    def code(self, *, by_status: bool) -> int:
        """What a watch that is over ends with for this ID; without `by_status` any end of a job is a good one."""
        if self.job is None or (self.deleted and self.status not in _ENDINGS):
            return NOT_FOUND
        if self.status not in _ENDINGS:
            return NOT_ENDED
        return _ENDINGS[self.status] if by_status else COMPLETED

    def see(self, job: Document) -> Iterator[Happening]:
        """Its job is now `job`."""
        before, self.job, self.deleted = self.job, job, False
        if before is not None and before.get("job_id") != job.get("job_id"):
            self._error = None
            self.logs.clear()
            if before.get("source") != "legacy" or job.get("source") == "legacy":
                self._said.clear()  # the ID names another run now; else it is the same one, known better
        job_id = str(job["job_id"])
        happenings = [*self._of_job(job, job_id)]
        started = [h for h in happenings if h.kind == "job" and h.status not in _ENDINGS]
        ended = [h for h in happenings if h not in started]
        yield from started
        yield from sorted(self._of_steps(job, job_id), key=lambda happening: happening.at or "")
        yield from ended
        if bool(job.get("stalled")) != bool((before or {}).get("stalled")):
            text = "stalled: nothing is heard of it" if job.get("stalled") else "goes on"
            kind: Kind = "stalled" if job.get("stalled") else "recovered"
            yield Happening(self.name, job_id, kind, job.get("updated_at"), text)

    def hear(self, log: Log) -> Iterator[Happening]:
        """A log line of its job, which may have been heard before."""
        if log.event_id not in {known.event_id for known in self.logs}:
            self.logs.append(log)
            yield Happening(self.name, log.job_id, "log", log.at, f"{log.level} {log.message}", log=log)

    def lose(self) -> Iterator[Happening]:
        """The row of its job was deleted."""
        if self.job is not None and not self.deleted:
            self.deleted = True
            yield Happening(self.name, str(self.job["job_id"]), "deleted", None, "deleted")

    def _of_job(self, job: Document, job_id: str) -> Iterator[Happening]:
        status, error = str(job.get("status")), job.get("error")
        why = f": {error}" if error else ""
        if self._news("job", status):
            at = job.get("ended_at" if status in _ENDINGS else "started_at") or job.get("updated_at")
            took = signs.duration(job.get("duration_seconds"), fine=True)
            after = f" after {took}" if status in _ENDINGS and took else ""
            what = " ".join(str(part) for part in (job.get("operation"), signs.vm_name(job)) if part)
            yield Happening(self.name, job_id, "job", at, f"{what} {status}{after}{why}".strip(), status)
        elif error and error != self._error:
            yield Happening(self.name, job_id, "error", job.get("updated_at"), f"error{why}", status)
        self._error = error or self._error

    def _of_steps(self, job: Document, job_id: str) -> Iterator[Happening]:
        for number, step in signs.steps_of(job):
            status = str(step.get("status"))
            if self._news(number, status):
                at = step.get("ended_at" if status in signs.ENDED else "started_at") or job.get("updated_at")
                took = signs.duration(step.get("duration_seconds"), fine=True)
                after = f" after {took}" if status in signs.ENDED and took else ""
                why = f": {step['error']}" if step.get("error") else ""
                yield Happening(self.name, job_id, "step", at, f"step {step.get('name')} {status}{after}{why}", status)

    def _news(self, what: str, status: str) -> bool:
        said = self._said.get(what)
        if said == status or _RANKS.get(status, 2) < _RANKS.get(said or "pending", 2):
            return False
        self._said[what] = status
        return True


class Watch:
    """All IDs of one watch."""

    def __init__(self, names: Sequence[str]) -> None:
        self.all = [Watched(name) for name in dict.fromkeys(names)]
        self.lost_lines = 0

    @property
    def ended(self) -> bool:
        return all(watched.ended for watched in self.all)

    def code(self, *, by_status: bool) -> int:
        """The highest of all."""
        return max(watched.code(by_status=by_status) for watched in self.all)

    def hear(self, update: Update) -> list[Happening]:
        """What an update means for the IDs, in order."""
        found: list[Happening] = []
        changed = [update.jobs[job_id] for job_id in update.changed if job_id in update.jobs]
        touched = {name for job in changed for name in _names(job)}
        for watched in self.all:
            known = str(watched.job["job_id"]) if watched.job is not None else ""
            if watched.name in touched or known in update.changed or known in update.gone:
                job = named(update.jobs, watched.name)
                if job is not None and job is not watched.job:
                    found += watched.see(job)
                elif job is None and update.gone.get(known) == "gone":
                    found += watched.lose()
            for log in update.logs:
                if log.dropped:
                    continue
                if watched.job is not None and log.job_id == watched.job["job_id"]:
                    found += watched.hear(log)
        dropped = sum(log.dropped for log in update.logs)
        if dropped:
            self.lost_lines += dropped
            found.append(Happening("", "", "lost", None, f"{dropped} log lines came too fast and were lost"))
        return found


def _names(job: Document) -> Iterator[str]:
    yield str(job.get("job_id"))
    yield from job.get("external_ids") or ()
    if job.get("context_id"):
        yield str(job["context_id"])
