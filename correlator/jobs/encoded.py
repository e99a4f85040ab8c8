"""A cache of encoded job documents: each revision is encoded once, for all connections and sinks.

Invariant: a cached document is the job's current one. The hub calls `forget` with every change. The cache holds at most
`capacity` bytes. When it is full, a snapshot of all jobs adds nothing, because the walk would evict each document
before its next use. A document that is requested by itself evicts the oldest.
"""

from __future__ import annotations

from msgspec import Struct

from correlator.jobs import job_document
from correlator.jobs.model.views import JobView, PublishedJob

CAPACITY = 128 * 1024 * 1024
"""Bytes. 20,000 jobs of 10 steps each take 56 MB."""

OVERHEAD = 300
"""Bytes that an entry takes besides its text."""


class _Cached(Struct, frozen=True, gc=False):
    rev: int
    view: JobView
    body: bytes


class Documents:
    """The cache. Call it from the event loop's thread only. `capacity` is in bytes."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._cached: dict[str, _Cached] = {}
        self.size = 0
        """Bytes in use."""

    def encoded(self, shown: PublishedJob, *, all_jobs: bool = False) -> bytes:
        """The document of `shown` as JSON. `all_jobs`: the caller encodes all jobs in turn."""
        view = shown.view
        cached = self._cached.get(view.job_id)
        # A job outside memory has the current `seq` as its `rev`, so two readings of it may have the same `rev`.
        if cached is not None and cached.rev == shown.rev and cached.view is view:
            return cached.body
        body = job_document.encode(job_document.document(shown))
        self.forget(view.job_id)
        size = len(body) + OVERHEAD
        if size > self._capacity or (all_jobs and self.size + size > self._capacity):
            return body
        self._cached[view.job_id] = _Cached(shown.rev, view, job_document.compact(body))
        self.size += size
        while self.size > self._capacity:
            self.forget(next(iter(self._cached)))
        return body

    def forget(self, job_id: str) -> None:
        """Drop the document of a job that changed or left memory."""
        cached = self._cached.pop(job_id, None)
        if cached is not None:
            self.size -= len(cached.body) + OVERHEAD
