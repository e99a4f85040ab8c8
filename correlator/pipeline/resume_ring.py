"""The latest changes, for clients that resume: which jobs changed since their position, and which filters match.

Of a job only the members that a filter can use are kept, not its document: metadata of 100 kB would otherwise be kept
once per change. The resume ring is bounded by the number of changes and by bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter

from msgspec import Struct

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
        self._newest: dict[str, _State] = {}
        """For each job in memory that has a change here: its state after the newest one."""
        self._size = 0
        self._dropped = 0
        """The seq of the newest change that was dropped."""

    def add(self, changes: Iterable[Change]) -> None:
        """Append changes, in the order of their seq."""
        for change in changes:
            job_id, new = change.job_id, change.new
            # A job is before a change as it was after the one before it.
            before = self._newest.get(job_id) or _state(change.old)
            after = before
            if before is None or new is None or before.members != _members(new.view):
                after = _state(new)
            size = OVERHEAD + (before.size if before is not None else 0)
            if after is not None:
                after.seq = change.seq
                self._newest[job_id] = after
                size += after.size if after is not before else 0
            else:
                self._newest.pop(job_id, None)
            kept = Change(
                job_id,
                change.seq,
                before.job if before is not None else None,
                after.job if after is not None else None,
                change.reason,
            )
            self._changes.append((kept, size))
            self._size += size
        while len(self._changes) > self._max_changes or self._size > self._max_bytes:
            dropped, size = self._changes.popleft()
            newest = self._newest.get(dropped.job_id)
            if newest is not None and newest.seq == dropped.seq:
                del self._newest[dropped.job_id]
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


class _State(Struct):
    """A job with only the members that filters use. Changes that leave these as they are share one such object."""

    job: PublishedJob
    members: tuple[object, ...]
    size: int
    """Approximate bytes of its texts."""
    seq: int = 0
    """The newest change after which the job is in this state."""


def _state(shown: PublishedJob | None) -> _State | None:
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
    size = sum(map(len, view.names())) + len(view.job_type or "") + len(view.operation or "")
    return _State(PublishedJob(found, shown.rev, shown.updated_at), _members(view), size)
