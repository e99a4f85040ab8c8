"""A cache of encoded job documents: each revision is encoded once in each form, for all connections, lists and sinks.

Invariant: a cached document is the job's current one. The hub calls `forget` with every change. The cache holds at most
`capacity` bytes. When it is full, a snapshot of all jobs adds nothing, because the walk would evict each document
before its next use. A document that is requested by itself evicts the oldest.

Of the running jobs that changed last and that somebody follows, the cache also holds the document itself: the next
revision shares with it what has not changed, and the merge patch compares only the rest. In a daemon, its texts are
those of the published job.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

from correlator.jobs import encoding
from correlator.jobs.encoding import Revision
from correlator.model import encoder, published
from correlator.model.published import PublishedJob

CAPACITY = 128 * 1024 * 1024
"""Bytes. 20,000 jobs of 10 steps each take 56 MB."""

OVERHEAD = 300
"""Bytes that an entry takes besides its text."""

MAX_FOLLOWED = 16 * 1024 * 1024
"""Bytes of the documents that are kept as such: 2,000 jobs of 10 steps each."""

MEMBERS, STEP = 2_000, 500
"""Bytes of the members of a document, and of a step, without long texts."""


class _Cached(Struct, frozen=True, gc=False):
    shown: PublishedJob
    body: bytes


class Documents:
    """The cache. Call it from the event loop's thread only. `capacity` is in bytes."""

    def __init__(self, capacity: int = CAPACITY, max_followed: int = MAX_FOLLOWED) -> None:
        self._capacity = capacity
        self._max_followed = max_followed
        self._cached: dict[tuple[str, bool], _Cached] = {}
        """By job ID, and whether the document has the steps."""
        self.size = 0
        """Bytes in use."""
        self._followed: OrderedDict[str, Revision] = OrderedDict()
        """By job ID, the one that changed last at the end."""
        self._followed_size = 0

    def cached(self, jobs: Iterable[PublishedJob], *, steps: bool = True) -> list[bytes | None]:
        """For each of `jobs` its document, if it is in the cache, else None."""
        get = self._cached.get
        return [
            entry.body if (entry := get((shown.view.job_id, steps))) is not None and entry.shown is shown else None
            for shown in jobs
        ]

    def encoded(self, shown: PublishedJob, *, all_jobs: bool = False, steps: bool = True) -> bytes:
        """The document of `shown` as JSON. `all_jobs`: the caller encodes all jobs in turn. `steps`: with its steps."""
        if steps and shown.body is not None:
            return shown.body
        key = (shown.view.job_id, steps)
        # A job outside memory has the current `seq` as its `rev`, so two readings of it may have the same `rev`.
        if (cached := self._cached.get(key)) is not None and cached.shown is shown:
            return cached.body
        base = self._followed.get(shown.job_id)
        document = encoding.document(shown, base, steps=steps)
        if steps and not all_jobs:
            self._follow(Revision(shown, document))
        body = encoder.encode_document(document)
        self._forget(key)
        size = len(body) + OVERHEAD
        if size > self._capacity or (all_jobs and self.size + size > self._capacity):
            return body
        self._cached[key] = _Cached(shown, body)
        self.size += size
        while self.size > self._capacity:
            self._forget(next(iter(self._cached)))
        return body

    def patch(self, old: PublishedJob, new: PublishedJob, *, goes_on: bool = False) -> bytes:
        """The merge patch between the documents of two revisions of a job, as JSON. `goes_on`: see `Change`."""
        if goes_on or published.goes_on(old, new):
            return encoding.growth(old, new)
        base = self._followed.get(old.job_id)
        if base is None or base.shown is not old:
            base = Revision(old, encoding.document(old, base))
        document = encoding.document(new, base)
        self._follow(Revision(new, document))
        return encoder.encode(encoder.patch(base.document, document))

    def forget(self, job_id: str, *, left: bool = False) -> None:
        """Drop the encoded documents of a job that changed, or that `left` memory."""
        if self._cached:
            self._forget((job_id, True))
            self._forget((job_id, False))
        if left:
            self._follow_no_longer(job_id)

    def _forget(self, key: tuple[str, bool]) -> None:
        cached = self._cached.pop(key, None)
        if cached is not None:
            self.size -= len(cached.body) + OVERHEAD

    def _follow(self, revision: Revision) -> None:
        shown = revision.shown
        self._follow_no_longer(shown.job_id)
        if shown.view.terminal:
            return
        self._followed[shown.job_id] = revision
        self._followed_size += _size(revision)
        while self._followed_size > self._max_followed and len(self._followed) > 1:
            self._follow_no_longer(next(iter(self._followed)))

    def _follow_no_longer(self, job_id: str) -> None:
        if (revision := self._followed.pop(job_id, None)) is not None:
            self._followed_size -= _size(revision)


def _size(revision: Revision) -> int:
    view, body = revision.shown.view, revision.shown.body
    texts = len(body) if body is not None else len(view.metadata or "") + len(view.error or "")
    return MEMBERS + STEP * len(revision.document.steps) + texts
