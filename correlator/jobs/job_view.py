"""The published view of a job, computed from its joined facts: `view(job)`.

One rule decides the status of a job and of each step. R is the reading with the latest `observed_at`, E the event with
the highest rank. If R's status is an end, R applies. Otherwise E applies if it ranks higher and was observed after R's
query began. Otherwise R applies. The reason: JobLog writes the table before it queues the log row, so an event that
was observed before a query began is already part of its result. A status that is NULL is unknown, so E applies.

The reported percent is the one that was observed last, of R and of the log. If R's status is an end, R applies: rows of
the log become visible later, and would take percent back. If R has no percent, the log's applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import orjson
from msgspec.structs import replace

from correlator.jobs import fold, joblog
from correlator.model.facts import Job, LifecycleEvent, Status, StepEvents
from correlator.model.published import JobView
from correlator.model.rows import COLUMNS, JobRecord, LegacyRecord, Micros, StepRecord


def view(job: Job, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS) -> JobView:
    """The published view of `job`."""
    record = job.reading.record if job.reading is not None else None
    observed_at = job.reading.observed_at if job.reading is not None else -1
    status, ahead = _resolve(record.status if record else None, record is not None, observed_at, job.event)
    steps = _steps(job)
    percent, basis = _progress(status, _reported(job, record, observed_at, final=status.ended and ahead is None), steps)
    if record is None:
        record = JobRecord(
            job.job_id,
            operation=job.operation,
            job_type=job.job_type,
            parent_job_id=job.parent_job_id,
            started_at=job.started_at,
            owner=job.owner,
        )
    ids = joblog.external_ids(record.external_job_id, record.metadata, id_keys)
    all_ids = job.all_external_ids
    unlogged = sum(fold.hashed(name) not in all_ids for name in ids) if all_ids else 0
    newer = ahead if ahead is not None and ahead.error else None
    columns: dict[str, Any] = {name: getattr(record, name) or None for name in COLUMNS}
    return JobView(
        **columns,
        job_id=job.job_id,
        status=status,
        external_ids=(*ids, *(x for x in job.external_ids if x not in ids)),
        category=record.job_category or None,
        error=newer.error if newer is not None else record.error_message or None,
        error_cut=newer.error_cut if newer is not None else record.error_cut,
        started_at=record.started_at if record.started_at is not None else record.created_at,
        ended_at=_ended_at(status, record, ahead, job.event),
        percent=percent,
        basis=basis,
        steps=steps,
        last=job.last,
        warnings=len(job.warnings),
        errors=len(job.errors),
        metadata=record.metadata if joblog.metadata_object(record.metadata) is not None else None,
        external_ids_cut=min(len(all_ids) + unlogged, fold.MAX_COUNTED) if all_ids else None,
        steps_complete=job.reading is None or job.reading.record is None or job.reading.steps is not None,
    )


def has_only_new_rows(before: Job, job: Job) -> bool:
    """True if, since `before`, only the counts and the last message of a job that has been read may have changed."""
    return (
        job.reading is before.reading
        and job.event is before.event
        and job.steps is before.steps
        and job.percent is before.percent
        and job.external_ids is before.external_ids
        and job.all_external_ids is before.all_external_ids
        and job.reading is not None
        and job.reading.record is not None
    )


def with_rows(old: JobView, job: Job) -> JobView:
    """`view(job)`, given that only rows are new since `old` (`has_only_new_rows`): `old` itself if that is equal."""
    last, warnings, errors = job.last, len(job.warnings), len(job.errors)
    if last is old.last and (warnings, errors) == (old.warnings, old.errors):
        return old
    return replace(old, last=last, warnings=warnings, errors=errors)


def view_after(before: Job, old: JobView, job: Job, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS) -> JobView:
    """`view(job)`, given that `old` is `view(before)`. Fast if only rows are new."""
    return with_rows(old, job) if has_only_new_rows(before, job) else view(job, id_keys)


def alive_at(job: Job) -> Micros:
    """The time of the last activity of `job`: a log row, or a time of its record or steps. 0 if there is none."""
    record = job.reading.record if job.reading is not None else None
    times = [job.last.at if job.last is not None else None, job.started_at]
    if record is not None:
        times += [record.started_at, record.updated_at, record.created_at]
    if job.reading is not None:
        times += [at for step in job.reading.steps or () for at in (step.started_at, step.completed_at)]
    return max(filter(None, times), default=0)


def alive_after(before: Job, was: Micros, job: Job) -> Micros:
    """`alive_at(job)`, given that `was` is `alive_at(before)`. Fast if the tables were not read in between."""
    if job.reading is not before.reading or job.last is None or job.started_at != before.started_at:
        return alive_at(job)
    return max(was, job.last.at)


def shows_life(before: Job, job: Job) -> bool:
    """True if the tables say something of `job` that it did since `before`, whatever the time of it."""
    was, read = before.reading, job.reading
    if was is read or was is None or read is None or was.record is None or read.record is None:
        return False
    old, new = was.record, read.record
    return any(
        None not in times and times[0] != times[1]
        for times in ((old.updated_at, new.updated_at), (old.percent_complete, new.percent_complete))
    )


def ended_at(view: JobView) -> Micros:
    """The end of an ended job. If it is unknown, its start, so that the job leaves memory."""
    return (view.ended_at if view.ended_at is not None else view.started_at) or 0


def _resolve(
    word: str | None, read: bool, observed_at: int, event: LifecycleEvent | None, *, of_step: bool = False
) -> tuple[Status, LifecycleEvent | None]:
    """Apply the rule in the module's docstring. Returns the status, and the event if the event applies."""
    status = _status(word, of_step=of_step) if read else None
    if status is not None and status.ended:
        return status, None
    if event is not None and (status is None or (event.observed_at > observed_at and event.status.rank > status.rank)):
        return event.status, event
    if status is not None:
        return status, None
    # The status is unknown: a row of job_tracking without a status is pending; a job known from log rows alone runs.
    return (Status.PENDING if read else Status.RUNNING), None


def _status(word: str | None, *, of_step: bool) -> Status | None:
    """Parse a status of the table. A status that JobLog does not define counts as running."""
    if word is None:
        return None
    try:
        status = Status(word)
    except ValueError:
        return Status.RUNNING
    return status if of_step or status is not Status.SKIPPED else Status.RUNNING


def _ended_at(
    status: Status, record: JobRecord, ahead: LifecycleEvent | None, event: LifecycleEvent | None
) -> Micros | None:
    """`ahead`: the event that applies, if any. `event`: the best one, which knows what the table does not say."""
    if not status.ended:
        return None
    if ahead is not None:
        return ahead.at
    known = record.completed_at if record.completed_at is not None else record.canceled_at
    return event.at if known is None and event is not None and event.status is status else known


def _reported(job: Job, record: JobRecord | None, observed_at: int, *, final: bool) -> int | None:
    """The last percent that the job reported. `final`: the record is that of an ended job."""
    of_table, of_log = record.percent_complete if record is not None else None, job.percent
    if of_log is None or (of_table is not None and (final or of_log.observed_at <= observed_at)):
        return of_table
    return of_log.percent


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
    observed_at = reading.steps_observed_at if reading is not None else -1
    shown = [_merged(s, job.steps.get(s.id), observed_at) for s in read.values()]
    # A step that the table lacks is published only if the log showed it after that table query began.
    shown += [
        _merged(None, e, observed_at, i) for i, e in job.steps.items() if i not in read and e.observed_at > observed_at
    ]
    shown.sort(key=lambda s: s.order_key)
    return tuple(shown)


def _merged(record: StepRecord | None, events: StepEvents | None, observed_at: int, step_id: int = 0) -> StepRecord:
    if record is not None and (events is None or events.best is None or events.best.observed_at <= observed_at):
        return record  # The usual case: the table query is newer than all events of the step.
    assert events is not None
    status, ahead = _resolve(
        record.status if record else None, record is not None, observed_at, events.best, of_step=True
    )
    if record is None:
        assert ahead is not None  # Only events of its life make a step known.
        ended_at = ahead.at if status.ended else None
        times = (events.started_at, ended_at)
        return StepRecord(step_id, events.name, events.seq, status.value, *times, ahead.error, ahead.error_cut)
    if ahead is None or not status.ended:
        return record
    if ahead.error:
        record = replace(record, error_message=ahead.error, error_cut=ahead.error_cut)
    return replace(record, status=status.value, completed_at=ahead.at)


def legacy_view(record: LegacyRecord) -> JobView:
    """The published view of a job that only `failover_jobs` has."""
    status, percent = joblog.legacy_meaning(record.status)
    kind = record.job_type
    metadata = {
        "vm_name": record.source_vm_name,
        "failover_type": kind,
        "vm_id": record.vm_id,
        "destination_vm_id": record.destination_vm_id or None,
        "legacy_status": record.status,
    }
    return JobView(
        job_id=record.job_id,
        status=status,
        source="legacy",
        context_id=record.vm_context_id or None,
        job_type="failover",
        operation=f"{kind}-failover" if kind else "failover",
        category="failover",
        error=record.error_message or None,
        error_cut=record.error_cut,
        started_at=record.started_at if record.started_at is not None else record.created_at,
        ended_at=(record.completed_at if record.completed_at is not None else record.updated_at)
        if status.ended
        else None,
        percent=percent,
        basis="legacy",
        metadata=orjson.dumps({k: v for k, v in metadata.items() if v is not None}).decode(),
    )


VM_NAMES = ("vm_name", "vm_name_or_id")
"""The keys of metadata that hold the name of the machine."""


def vm_name(job: JobView | JobRecord) -> str:
    """The name of the virtual machine that a job is about, or "" if its metadata has none."""
    metadata = joblog.metadata_object(job.metadata) or {}
    for key in VM_NAMES:
        if isinstance(name := metadata.get(key), str):
            return name
    return ""
