"""The merge: (job, fact) → job, and job → what is shown of it.

`fold` is a join: in any order, with any repetition, the same facts end in the same job. The rule, for a job and for
each step: R is the reading with the latest tick, E the best event. If R has ended, R holds; else E, if it ranks higher
and was seen after R's look began; else R. JobLog writes the table before it queues the log row, so an event seen
before a look began is already in what that look found.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import Literal

import orjson
from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.jobs.model import (
    STATUS_OF,
    Entry,
    Fact,
    Job,
    JobEvent,
    JobRecord,
    Kind,
    LegacyRecord,
    Line,
    Micros,
    Percent,
    Reading,
    Status,
    StepEvents,
    StepRecord,
    View,
)

MAX_COUNTED = 10_000
"""Warnings and errors of one job are counted up to here; the count stays there."""

MAX_LINE = 2_000
"""Characters of the last message that a document carries."""

MAX_STEPS = 10_000
"""Steps of one job that are kept from the log alone: JobLog's jobs have some ten."""

LEGACY_PERCENT = {
    "pending": 0.0,
    "validating": 10.0,
    "snapshotting": 25.0,
    "creating_vm": 50.0,
    "switching_volume": 75.0,
    "powering_on": 90.0,
    "completed": 100.0,
    "cleanup": 100.0,
    "failed": 0.0,
}
"""As the appliance's API reports it; any other status is 50."""

LEGACY_ENDED = frozenset({"completed", "failed", "cleanup"})

_LEGACY_STATUS = {
    "pending": Status.PENDING,
    "completed": Status.COMPLETED,
    "cleanup": Status.COMPLETED,
    "failed": Status.FAILED,
}


def fold(job: Job, fact: Fact) -> Job:
    """`job` with `fact` joined; the same object where nothing is new."""
    return _read(job, fact) if isinstance(fact, Reading) else _heard(job, fact)


def is_news(job: Job, reading: Reading) -> bool:
    """Whether `reading` says what the last one did not, or decides about what the log said since that one."""
    known = job.reading
    if known is None or (reading.record, reading.steps, reading.children) != (
        known.record,
        known.steps,
        known.children,
    ):
        return True
    heard = (job.event, job.percent, *job.steps.values())
    return any(what is not None and what.tick > known.tick for what in heard)


def _read(job: Job, reading: Reading) -> Job:
    if job.reading is not None and job.reading.tick >= reading.tick:
        return job
    return replace(job, reading=reading)


def _heard(job: Job, entry: Entry) -> Job:
    changes: dict[str, object] = {}
    if job.last is None or (entry.at, entry.event_id) > (job.last.at, job.last.event_id):
        changes["last"] = Line(entry.at, entry.event_id, entry.level, entry.message[:MAX_LINE])
    if entry.level == "WARN":
        changes["warnings"] = _count(job.warnings, entry)
    elif entry.level == "ERROR":
        changes["errors"] = _count(job.errors, entry)
    if entry.external_ids and not set(entry.external_ids) <= set(job.external_ids):
        changes["external_ids"] = tuple(sorted({*job.external_ids, *entry.external_ids}))
    if entry.percent is not None:
        percent = Percent(entry.at, entry.event_id, entry.percent, entry.tick)
        if job.percent is None or percent > job.percent:
            changes["percent"] = percent
    if entry.kind is not None:
        _lifecycle(job, entry, entry.kind, changes)
    return replace(job, **changes) if changes else job


def _lifecycle(job: Job, entry: Entry, kind: Kind, changes: dict[str, object]) -> None:
    if kind.of_step:
        if entry.step_id is not None and (entry.step_id in job.steps or len(job.steps) < MAX_STEPS):
            known = job.steps.get(entry.step_id)
            changes["steps"] = {**job.steps, entry.step_id: _step(known, entry, kind)}
        return
    changes["event"] = _best(job.event, entry, kind)
    if kind is Kind.JOB_STARTED:
        changes["started_at"] = entry.at if job.started_at is None else min(job.started_at, entry.at)
        for name in ("job_type", "operation", "owner", "parent_job_id"):
            changes[name] = max(getattr(job, name), getattr(entry, name))


def _step(known: StepEvents | None, entry: Entry, kind: Kind) -> StepEvents:
    started = entry.at if kind is Kind.STEP_STARTED else None
    if known is None:
        best = _best(None, entry, kind)
        return StepEvents(entry.tick, best, started, entry.step_name, entry.sequence)
    return StepEvents(
        tick=max(known.tick, entry.tick),
        best=_best(known.best, entry, kind),
        started_at=min((t for t in (known.started_at, started) if t is not None), default=None),
        name=max(known.name, entry.step_name),
        seq=max(known.seq, entry.sequence),
    )


def _best(known: JobEvent | None, entry: Entry, kind: Kind) -> JobEvent:
    event = JobEvent(STATUS_OF[kind], entry.at, entry.event_id, entry.tick, entry.error)
    if known is None or _order(event) > _order(known):
        return event
    return known


def _order(event: JobEvent) -> tuple[int, Micros, int]:
    return (event.status.rank, event.at, event.event_id)


def _count(known: frozenset[int], entry: Entry) -> frozenset[int]:
    # Ids are used again after a crash or a restore, so a row is its id and its time, in the 63 bits that every format
    # can write. Keeping the smallest keys is itself a join, which a plain counter is not.
    key = ((entry.at << 24) ^ entry.event_id) & ((1 << 63) - 1)
    if key in known:
        return known
    counted = known | {key}
    return counted if len(counted) <= MAX_COUNTED else frozenset(nsmallest(MAX_COUNTED, counted))


def view(job: Job, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS) -> View:
    """What is shown of `job`."""
    record = job.reading.record if job.reading is not None else None
    tick = job.reading.tick if job.reading is not None else -1
    status, ahead = _resolve(record.status if record else None, record is not None, tick, job.event)
    steps = _steps(job)
    percent, basis = _progress(status, _reported(job, record, tick), steps)
    if record is None:
        record = JobRecord(
            job.job_id,
            operation=job.operation or None,
            job_type=job.job_type or None,
            parent_job_id=job.parent_job_id or None,
            started_at=job.started_at,
            owner=job.owner or None,
        )
    ids = joblog.external_ids(record.external_job_id, record.metadata, id_keys)
    return View(
        job_id=job.job_id,
        status=status,
        external_ids=(*ids, *(x for x in job.external_ids if x not in ids)),
        context_id=record.context_id or None,
        parent_job_id=record.parent_job_id or None,
        job_type=record.job_type or None,
        operation=record.operation or None,
        category=record.job_category or None,
        owner=record.owner or None,
        error=(ahead.error if ahead is not None else None) or record.error_message or None,
        started_at=record.started_at if record.started_at is not None else record.created_at,
        ended_at=_ended_at(status, record, ahead),
        percent=percent,
        basis=basis,
        steps=steps,
        last=job.last,
        warnings=len(job.warnings),
        errors=len(job.errors),
        metadata=record.metadata if joblog.metadata_object(record.metadata) is not None else None,
    )


def view_after(before: Job, old: View, job: Job, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS) -> View:
    """`view(job)`, where `old` is `view(before)`: most rows of the log only say something, and change little of it."""
    same = (
        job.reading is before.reading
        and job.event is before.event
        and job.steps is before.steps
        and job.percent is before.percent
        and job.external_ids is before.external_ids
    )
    if not same or job.reading is None or job.reading.record is None:
        return view(job, id_keys)
    return replace(old, last=job.last, warnings=len(job.warnings), errors=len(job.errors))


def alive_at(job: Job) -> Micros:
    """The last sign of life of `job`, 0 if there is none: a row, a touched record, a step that began or ended."""
    record = job.reading.record if job.reading is not None else None
    signs = [job.last.at if job.last is not None else None, job.started_at]
    if record is not None:
        signs += [record.started_at, record.updated_at, record.created_at]
    if job.reading is not None:
        for step in job.reading.steps or ():
            signs += [step.started_at, step.completed_at]
    return max((s for s in signs if s is not None), default=0)


def _resolve(
    word: str | None, read: bool, tick: int, event: JobEvent | None, *, of_step: bool = False
) -> tuple[Status, JobEvent | None]:
    """The status by the rule of this file, and the event if it is that which holds."""
    status = _status(word, of_step=of_step) if read else None
    if status is not None and status.ended:
        return status, None
    if event is not None and event.tick > tick and event.status.rank > (-1 if status is None else status.rank):
        return event.status, event
    if status is not None:
        return status, None
    # A row of job_tracking may have no status; a job known from a log row alone is at work.
    return (Status.PENDING if read else Status.RUNNING), None


def _status(word: str | None, *, of_step: bool) -> Status | None:
    """A word of the table; one that JobLog does not know for it is somebody at work."""
    if word is None:
        return None
    try:
        status = Status(word)
    except ValueError:
        return Status.RUNNING
    return status if of_step or status is not Status.SKIPPED else Status.RUNNING


def _ended_at(status: Status, record: JobRecord, ahead: JobEvent | None) -> Micros | None:
    if not status.ended:
        return None
    if ahead is not None:
        return ahead.at
    return record.completed_at if record.completed_at is not None else record.canceled_at


def _reported(job: Job, record: JobRecord | None, tick: int) -> int | None:
    if job.percent is not None and job.percent.tick > tick:
        return job.percent.percent
    return record.percent_complete if record is not None else None


def _progress(
    status: Status, reported: int | None, steps: tuple[StepRecord, ...]
) -> tuple[float, Literal["reported", "steps"]]:
    basis: Literal["reported", "steps"]
    if reported is not None:
        percent, basis = float(min(max(reported, 0), 100)), "reported"
    else:
        done = sum(1 for s in steps if s.status == "completed")
        percent, basis = (round(100.0 * done / len(steps), 1) if steps else 0.0), "steps"
    if status is Status.COMPLETED:
        return 100.0, basis
    return min(percent, 99.0), basis


def _steps(job: Job) -> tuple[StepRecord, ...]:
    reading = job.reading
    read = {s.id: s for s in reading.steps} if reading is not None and reading.steps is not None else {}
    tick = reading.tick if reading is not None and reading.steps is not None else -1
    shown = [_merged(s, job.steps.get(s.id), tick) for s in read.values()]
    # A step that the table did not have is shown only while the log knows it from after that look.
    shown += [_merged(None, e, tick, i) for i, e in job.steps.items() if i not in read and e.tick > tick]
    shown.sort(key=lambda s: (s.seq, s.id))
    return tuple(shown)


def _merged(record: StepRecord | None, events: StepEvents | None, tick: int, step_id: int = 0) -> StepRecord:
    if events is None:
        assert record is not None
        return record
    status, ahead = _resolve(record.status if record else None, record is not None, tick, events.best, of_step=True)
    if record is None:
        record = StepRecord(step_id, events.name, events.seq, started_at=events.started_at)
        return replace(
            record,
            status=status.value,
            completed_at=ahead.at if ahead is not None and status.ended else None,
            error_message=ahead.error if ahead is not None else None,
        )
    if ahead is None or not status.ended:
        return record
    return replace(
        record, status=status.value, completed_at=ahead.at, error_message=ahead.error or record.error_message
    )


def legacy_view(record: LegacyRecord) -> View:
    """What is shown of a job that `failover_jobs` alone knows."""
    status = _LEGACY_STATUS.get(record.status, Status.RUNNING)
    kind = record.job_type
    metadata = {
        "vm_name": record.source_vm_name,
        "failover_type": kind,
        "vm_id": record.vm_id,
        "destination_vm_id": record.destination_vm_id or None,
        "legacy_status": record.status,
    }
    return View(
        job_id=record.job_id,
        status=status,
        source="legacy",
        context_id=record.vm_context_id or None,
        job_type="failover",
        operation=f"{kind}-failover" if kind else "failover",
        category="failover",
        error=record.error_message or None,
        started_at=record.started_at if record.started_at is not None else record.created_at,
        ended_at=(record.completed_at if record.completed_at is not None else record.updated_at)
        if status.ended
        else None,
        percent=LEGACY_PERCENT.get(record.status, 50.0),
        basis="legacy",
        metadata=orjson.dumps({k: v for k, v in metadata.items() if v is not None}).decode(),
    )


def vm_name(view: View) -> str:
    """The name of the machine a job is about, by the keys that JobLog's callers use; "" where there is none."""
    metadata = joblog.metadata_object(view.metadata) or {}
    for key in ("vm_name", "vm_name_or_id"):
        if isinstance(name := metadata.get(key), str):
            return name
    return ""
