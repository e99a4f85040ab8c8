"""What the log should have said and did not: JobLog drops log rows under load, but its tables are complete.

JobLog writes the table first and the log row up to seconds later. A difference between the two therefore counts only
after it has lasted for `GRACE`. Then `Transitions` announces the transition without its row, and `compare` counts the
row as lost. `Transitions` compares what is published with the log. `compare` takes the tables themselves, also the
texts of errors and the percentages.

A log that the daemon cannot read may be one that JobLog cannot write. So the grace is watched time of the log
(`Horizon.log_watched`), which stands while the log cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.jobs.fold import alive_at, ended_at
from correlator.jobs.horizon import Horizon
from correlator.model.facts import ENDED, STATUS_OF, Job, Kind, LifecycleEvent, Status, StepEvents
from correlator.model.published import Event, JobView, Lost
from correlator.model.rows import Micros, StepRecord

GRACE = 5_000_000
"""Microseconds of watched time that a log row may lag behind its table row."""

MAX_PENDING_TRANSITIONS = 50_000
"""Transitions that wait for their log row. Beyond that, the oldest are dropped and counted."""

MAX_DUE = 5_000
"""Events without a row that one call of `Transitions.due` returns. The others follow in the next call."""

MAX_LOGGED = 50_000
"""Lifecycle rows remembered. If a job ends twice, `Job.event` holds only the later row, but both have arrived."""

_JOB_KIND = {STATUS_OF[k]: k for k in Kind if k in STATUS_OF and not k.of_step}
_STEP_KIND = {STATUS_OF[k]: k for k in Kind if k in STATUS_OF and k.of_step}
_NO_EVENTS = StepEvents(0)

_Key: TypeAlias = tuple[str, int | None, Kind]

_Difference: TypeAlias = tuple[Lost, int | None]
"""The kind of the missing row, and the step ID or the percentage that it is about."""


def _is_confirmed(status: str, event: LifecycleEvent | None) -> bool:
    """True if the best lifecycle row of a job or step has the status that its table has."""
    return event is not None and event.status.value == status


# -- transitions that are announced without a row


class Transitions:
    """Transitions that wait for their log row, in the order in which table queries found them. Bounded.

    If the row arrives within `GRACE`, it becomes the event. Otherwise the transition becomes an event without a row.
    While the daemon is still reading a backlog of the log, or cannot read it, no grace period ends.
    """

    def __init__(self, most: int = MAX_PENDING_TRANSITIONS) -> None:
        self._pending: BoundedDict[_Key, tuple[Micros, Event]] = BoundedDict(most)
        self._arrived: BoundedDict[_Key, None] = BoundedDict(MAX_LOGGED)

    def row_arrived(self, job_id: str, step_id: int | None, kind: Kind) -> None:
        """Record that the log row of a transition has arrived; the row itself is the event."""
        key = (job_id, step_id, kind)
        self._pending.pop(key, None)
        self._arrived[key] = None

    def changed(self, old: JobView | None, new: JobView, job: Job, watched: Micros, announced_until: Micros) -> int:
        """Add the transitions from `old` to `new` that no log row of `job` confirms. Their grace begins at `watched`.

        `announced_until`: if `old` is None, transitions up to this time have been announced. Returns how many were
        dropped, as too many are pending: they become no event.
        """
        evicted = self._pending.evicted
        for event in transitions(old, new, job, announced_until):
            key = (event.job_id, event.step_id, event.kind)
            if key not in self._arrived:
                self._pending.setdefault(key, (watched + GRACE, event))
        return self._pending.evicted - evicted

    def pending(self) -> tuple[tuple[Micros, Event], ...]:
        """All pending transitions, each with the watched time at which it is due."""
        return tuple(self._pending.values())

    def restore(self, pending: Iterable[Event], watched: Micros) -> None:
        """Add the pending transitions of an earlier run. Their grace begins again, at `watched`."""
        for event in pending:
            self._pending[event.job_id, event.step_id, event.kind] = watched + GRACE, event

    def due(self, watched: Micros) -> list[Event]:
        """Remove and return at most `MAX_DUE` transitions whose log rows did not arrive until `watched`."""
        found: list[Event] = []
        while self._pending and len(found) < MAX_DUE:
            key, (due, event) = next(iter(self._pending.items()))
            if due > watched:
                break
            del self._pending[key]
            found.append(event)
        return found


def transitions(old: JobView | None, new: JobView, job: Job, announced_until: Micros) -> Iterator[Event]:
    """The transitions that no log row of `job` confirms, as in `Transitions.changed`."""
    found = _transitions(old, new, job)
    return found if old is not None else (event for event in found if event.at > announced_until)


def _transitions(old: JobView | None, new: JobView, job: Job) -> Iterator[Event]:
    """The transitions in the order in which they happened: the end of the job is the last."""
    moved = old is None or old.status is not new.status
    began = new.status is not Status.PENDING and (old is None or old.status is Status.PENDING)
    if began and job.started_at is None:
        yield Event(Kind.JOB_STARTED, new.job_id, new.started_at or 0)
    if old is None or old.steps != new.steps:
        before = {s.id: s for s in old.steps} if old is not None else {}
        for step in new.steps:
            if (was := before.get(step.id)) is not step:
                yield from _of_step(new.job_id, was, step, job.steps.get(step.id, _NO_EVENTS))
    if moved and new.terminal and not _is_confirmed(new.status, job.event):
        at = ended_at(new, alive_at(job)) or new.started_at or 0
        yield Event(_JOB_KIND[new.status], new.job_id, at, error=new.error, error_cut=new.error_cut)


def _of_step(job_id: str, old: StepRecord | None, new: StepRecord, events: StepEvents) -> Iterator[Event]:
    at = new.started_at or 0
    if old is None and events.started_at is None:
        yield Event(Kind.STEP_STARTED, job_id, at, step_id=new.id, step_name=new.name)
    if new.status == "running" or (old is not None and old.status == new.status) or new.status not in _STEP_KIND:
        return
    if not _is_confirmed(new.status, events.best):
        kind = _STEP_KIND[Status(new.status)]
        error = new.error_message or None
        yield Event(kind, job_id, new.completed_at or at, None, new.id, new.name, error, new.error_cut)


# -- rows that are counted as lost


class Observed(Struct, frozen=True):
    """The comparison of one job: open differences with the watched time at which each began, and counted ones."""

    differences: Mapping[_Difference, Micros] = {}
    counted: frozenset[_Difference] = frozenset()


def compare(
    observed: Observed | None, before: Job, job: Job, horizon: Horizon, now: Micros, *, past: bool
) -> tuple[Observed | None, list[Lost]]:
    """Compare a job after a table query that changed `before` into `job`. Returns each lost row once.

    `observed`: what the last comparison returned for the next. A job is compared from its first table query until it
    has ended without a difference. Jobs that had ended before the first table query are not compared. For a job that
    was already running at the first query, what had happened before that query is not counted either. `past`: the log
    has not been read up to the present yet, so a missing row is not a loss. `now`: microseconds.
    """
    ended, begun = _has_ended(job), before.reading is None or not _has_ended(before)
    if observed is None:
        if not begun or (past and ended):
            return None, []
        observed = Observed()
    if past:
        return Observed(observed.differences, observed.counted.union(_differences(job))), []
    begins, watched = horizon.log_watched_from(now), horizon.log_watched(now)
    still_open = {d: observed.differences.get(d, begins) for d in _differences(job) if d not in observed.counted}
    lost = [d for d, since in still_open.items() if watched - since >= GRACE]
    counted = observed.counted.union(lost)
    differences = {d: since for d, since in still_open.items() if d not in counted}
    return None if ended and not differences else Observed(differences, counted), [kind for kind, _ in lost]


def _has_ended(job: Job) -> bool:
    record = job.reading.record if job.reading is not None else None
    return record is None or record.status in ENDED


def _differences(job: Job) -> Iterator[_Difference]:
    """The facts that the last table query returned and that no log row confirms."""
    if job.reading is None or (record := job.reading.record) is None:
        return
    if job.started_at is None and record.status not in (None, Status.PENDING.value):
        yield "job_started", None
    if record.status in ENDED:
        if kind := _end_difference(job.event, record.status, record.error_message, "job_ended"):
            yield kind, None
    elif job.percent is not None and record.percent_complete not in (None, job.percent.percent):
        yield "percent", record.percent_complete
    for step in job.reading.steps or ():
        events = job.steps.get(step.id)
        if events is None or events.started_at is None:
            yield "step_started", step.id
        if step.status not in ENDED:
            continue
        if kind := _end_difference(
            events.best if events is not None else None, step.status, step.error_message, "step_ended"
        ):
            yield kind, step.id


def _end_difference(event: LifecycleEvent | None, status: str, error: str | None, missing: Lost) -> Lost | None:
    """What the log lacks of an end that the table has: its row, the text of its error, or nothing."""
    if event is None or not _is_confirmed(status, event):
        return missing
    return "error" if (event.error or "") != (error or "") else None
