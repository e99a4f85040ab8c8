"""A cache of encoded job documents: each revision is encoded once in each form, for all connections, lists and sinks.

Invariant: a cached document is the job's current one. The hub calls `forget` with every change. The cache holds at most
`capacity` bytes. When it is full, a snapshot of all jobs adds nothing, because the walk would evict each document
before its next use. A document that is requested by itself evicts the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from correlator.jobs import job_document
from correlator.jobs.model.views import PublishedJob

CAPACITY = 128 * 1024 * 1024
"""Bytes. 20,000 jobs of 10 steps each take 56 MB."""

OVERHEAD = 300
"""Bytes that an entry takes besides its text."""


class _Cached(Struct, frozen=True, gc=False):
    shown: PublishedJob
    body: bytes


class Documents:
    """The cache. Call it from the event loop's thread only. `capacity` is in bytes."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._cached: dict[tuple[str, bool], _Cached] = {}
        """By job ID, and whether the document has the steps."""
        self.size = 0
        """Bytes in use."""

    def cached(self, jobs: Iterable[PublishedJob], *, steps: bool = True) -> list[bytes | None]:
        """For each of `jobs` its document, if it is in the cache, else None."""
        get = self._cached.get
        return [
            entry.body if (entry := get((shown.view.job_id, steps))) is not None and entry.shown is shown else None
            for shown in jobs
        ]

    def encoded(self, shown: PublishedJob, *, all_jobs: bool = False, steps: bool = True) -> bytes:
        """The document of `shown` as JSON. `all_jobs`: the caller encodes all jobs in turn. `steps`: with its steps."""
        key = (shown.view.job_id, steps)
        # A job outside memory has the current `seq` as its `rev`, so two readings of it may have the same `rev`.
        if (cached := self._cached.get(key)) is not None and cached.shown is shown:
            return cached.body
        body = job_document.encode(job_document.document(shown) if steps else job_document.document(shown, steps=False))
        self._forget(key)
        size = len(body) + OVERHEAD
        if size > self._capacity or (all_jobs and self.size + size > self._capacity):
            return body
        self._cached[key] = _Cached(shown, job_document.compact(body))
        self.size += size
        while self.size > self._capacity:
            self._forget(next(iter(self._cached)))
        return body

    def forget(self, job_id: str) -> None:
        """Drop the documents of a job that changed or left memory."""
        self._forget((job_id, True))
        self._forget((job_id, False))

    def _forget(self, key: tuple[str, bool]) -> None:
        cached = self._cached.pop(key, None)
        if cached is not None:
            self.size -= len(cached.body) + OVERHEAD
