"""The merge of facts into a job, `fold(job, fact) -> job`, and its published view, `view(job)`.

Facts come from two sources, the log and the tables, in any order and more than once. `fold` is a join: the same facts
result in the same job, in any order and with any repetition. `joblog` makes a fact of a row, `Index.apply` joins it
into the record of its job, and `view` computes the published view of a job from its joined facts.

One rule decides the status of a job and of each step. R is the reading with the latest `observed_at`, E the event with
the highest rank. If R's status is an end, R applies. Otherwise E applies if it ranks higher and was observed after R's
query began. Otherwise R applies. The reason: JobLog writes the table before it queues the log row, so an event that
was observed before a query began is already part of its result. A status that is NULL is unknown, so E applies.

The reported percent is the one that was observed last, of R and of the log. If R's status is an end, R applies: rows of
the log become visible later, and would take percent back. If R has no percent, the log's applies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Any

import orjson
from msgspec.structs import replace

from correlator.forecast.percent import progress
from correlator.jobs import joblog
from correlator.model.facts import (
    ENDED,
    MAX_STEPS,
    STATUS_OF,
    Entry,
    Fact,
    Job,
    Kind,
    LifecycleEvent,
    Line,
    LogPlace,
    Percent,
    Reading,
    Status,
    StepEvents,
)
from correlator.model.published import JobView
from correlator.model.rows import COLUMNS, JobRecord, LegacyRecord, Micros, StepRecord

MAX_COUNTED = 10_000
"""The highest count of warnings, of errors, and of external IDs, of one job. The count stays there."""

MAX_EXTERNAL_IDS = 100
MAX_EXTERNAL_BYTES = 8_000
"""Bounds of the external IDs of one job that are known from log rows, in number and bytes: the newest are known."""

MAX_LINE = 2_000
"""The maximum length of the last message in a document, in characters."""


def fold(job: Job, fact: Fact) -> Job:
    """Join `fact` into `job`. Returns the same object if the fact changes nothing."""
    return _read(job, fact) if isinstance(fact, Reading) else fold_rows(job, (fact,))


def restored(job: Job) -> Job:
    """Prepare a job read from a checkpoint: full counts share the one set `_full`."""
    counts = (job.warnings, job.errors, job.all_external_ids)
    warnings, errors, external_ids = (counted if len(counted) < MAX_COUNTED else _full() for counted in counts)
    return replace(job, warnings=warnings, errors=errors, all_external_ids=external_ids)


def is_news(job: Job, reading: Reading) -> bool:
    """True if `reading` differs from the last one, or is newer than an event that the log gave since the last one."""
    known = job.reading
    if known is None or (reading.record, reading.children, reading.child_count) != (
        known.record,
        known.children,
        known.child_count,
    ):
        return True
    if reading.steps is not None and reading.steps != known.steps:
        return True
    events = (job.event, job.percent, *job.steps.values())
    return any(event is not None and event.observed_at > known.observed_at for event in events)


def is_overtaken(job: Job, reading: Reading) -> bool:
    """True if the job ended twice, `reading` has one end, and the log has reported the other since the query began.

    An end in the tables applies (`view`), so the published status would go back to the first end. Nothing is lost
    if such a reading is dropped: every end that the log reports causes another one at once.
    """
    event, known = job.event, job.reading
    if event is None or not event.status.ended or event.observed_at <= reading.observed_at:
        return False
    if known is None or _end(known) is not None:
        return False  # The end of the log is not published.
    return _end(reading) not in (None, event.status)


def _end(reading: Reading) -> str | None:
    status = reading.record.status if reading.record is not None else None
    return status if status in ENDED else None


def _read(job: Job, reading: Reading) -> Job:
    """Join a reading: the newest one applies. One without steps leaves those of the newest that has them."""
    known = job.reading
    if known is None:
        return replace(job, reading=reading)
    newest = reading if reading.observed_at > known.observed_at else known
    with_steps = reading if reading.steps_observed_at > known.steps_observed_at else known
    if newest is known and with_steps is known:
        return job
    if newest is not with_steps and with_steps.steps is not None:
        newest = replace(newest, steps=with_steps.steps, steps_kept_from=with_steps.steps_observed_at)
    return replace(job, reading=_shared(known, newest))


def _shared(known: Reading, reading: Reading) -> Reading:
    """Replace objects of `reading` by equal objects of `known`, so that repeated readings share memory."""
    record, steps = reading.record, reading.steps
    if record is not None and known.record is not None:
        if record == known.record:
            record = known.record
        elif record.metadata == known.record.metadata:
            record = replace(record, metadata=known.record.metadata)
    if steps is not None and known.steps is not None:
        if steps == known.steps:
            steps = known.steps
        else:
            before = {step.id: step for step in known.steps}
            steps = tuple(old if (old := before.get(step.id)) == step else step for step in steps)
    children = known.children if reading.children == known.children else reading.children
    return replace(reading, record=record, steps=steps, children=children)


def fold_rows(job: Job, entries: Sequence[Entry]) -> Job:
    """Join all `entries` into `job`, in any order. The result is the same as joining them one by one.

    The members that grow with the rows of a job (counts and steps) are copied once per call, not once per row.
    """
    warnings: list[Entry] = []
    errors: list[Entry] = []
    percents: list[Entry] = []
    named: list[Entry] = []
    lifecycle: list[Entry] = []
    for entry in entries:
        if entry.level == "WARN":
            warnings.append(entry)
        elif entry.level == "ERROR":
            errors.append(entry)
        if entry.percent is not None:
            percents.append(entry)
        if entry.external_ids:
            named.append(entry)
        if entry.kind is not None:
            lifecycle.append(entry)
    joined = replace(
        job,
        last=_last(job.last, entries),
        warnings=_count(job.warnings, warnings) if warnings else job.warnings,
        errors=_count(job.errors, errors) if errors else job.errors,
        percent=_percent(job.percent, percents) if percents else job.percent,
    )
    if named:
        joined = _with_external_ids(joined, named)
    return _with_lifecycle(joined, lifecycle) if lifecycle else joined


def _with_lifecycle(job: Job, entries: Sequence[Entry]) -> Job:
    """Join rows that say that the job or one of its steps began or ended."""
    of_job = [e for e in entries if e.kind is not None and not e.kind.of_step]
    of_steps = [e for e in entries if e.kind is not None and e.kind.of_step]
    begun = [e for e in of_job if e.kind is Kind.JOB_STARTED]
    joined = replace(
        job,
        event=_best(job.event, of_job),
        steps=_steps_joined(job.steps, of_steps) if of_steps else job.steps,
    )
    if begun:
        joined = replace(
            joined,
            started_at=_earliest(job.started_at, begun),
            job_type=max(job.job_type, *(e.job_type for e in begun)),
            operation=max(job.operation, *(e.operation for e in begun)),
            owner=max(job.owner, *(e.owner for e in begun)),
            parent_job_id=max(job.parent_job_id, *(e.parent_job_id for e in begun)),
        )
    return joined


_place = attrgetter("at", "event_id")
"""The place of a row in the log, by the time at which it was logged."""


def _last(known: Line | None, entries: Sequence[Entry]) -> Line | None:
    newest = entries[0] if len(entries) == 1 else max(entries, key=_place)
    if known is not None and (newest.at, newest.event_id) <= (known.at, known.event_id):
        return known
    return Line(newest.at, newest.event_id, newest.level, newest.message[:MAX_LINE])


_OLDEST: LogPlace = (0, 0)


def _with_external_ids(job: Job, entries: Sequence[Entry]) -> Job:
    """Join the external IDs of rows.

    It is a join, as the floor only rises: what is known are all IDs above it, each at its newest place.
    """
    places = dict(zip(job.external_ids, job.external_at, strict=False))
    for entry in entries:
        place = _place(entry)
        for name in entry.external_ids:
            if place > places.setdefault(name, _OLDEST):
                places[name] = place
    floor = _floor(places, job.external_floor)
    kept = places if floor is None else {name: at for name, at in places.items() if (at, name) > floor}
    counted = job.all_external_ids
    if floor is not None:
        added = places if not counted else {name for entry in entries for name in entry.external_ids}
        counted = _counted(counted, map(hashed, added))
    names = tuple(sorted(kept))
    return replace(
        job,
        # The same object as before, as long as the IDs are the same: the view is computed again otherwise.
        external_ids=job.external_ids if names == job.external_ids else names,
        external_at=tuple(kept[name] for name in names),
        external_floor=floor,
        all_external_ids=counted,
    )


def _floor(places: Mapping[str, LogPlace], floor: tuple[LogPlace, str] | None) -> tuple[LogPlace, str] | None:
    """The newest ID that does not fit the bounds, or `floor` if all above it fit."""
    if len(places) <= MAX_EXTERNAL_IDS:
        most = 4 * sum(map(len, places))  # A character has at most four bytes: usually they need not be counted.
        if most <= MAX_EXTERNAL_BYTES or sum(map(_size, places)) <= MAX_EXTERNAL_BYTES:
            return floor
    room = MAX_EXTERNAL_BYTES
    newest = sorted(((at, name) for name, at in places.items() if floor is None or (at, name) > floor), reverse=True)
    for n, (at, name) in enumerate(newest):
        room -= _size(name)
        if n == MAX_EXTERNAL_IDS or room < 0:
            return at, name
    return floor


def _size(name: str) -> int:
    return len(name.encode("utf-8", "replace"))


def hashed(external_id: str) -> int:
    """A number by which an external ID is counted, in the 63 bits that every format can store."""
    return int.from_bytes(blake2b(external_id.encode("utf-8", "replace"), digest_size=8).digest()) >> 1


def _percent(known: Percent | None, entries: Sequence[Entry]) -> Percent | None:
    found = [Percent(e.at, e.event_id, e.percent, e.observed_at) for e in entries if e.percent is not None]
    return max(found if known is None else [known, *found], default=None)


def _steps_joined(known: dict[int, StepEvents], entries: Sequence[Entry]) -> dict[int, StepEvents]:
    steps = dict(known)
    for entry in entries:
        if entry.step_id is not None and (entry.step_id in steps or len(steps) < MAX_STEPS):
            steps[entry.step_id] = _step(steps.get(entry.step_id), entry)
    return steps


def _step(known: StepEvents | None, entry: Entry) -> StepEvents:
    started = [entry] if entry.kind is Kind.STEP_STARTED else []
    known = known or StepEvents(entry.observed_at)
    return StepEvents(
        observed_at=max(known.observed_at, entry.observed_at),
        best=_best(known.best, [entry]),
        started_at=_earliest(known.started_at, started),
        name=max(known.name, entry.step_name),
        seq=max(known.seq, entry.sequence),
    )


def _earliest(known: Micros | None, entries: Sequence[Entry]) -> Micros | None:
    return min([e.at for e in entries] if known is None else [known, *(e.at for e in entries)], default=None)


def _best(known: LifecycleEvent | None, entries: Sequence[Entry]) -> LifecycleEvent | None:
    for entry in entries:
        if entry.kind is not None:
            event = LifecycleEvent(
                STATUS_OF[entry.kind], entry.at, entry.event_id, entry.observed_at, entry.error, entry.error_cut
            )
            if known is None or _order(event) > _order(known):
                known = event
    return known


def _order(event: LifecycleEvent) -> tuple[int, Micros, int]:
    return (event.status.rank, event.at, event.event_id)


def _count(known: frozenset[int], entries: Sequence[Entry]) -> frozenset[int]:
    """Add rows to the set of counted rows. At `MAX_COUNTED` it becomes `_full` and stays so.

    Unlike a plain counter this is a join: a row that is read again is counted once.
    """
    # IDs repeat after a crash or a restore, so a row is identified by its ID and its time, in the 63 bits that every
    # format can store.
    return _counted(known, (((e.at << 24) ^ e.event_id) & ((1 << 63) - 1) for e in entries))


def _counted(known: frozenset[int], numbers: Iterable[int]) -> frozenset[int]:
    """Add numbers to a set that is `_full` at `MAX_COUNTED`. Returns the same object if it has them all."""
    if len(known) >= MAX_COUNTED or known.issuperset(new := frozenset(numbers)):
        return known
    counted = known.union(new)
    return counted if len(counted) < MAX_COUNTED else _full()


@cache
def _full() -> frozenset[int]:
    """Replaces a set of `MAX_COUNTED` members, as they no longer matter then. It has 1 MB, and few need it."""
    return frozenset(range(MAX_COUNTED))


# -- the published view of a job


def view(job: Job, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS) -> JobView:
    """The published view of `job`."""
    record = job.reading.record if job.reading is not None else None
    observed_at = job.reading.observed_at if job.reading is not None else -1
    status, ahead = _resolve(record.status if record else None, record is not None, observed_at, job.event)
    steps = _steps(job)
    percent, basis = progress(status, _reported(job, record, observed_at, final=status.ended and ahead is None), steps)
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
    unlogged = sum(hashed(name) not in all_ids for name in ids) if all_ids else 0
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
        external_ids_cut=min(len(all_ids) + unlogged, MAX_COUNTED) if all_ids else None,
        steps_complete=job.reading is None or job.reading.record is None or job.reading.steps is not None,
    )


def grown(before: Job, old: JobView, job: Job) -> JobView | None:
    """`view(job)` if, since `old`, the view of `before`, only rows are new that changed counts and the last message.

    `old` itself if that is equal. None: more may have changed.
    """
    if not (
        job.reading is before.reading
        and job.event is before.event
        and job.steps is before.steps
        and job.percent is before.percent
        and job.external_ids is before.external_ids
        and job.all_external_ids is before.all_external_ids
        and job.reading is not None
        and job.reading.record is not None
    ):
        return None
    last, warnings, errors = job.last, len(job.warnings), len(job.errors)
    if last is old.last and (warnings, errors) == (old.warnings, old.errors):
        return old
    return replace(old, last=last, warnings=warnings, errors=errors)


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


def ended_at(view: JobView, alive_at: Micros) -> Micros:
    """The end of an ended job. If neither tables nor log have it, the latest that they have of the job (`alive_at`)."""
    return view.ended_at if view.ended_at is not None else alive_at


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


def legacy_alive_at(record: LegacyRecord) -> Micros:
    """The latest time of a row of `failover_jobs`; 0 if it has none."""
    return max(filter(None, (record.started_at, record.created_at, record.updated_at)), default=0)


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
        ended_at=(record.completed_at if record.completed_at is not None else legacy_alive_at(record) or None)
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
    return _vm_name(job.metadata)


@lru_cache(1_000)  # of a change, each client of a VM asks for it
def _vm_name(text: str | None) -> str:
    metadata = joblog.metadata_object(text) or {}
    for key in VM_NAMES:
        if isinstance(name := metadata.get(key), str):
            return name
    return ""
