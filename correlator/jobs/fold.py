"""The merge of facts into a job: `fold(job, fact) -> job`.

Facts come from two sources, the log and the tables, in any order and more than once. `fold` is a join: the same facts
result in the same job, in any order and with any repetition. `joblog` makes a fact of a row, `Index.apply` joins it
into the record of its job, and `job_view` computes the published view of a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from operator import attrgetter

from msgspec.structs import replace

from correlator.model.facts import (
    ENDED,
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
    StepEvents,
)
from correlator.model.rows import Micros

MAX_COUNTED = 10_000
"""The highest count of warnings, of errors, and of external IDs, of one job. The count stays there."""

MAX_EXTERNAL_IDS = 100
MAX_EXTERNAL_BYTES = 8_000
"""Bounds of the external IDs of one job that are known from log rows, in number and bytes: the newest are known."""

MAX_LINE = 2_000
"""The maximum length of the last message in a document, in characters."""

MAX_STEPS = 10_000
"""The maximum number of steps per job that are known from the log. JobLog's jobs have about ten."""


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

    An end in the tables applies (`job_view`), so the published status would go back to the first end. Nothing is lost
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
    newest = max(entries, key=_place)
    if known is not None and _place(newest) <= _place(known):
        return known
    return Line(newest.at, newest.event_id, newest.level, newest.message[:MAX_LINE])


_OLDEST: LogPlace = (0, 0)


def _with_external_ids(job: Job, entries: Sequence[Entry]) -> Job:
    """Join the external IDs of rows.

    It is a join, as the floor only rises: what is known are all IDs above it, each at its newest place.
    """
    places = dict(zip(job.external_ids, job.external_at, strict=False))
    for entry in entries:
        for name in entry.external_ids:
            places[name] = max(places.get(name, _OLDEST), _place(entry))
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
    if len(places) <= MAX_EXTERNAL_IDS and sum(map(_size, places)) <= MAX_EXTERNAL_BYTES:
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
