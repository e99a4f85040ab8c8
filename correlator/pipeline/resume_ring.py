"""The latest changes, for clients that resume: which jobs changed since their position, and which filters match.

Problem. Thousands of clients that were cut resume at once, each at a position of its own, and most follow one job. What
one of them costs must depend on the jobs that it follows, and not on how much has changed since its position.

Model. A job is after a change as it was before its next change, and after the last one as it is published. So a change
keeps only what it replaced, and nothing if the members that filters use stayed the same, as they mostly do. It keeps
these members and not the document: metadata of 100 kB would otherwise be kept once per change. The changes are found
by their order, by their job, and by the IDs that they took from a job.

Invariant. A job that changed after a position, and that an ID leads to now or led to since, carries the ID now, or is
among the `losers` of the ID. The resume ring is bounded by the number of changes and by bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from operator import attrgetter

from msgspec import Struct

from correlator.model.published import Change, JobView, PublishedJob, Reason

MAX_CHANGES = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Bounds of the resume ring. A client whose position was dropped gets a snapshot."""

PLACE = 400
OVERHEAD = 600
"""Approximate bytes of a change with the entry of its job, and of the members that it keeps, without their texts."""


class ResumeRing:
    """The resume ring. Beyond `max_changes` or `max_bytes` the oldest changes are dropped.

    `after`: the position from which on it is given all changes.
    """

    def __init__(self, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES, *, after: int = 0) -> None:
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._changes: deque[_Kept] = deque()
        """The oldest first."""
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        """The jobs of the changes, in the order of their last change."""
        self._lost: dict[str, dict[str, int]] = {}
        """For an ID: the jobs that it was taken from, each with the number of changes that did."""
        self._size = 0
        self._dropped = after
        """The seq of the newest change that was dropped, or not given."""

    def add(self, changes: Iterable[Change]) -> None:
        """Append changes, in the order of their seq."""
        for change in changes:
            kept = _kept(change)
            self._changes.append(kept)
            self._size += kept.size
            job = self._jobs.get(kept.job_id)
            if job is None:
                job = self._jobs[kept.job_id] = _Job(kept.seq, None, [])
            else:
                self._jobs.move_to_end(kept.job_id)
            job.last, job.reason = kept.seq, change.reason
            if kept.differs:
                job.differing.append(kept)
            for name in kept.lost:
                losers = self._lost.setdefault(name, {})
                losers[kept.job_id] = losers.get(kept.job_id, 0) + 1
        while len(self._changes) > self._max_changes or self._size > self._max_bytes:
            self._drop(self._changes.popleft())

    def _drop(self, kept: _Kept) -> None:
        self._dropped = kept.seq
        self._size -= kept.size
        job = self._jobs[kept.job_id]
        if kept.differs:
            del job.differing[0]
        if job.last == kept.seq:
            del self._jobs[kept.job_id]
        for name in kept.lost:
            losers = self._lost[name]
            losers[kept.job_id] -= 1
            if not losers[kept.job_id]:
                del losers[kept.job_id]
            if not losers:
                del self._lost[name]

    def reaches(self, seq: int) -> bool:
        """True if all changes after position `seq` are here. The position must not be ahead of the stream."""
        return seq >= self._dropped

    def changed(self) -> Iterator[tuple[str, int]]:
        """Yield the jobs that changed, each with the seq of its last change, the newest first."""
        for job_id, job in reversed(self._jobs.items()):
            yield job_id, job.last

    def last(self, job_id: str) -> int:
        """Return the seq of the last change of a job; 0 if it is not remembered."""
        job = self._jobs.get(job_id)
        return job.last if job is not None else 0

    def reason(self, job_id: str) -> Reason | None:
        """Return why a job left memory, if that was its last change."""
        job = self._jobs.get(job_id)
        return job.reason if job is not None else None

    def losers(self, name: str) -> Iterable[str]:
        """The jobs that do not carry the ID `name` any more, or that left memory, by a change that is remembered."""
        return self._lost.get(name, ())

    def before(self, job_id: str, seq: int) -> list[PublishedJob]:
        """Return what a job was before its changes after position `seq`, in the members that filters use.

        States that filters cannot distinguish from a later one are omitted. The state after the last change is what is
        published.
        """
        job = self._jobs.get(job_id)
        if job is None or job.last <= seq:
            return []
        found: list[PublishedJob] = []
        for kept in reversed(job.differing):
            if kept.seq <= seq:
                break
            if kept.old is not None:
                found.append(kept.old)
        return found


class _Job(Struct, gc=False):
    """The changes of one job: the seq of the last one and its reason, and those that filters notice, oldest first."""

    last: int
    reason: Reason | None
    differing: list[_Kept]


class _Kept(Struct, frozen=True, gc=False):
    """A change. `old`, before it, has only the members that filters use; None unless they differ.

    `lost`: the IDs that the job carried before it, and not after it.
    """

    job_id: str
    seq: int
    size: int
    """Approximate bytes."""
    differs: bool = False
    old: PublishedJob | None = None
    lost: tuple[str, ...] = ()


def _kept(change: Change) -> _Kept:
    old, new = change.old, change.new
    if change.goes_on or (old is not None and new is not None and _members(old) == _members(new)):
        return _Kept(change.job_id, change.seq, PLACE)
    carried = _carried(new)
    lost = tuple(name for name in _carried(old) if name not in carried)
    return _Kept(change.job_id, change.seq, PLACE + _size(old) + PLACE * len(lost), True, _stripped(old), lost)


def _carried(shown: PublishedJob | None) -> tuple[str, ...]:
    """The IDs besides its own that may resolve to a job. See `JobDirectory.carriers`."""
    return shown.view.names()[1:] if shown is not None and shown.view.source == "joblog" else ()


_members = attrgetter(
    "view.status",
    "view.source",
    "view.external_ids",
    "view.context_id",
    "view.parent_job_id",
    "view.job_type",
    "view.operation",
    "view.started_at",
    "instance",
)
"""The members of a job that filters use. The job ID of a job stays the same."""


def _stripped(shown: PublishedJob | None) -> PublishedJob | None:
    if shown is None:
        return None
    view = shown.view
    found = JobView(
        view.job_id,
        view.status,
        view.source,
        view.external_ids,
        context_id=view.context_id,
        parent_job_id=view.parent_job_id,
        job_type=view.job_type,
        operation=view.operation,
        started_at=view.started_at,
    )
    return PublishedJob(found, shown.rev, shown.updated_at, instance=shown.instance)


def _size(shown: PublishedJob | None) -> int:
    if shown is None:
        return 0
    view = shown.view
    return OVERHEAD + sum(map(len, view.names())) + len(view.job_type or "") + len(view.operation or "")
