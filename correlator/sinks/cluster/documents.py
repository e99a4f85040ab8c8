"""The documents of the jobs in memory, on their way into the stream `KV_cor`.

A document is state: only the newest one counts. So `DirtyKeys` has the IDs of the jobs whose newest document the stream
may not have, and no document: a cluster that is away for a day costs one set of IDs, and a job that changed a thousand
times meanwhile is written once. `DocumentWriter.next_batch` makes a batch from the keys that are dirty, with each
document as it is at that moment. Making one takes several steps of the event loop, so that no call blocks it for long.

Invariant: a key is clean only after the stream has acknowledged a document that was made after the last mark. One
batch is in flight at a time; a batch without an acknowledgement may or may not have been stored, so its keys are dirty
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from correlator.bounded import BoundedDict
from correlator.cluster import keys
from correlator.cluster.connection import Connection
from correlator.cluster.fence import StreamMessage
from correlator.cluster.streams import MARKER_TTL
from correlator.jobs.directory import JobDirectory
from correlator.model.published import Reason
from correlator.ops import cluster_metrics
from correlator.ops.stalls import timed
from correlator.sinks.cluster import stored_document

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTimings:
    """Deadlines and intervals of one sink, in seconds."""

    answer_within: float = 5.0
    """To wait for the acknowledgement of a batch, and for any other answer."""

    epoch_checked_every: float = 10.0
    """Between two checks of the epoch: another writer may have damaged it."""

    compare_every: float = 600.0
    """Between two comparisons of memory with the stream."""

    slice_pause: float = 0.02
    """Between two slices of a periodic comparison, which is in no hurry."""

    behind_within: float = 2.0
    """A server of the cluster is not longer behind the others than this."""

    rewrite_owner_every: float = 3600.0
    """Between two writes of an owner key: an old key pins the first sequence of the stream."""

    due_every: float = 1.0
    """Between two checks whether a comparison is due."""

    flush_within: float = 4.0
    """At the end, to write what is pending."""


DEFAULT = ClusterTimings()


MAX_KEYS = 256
FULL_AT = 256_000
"""A batch is complete with so many keys, or from this number of bytes on, or that of the window of the connection: one
more document may be in it."""


AT_ONCE = 32
"""Documents that are made in one step."""


REASON_HEADER = "Cor-Reason"
PURGE = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{MARKER_TTL}s"}


MAX_REMOVED = 20_000
"""Maximum number of jobs that left memory and that the stream still has. The next comparison finds the others."""


class DocumentWriter:
    """Makes batches of the keys in `dirty` for `connection`."""

    def __init__(self, connection: Connection, instance: str, published: JobDirectory, dirty: DirtyKeys) -> None:
        self._connection = connection
        self._instance = instance
        self._published = published
        self._dirty = dirty

    async def next_batch(self) -> list[StreamMessage]:
        """Return the next batch, whose keys are in flight from now on. Empty if no key is dirty."""
        batch: list[StreamMessage] = []
        size, limit = 0, stored_document.limit(self._connection.client.max_payload)
        full_at = min(FULL_AT, self._connection.window.share)
        while len(batch) < MAX_KEYS and size < full_at:
            with timed("cluster batch"):
                for _ in range(min(AT_ONCE, MAX_KEYS - len(batch))):
                    job_id = self._dirty.pop_next()
                    if job_id is None:
                        return batch
                    message = self._message(job_id, limit)
                    if message is not None:
                        batch.append(message)
                        size += len(message.payload)
                    if size >= full_at:
                        break
            await asyncio.sleep(0)
        return batch

    def _message(self, job_id: str, limit: int) -> StreamMessage | None:
        subject = keys.job(self._instance, job_id)
        shown = self._published.get(job_id)
        if shown is None:
            reason = {REASON_HEADER: self._dirty.removal(job_id)}
            return StreamMessage(subject, b"", {**PURGE, **reason})
        try:
            return StreamMessage(subject, stored_document.encode(shown, limit))
        except ValueError as error:
            cluster_metrics.REFUSED.inc()
            log.warning("the job %s is not in the cluster: %s", job_id, error)
            return None


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
