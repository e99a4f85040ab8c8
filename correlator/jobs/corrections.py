"""What the tables said of a job and the log did not: JobLog's losses, each counted once.

JobLog writes the table first and its row follows, so a difference counts once it has lasted for a grace. Jobs that
ended before we looked are nobody's loss; neither is what a job that we found at work had done until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

from msgspec import Struct

from correlator.jobs.model import Job, JobEvent, Micros, Status

GRACE = 5_000_000
"""Microseconds that a log row may lag behind its table."""

Lost: TypeAlias = Literal["job_started", "job_ended", "step_started", "step_ended", "error", "percent"]
"""The row that never came. Error: it came, with another text than the table has. Percent: others came, but not this."""

LOST: tuple[Lost, ...] = get_args(Lost)

_Difference: TypeAlias = tuple[Lost, int | None]
"""What is lost, and of which step (or which percent)."""


class _Looked(Struct):
    """What was found of one job: differences since when, and those that have been counted."""

    waiting: dict[_Difference, Micros] = {}
    told: set[_Difference] = set()


class Corrections:
    """Looks at jobs from their start until what followed their end has had its time."""

    def __init__(self) -> None:
        self._looked: dict[str, _Looked] = {}

    def read(self, before: Job | None, job: Job, now: Micros, *, past: bool) -> list[Lost]:
        """A look at the tables made `before` into `job`. Returns what is now known to be lost, each once.

        `past`: the log has yet to be read up to now, so nothing that it lacks is a loss.
        """
        ended = _ended(job)
        begun = before is None or before.reading is None or not _ended(before)
        if job.job_id not in self._looked and (not begun or (past and ended)):
            return []
        looked = self._looked.setdefault(job.job_id, _Looked())
        if past:
            looked.told |= set(_differences(job))
            return []
        waiting = {d: looked.waiting.get(d, now) for d in _differences(job) if d not in looked.told}
        lost = [d for d, since in waiting.items() if now - since >= GRACE]
        looked.told.update(lost)
        looked.waiting = {d: since for d, since in waiting.items() if d not in looked.told}
        if ended and not looked.waiting:
            del self._looked[job.job_id]
        return [what for what, _ in lost]

    def forget(self, job_id: str) -> None:
        self._looked.pop(job_id, None)


def _ended(job: Job) -> bool:
    record = job.reading.record if job.reading is not None else None
    return record is None or record.status in _ENDED


_ENDED = frozenset(s.value for s in Status if s.ended)


def _differences(job: Job) -> Iterator[_Difference]:
    """What the last look found and no row has told."""
    record = job.reading.record if job.reading is not None else None
    if record is None or job.reading is None:
        return
    if job.started_at is None and record.status != Status.PENDING.value:
        yield "job_started", None
    if record.status in _ENDED:
        if job.event is None or job.event.status.value != record.status:
            yield "job_ended", None
        elif _differ(job.event, record.error_message):
            yield "error", None
    elif job.percent is not None and record.percent_complete not in (None, job.percent.percent):
        yield "percent", record.percent_complete
    for step in job.reading.steps or ():
        events = job.steps.get(step.id)
        if events is None or events.started_at is None:
            yield "step_started", step.id
        if step.status in _ENDED:
            if events is None or events.best is None or events.best.status.value != step.status:
                yield "step_ended", step.id
            elif _differ(events.best, step.error_message):
                yield "error", step.id


def _differ(event: JobEvent, error: str | None) -> bool:
    return (event.error or "") != (error or "")
