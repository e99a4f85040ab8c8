"""The jobs whose newest document the stream may not have: their IDs, never their documents.

A document is state: only the newest one counts. So a cluster that is away for a day costs one set of IDs, and a job
that changed a thousand times meanwhile is written once. The document is made when its turn comes.

Invariant: a key is clean only after the stream has acknowledged a document that was made after the last mark. One
batch is in flight at a time; a batch without an acknowledgement may or may not have been stored, so its keys are dirty
again. Nothing here does I/O, and times come from the clock that is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from correlator.jobs.bounded import BoundedDict
from correlator.jobs.model.changes import Reason

MAX_REMOVED = 20_000
"""Maximum number of jobs that left memory and that the stream still has. The next comparison finds the others."""


class DirtyKeys:
    """The keys to write, in two queues that share a batch: changes, and what a comparison found to differ.

    Changes do not wait behind 20,000 documents that are written again, and changes that never end do not starve those.
    `clock`: returns seconds; only `oldest` depends on it. Use it from one event loop only.
    """

    def __init__(self, clock: Callable[[], float], *, max_removed: int = MAX_REMOVED) -> None:
        self._clock = clock
        self._changed: OrderedDict[str, float] = OrderedDict()
        """Keys that changed, by the time of the first mark that is not acknowledged."""
        self._differing: OrderedDict[str, float] = OrderedDict()
        """Keys that a comparison found to differ from the stream."""
        self._removed: BoundedDict[str, Reason] = BoundedDict(max_removed)
        """Why each job left whose removal is not acknowledged."""
        self._in_flight: dict[str, float] = {}
        self._serve_changed = False
        self._touched: set[str] | None = None
        self.incomplete = False
        """True if a removed job was dropped. Only a comparison finds it in the stream; it sets this to False."""

    def mark(self, job_id: str) -> None:
        """The document of a job has changed."""
        self._removed.pop(job_id, None)
        self._mark(job_id)

    def mark_removed(self, job_id: str, reason: Reason) -> None:
        """A job has left memory."""
        self._mark(job_id)
        if (evicted := self._removed.put(job_id, reason)) is not None:
            self._changed.pop(evicted[0], None)
            self._differing.pop(evicted[0], None)
            self.incomplete = True

    def add(self, job_ids: Iterable[str]) -> None:
        """Add jobs whose document in the stream differs from that in memory."""
        now = self._clock()
        for job_id in job_ids:
            if job_id not in self._changed:
                self._differing.setdefault(job_id, now)

    def pop_next(self) -> str | None:
        """Move the next key into the batch in flight. None if no key is dirty."""
        self._serve_changed = not self._serve_changed
        queue = (self._changed or self._differing) if self._serve_changed else (self._differing or self._changed)
        if not queue:
            return None
        job_id, since = queue.popitem(last=False)
        self._in_flight[job_id] = since
        return job_id

    def removal(self, job_id: str) -> Reason:
        """Why a job left memory. A job of which nothing is known is gone: an earlier run has written it."""
        return self._removed.get(job_id, "gone")

    def acknowledged(self) -> None:
        """The stream has stored the batch in flight."""
        for job_id in self._in_flight:
            if job_id not in self._changed:
                self._removed.pop(job_id, None)
        self._in_flight.clear()

    def unacknowledged(self) -> None:
        """The stream may not have stored the batch in flight: its keys are dirty again, before all others."""
        for job_id, since in reversed(self._in_flight.items()):
            self._differing.pop(job_id, None)
            self._changed[job_id] = since
            self._changed.move_to_end(job_id, last=False)
        self._in_flight.clear()

    def begin_comparison(self) -> set[str]:
        """Begin to compare memory with the stream.

        Returns the keys that must not be compared: those that are dirty, in flight, or marked until `end_comparison`.
        The set grows meanwhile.
        """
        self._touched = {*self._changed, *self._differing, *self._in_flight}
        return self._touched

    def end_comparison(self) -> None:
        """End the comparison: marks are no longer noted for it."""
        self._touched = None

    def oldest(self) -> float | None:
        """Return the clock time since which the oldest key is dirty. None if all are clean."""
        queues = (self._in_flight, self._changed, self._differing)
        return min((min(queue.values()) for queue in queues if queue), default=None)

    def __len__(self) -> int:
        """Number of keys that are not clean."""
        dirty = len(self._changed) + len(self._differing)
        return dirty + sum(i not in self._changed and i not in self._differing for i in self._in_flight)

    def _mark(self, job_id: str) -> None:
        since = self._differing.pop(job_id, None)
        self._changed.setdefault(job_id, self._clock() if since is None else since)
        if self._touched is not None:
            self._touched.add(job_id)
