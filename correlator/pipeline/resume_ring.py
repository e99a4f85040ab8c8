"""The latest changes, for clients that resume: which jobs changed since their position, and which filters match.

Of a job only the members that a filter can use are kept, not its document: metadata of 100 kB would otherwise be kept
once per change. The resume ring is bounded by the number of changes and by bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter

from correlator.jobs.model.changes import Change
from correlator.jobs.model.views import JobView, PublishedJob

MAX_CHANGES = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Bounds of the resume ring. A client whose position was dropped gets a snapshot."""

OVERHEAD = 800
"""Approximate bytes of a change, without its texts."""


class Past:
    """The resume ring. Beyond `max_changes` or `max_bytes` the oldest changes are dropped."""

    def __init__(self, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._changes: deque[tuple[Change, int]] = deque()
        """The oldest first, each with its size."""
        self._size = 0
        self._dropped = 0
        """The seq of the newest change that was dropped."""

    def add(self, changes: Iterable[Change]) -> None:
        """Append changes, in the order of their seq."""
        for change in changes:
            old, new = change.old, change.new
            if old is not None and new is not None and _members(old.view) == _members(new.view):
                old = new = _filterable(new)  # one object for both
                size = OVERHEAD + _size(new)
            else:
                old = _filterable(old) if old is not None else None
                new = _filterable(new) if new is not None else None
                size = OVERHEAD + _size(old) + _size(new)
            self._changes.append((Change(change.job_id, change.seq, old, new, change.reason), size))
            self._size += size
        while len(self._changes) > self._max_changes or self._size > self._max_bytes:
            dropped, size = self._changes.popleft()
            self._dropped = dropped.seq
            self._size -= size

    def reaches(self, seq: int) -> bool:
        """True if all changes after position `seq` are here. The position must not be ahead of the stream."""
        return seq >= self._dropped

    def since(self, seq: int) -> list[Change]:
        """Return the changes after position `seq`, in order. Their jobs have only the members that filters use."""
        count = 0
        for change, _ in reversed(self._changes):
            if change.seq <= seq:
                break
            count += 1
        return [change for change, _ in islice(self._changes, len(self._changes) - count, None)]


_members = attrgetter(
    "status", "source", "external_ids", "context_id", "parent_job_id", "job_type", "operation", "started_at"
)
"""The members of a view that filters use. The job ID of a job stays the same."""


def _filterable(shown: PublishedJob) -> PublishedJob:
    """Return the job with only the members that filters use."""
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
    return sum(map(len, view.names())) + len(view.job_type or "") + len(view.operation or "")
