"""Transitions that only the tables tell: JobLog drops log rows under load, its tables are complete.

The table comes first and its log row up to seconds later, so a transition seen in a table is owed an event for a
grace; the row pays it off, and only what stays unpaid becomes an event without a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from msgspec import Struct

from correlator.jobs.model import STATUS_OF, Event, Job, Kind, Micros, Status, StepEvents, StepRecord, View

GRACE = 5_000_000
"""Microseconds that a log row may lag behind its table before its transition is announced without it."""

MAX_OWED = 50_000
MAX_HEARD = 50_000
"""Rows remembered: of a job that ends twice, both rows were heard, but only the later one shows."""

_JOB_KIND = {STATUS_OF[k]: k for k in Kind if k in STATUS_OF and not k.of_step}
_STEP_KIND = {STATUS_OF[k]: k for k in Kind if k in STATUS_OF and k.of_step}

_Key = tuple[str, int | None, Kind]


class _Owed(Struct, frozen=True, gc=False):
    due: Micros
    event: Event


class Transitions:
    """What is owed. Bounded; the oldest goes first."""

    def __init__(self) -> None:
        self._owed: dict[_Key, _Owed] = {}
        self._heard: OrderedDict[_Key, None] = OrderedDict()  # whose first is found at once, however many went before

    def heard(self, job_id: str, step_id: int | None, kind: Kind) -> None:
        """The log row of a transition has come."""
        key = (job_id, step_id, kind)
        self._owed.pop(key, None)
        self._heard[key] = None
        while len(self._heard) > MAX_HEARD:
            self._heard.popitem(last=False)

    def changed(self, old: View | None, new: View, job: Job, now: Micros) -> None:
        """The job was shown as `old` and is shown as `new`; `job` tells which of it the log has said."""
        for event in _between(old, new, job):
            key = (event.job_id, event.step_id, event.kind)
            if key not in self._heard:
                self._owed.setdefault(key, _Owed(now + GRACE, event))
        while len(self._owed) > MAX_OWED:
            del self._owed[next(iter(self._owed))]

    def owed(self) -> tuple[tuple[Micros, Event], ...]:
        """All that is owed, and when it is due."""
        return tuple((o.due, o.event) for o in self._owed.values())

    def restore(self, owed: Iterable[tuple[Micros, Event]]) -> None:
        """Owe what an earlier run owed."""
        for due, event in owed:
            self._owed[event.job_id, event.step_id, event.kind] = _Owed(due, event)

    def due(self, now: Micros) -> list[Event]:
        """The events whose rows have not come in time."""
        found = []
        for key, owed in self._owed.items():
            if owed.due > now:
                break  # insertion order is order of `due`
            found.append((key, owed.event))
        for key, _ in found:
            del self._owed[key]
        return [event for _, event in found]


def legacy_events(old: View | None, new: View) -> Iterable[Event]:
    """A legacy job has no log rows: its transitions are told at once."""
    return _between(old, new, Job(new.job_id))


def _between(old: View | None, new: View, job: Job) -> Iterator[Event]:
    if old is None or old.status is not new.status:
        yield from _of_job(old, new, job)
    before = {s.id: s for s in old.steps} if old is not None else {}
    if old is None or old.steps != new.steps:
        for step in new.steps:
            if (was := before.get(step.id)) is not step:
                yield from _of_step(new.job_id, was, step, job.steps.get(step.id))


def _of_job(old: View | None, new: View, job: Job) -> Iterator[Event]:
    begun = old is not None and old.status is not Status.PENDING
    if not begun and new.status is not Status.PENDING and job.started_at is None:
        yield Event(Kind.JOB_STARTED, new.job_id, new.started_at or 0)
    if new.terminal and not (job.event is not None and job.event.status is new.status):
        yield Event(_JOB_KIND[new.status], new.job_id, new.ended_at or new.started_at or 0, error=new.error)


def _of_step(job_id: str, old: StepRecord | None, new: StepRecord, events: StepEvents | None) -> Iterator[Event]:
    at = new.started_at or 0
    if old is None and (events is None or events.started_at is None):
        yield Event(Kind.STEP_STARTED, job_id, at, step_id=new.id, step_name=new.name)
    if new.status == "running" or (old is not None and old.status == new.status) or new.status not in _STEP_KIND:
        return
    if events is None or events.best is None or events.best.status != new.status:
        kind = _STEP_KIND[Status(new.status)]
        yield Event(kind, job_id, new.completed_at or at, None, new.id, new.name, new.error_message or None)
