"""The latest changes, for clients that resume: which jobs changed since their position, and which filters match.

A job is after a change as it was before its next change, and after the last one as it is published. So a change keeps
only what it replaced, and nothing if the members that filters use stayed the same, as they mostly do. It keeps these
members and not the document: metadata of 100 kB would otherwise be kept once per change. The resume ring is bounded by
the number of changes and by bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter

from msgspec import Struct

from correlator.jobs.model.changes import Change, Reason
from correlator.jobs.model.views import JobView, PublishedJob

MAX_CHANGES = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Bounds of the resume ring. A client whose position was dropped gets a snapshot."""

PLACE = 150
OVERHEAD = 500
"""Approximate bytes of a change, and of the members that it keeps, without their texts."""


class Past:
    """The resume ring. Beyond `max_changes` or `max_bytes` the oldest changes are dropped."""

    def __init__(self, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._changes: deque[_Kept] = deque()
        """The oldest first."""
        self._size = 0
        self._dropped = 0
        """The seq of the newest change that was dropped."""

    def add(self, changes: Iterable[Change]) -> None:
        """Append changes, in the order of their seq."""
        for change in changes:
            old, new = change.old, change.new
            if old is not None and new is not None and _members(old.view) == _members(new.view):
                kept = _Kept(change.job_id, change.seq, PLACE)
            else:
                kept = _Kept(change.job_id, change.seq, PLACE + _size(old), True, _stripped(old), change.reason)
            self._changes.append(kept)
            self._size += kept.size
        while len(self._changes) > self._max_changes or self._size > self._max_bytes:
            dropped = self._changes.popleft()
            self._dropped = dropped.seq
            self._size -= dropped.size

    def reaches(self, seq: int) -> bool:
        """True if all changes after position `seq` are here. The position must not be ahead of the stream."""
        return seq >= self._dropped

    def since(self, seq: int, current: Callable[[str], PublishedJob | None]) -> list[Change]:
        """Return the changes after position `seq`, in order. Their jobs are right in the members that filters use.

        `current` returns a published job as it is after the newest change; None if there is none with this ID.
        """
        found: list[Change] = []
        states: dict[str, PublishedJob | None] = {}
        """For each job: its state before the oldest of its changes that were passed."""
        for kept in reversed(self._changes):
            if kept.seq <= seq:
                break
            job_id = kept.job_id
            new = states[job_id] if job_id in states else current(job_id)
            old = states[job_id] = kept.old if kept.differs else new
            found.append(Change(job_id, kept.seq, old, new, kept.reason))
        found.reverse()
        return found


class _Kept(Struct, gc=False):
    """A change. `old`, before it, has only the members that filters use; None unless they differ."""

    job_id: str
    seq: int
    size: int
    """Approximate bytes."""
    differs: bool = False
    old: PublishedJob | None = None
    reason: Reason | None = None


_members = attrgetter(
    "status", "source", "external_ids", "context_id", "parent_job_id", "job_type", "operation", "started_at"
)
"""The members of a view that filters use. The job ID of a job stays the same."""


def _stripped(shown: PublishedJob | None) -> PublishedJob | None:
    if shown is None:
        return None
    view = shown.view
    found = JobView(
        view.job_id,
        view.status,
        view.source,
        view.external_ids,
        view.context_id,
        view.parent_job_id,
        view.job_type,
        view.operation,
        started_at=view.started_at,
    )
    return PublishedJob(found, shown.rev, shown.updated_at)


def _size(shown: PublishedJob | None) -> int:
    if shown is None:
        return 0
    view = shown.view
    return OVERHEAD + sum(map(len, view.names())) + len(view.job_type or "") + len(view.operation or "")
