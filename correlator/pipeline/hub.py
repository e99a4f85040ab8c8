"""The hub gives sinks and clients the index and its changes: one publisher, any number of subscribers.

Problem. A client needs a snapshot and every later change, with no change lost or applied twice between the two. Many
clients of different speed must get the same stream, and the slowest of them must not delay the writer.

Model. The pipeline is the only writer. It applies what the source read to the index and passes the `Outcome` to
`publish`, which calls each subscriber with one `Batch`. A subscriber queues the batch in buffers of its own, which it
bounds. A position in the stream is (epoch, seq): seq counts changes, and the epoch is a new random text at every
start, so a position of an earlier run is never mistaken for one of this run.

Invariants.

* `publish` and `subscribe` are synchronous. A subscriber that subscribes and reads the index in the same step of the
  event loop sees the state just before the next batch: snapshot and stream join without a gap or an overlap.
* Batches arrive in order, and each change and each log line is in one batch only.
* A subscriber must not wait and must not raise.
* Everything here runs in the event loop's thread.

The hub also answers what memory cannot: `find` asks the archive (the database) for jobs that were evicted, and passes
what it found to the pipeline.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from correlator.errors import SourceUnavailable
from correlator.jobs import fold, job_view
from correlator.jobs.children import family
from correlator.jobs.encoded import Documents
from correlator.jobs.index import Index
from correlator.jobs.model.changes import Change, Event
from correlator.jobs.model.facts import AttributedRow, Job, Reading
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import PublishedJob, Resolved
from correlator.jobs.outcome import Outcome
from correlator.ops.liveness import Liveness
from correlator.ops.stalls import timed
from correlator.pipeline.queries import Archive, Found
from correlator.pipeline.resume_ring import Past
from correlator.pipeline.source_status import SourceStatus
from correlator.pipeline.waiting_ids import WaitingIds

KNOWN_WITHIN = 1.0
"""Seconds that the database has to name a newer job with an ID that a job in memory has."""


def wall_clock() -> Micros:
    """Return the Unix time in microseconds."""
    return time.time_ns() // 1000


class Batch(Struct, frozen=True):
    """Changes, events and log lines that are published together; `seq` is the stream's position after them.

    `lines`: log rows, each in one batch only, with the jobs they belong to; empty while the log's past is loaded.
    """

    seq: int
    changes: Sequence[Change]
    events: Sequence[Event] = ()
    lines: Sequence[AttributedRow] = ()


OnBatch: TypeAlias = Callable[[Batch], None]


class Hub:
    """The index with its subscribers; one for the whole daemon. Event loop's thread only.

    `archive`: where `find` continues when memory does not suffice; None: memory only. `on_watch()` is called each time
    a client begins to wait for an ID (see `WaitingIds`). `clock` returns Unix time in microseconds.
    """

    def __init__(
        self,
        index: Index,
        archive: Archive | None = None,
        *,
        epoch: str = "",
        past: Past | None = None,
        on_watch: Callable[[], None] = lambda: None,
        clock: Callable[[], Micros] = wall_clock,
    ) -> None:
        self.index = index
        self.published = index.published
        self.forecasts = index.forecasts
        self.archive = archive
        self.epoch = epoch or secrets.token_hex(6)
        self.clock = clock
        self.status = SourceStatus(index, clock)
        self.draining = False
        self.live = Liveness()
        """The heartbeats of the daemon's tasks."""
        self.waiting_ids = WaitingIds(lambda name: index.published.resolve(name) is not None, on_watch)
        self._learn: Callable[[Sequence[Reading]], object] = lambda _: None
        self.readiness: dict[str, Callable[[], dict[str, Any]]] = {
            "database": self.status.describe_database,
            "tables": self.status.describe_tables,
        }
        """For each part that /health/ready reports: a function that describes it. "ok" is false if it has a problem."""
        self.watchers: dict[str, Callable[[], int]] = {"waiting": lambda: self.waiting_ids.waiters}
        """For each kind of endpoint: a function that returns its number of connections and waiting requests."""
        self._subscribers: dict[OnBatch, None] = {}
        self.documents = Documents()
        """The encoded documents of the jobs in memory."""
        self._past = past or Past()

    @property
    def seq(self) -> int:
        return self.published.seq

    # -- called by the writer

    def apply_found_with(self, learn: Callable[[Sequence[Reading]], object]) -> None:
        """Set what applies to the index what `find` read in the database. Until then such readings are dropped."""
        self._learn = learn

    def publish(self, outcome: Outcome) -> None:
        """Pass `outcome` to every subscriber as one batch. An outcome that changed nothing is dropped."""
        lines = () if self.index.loading else outcome.attributed
        if not outcome.changes and not outcome.events and not lines:
            return
        batch = Batch(self.published.seq, outcome.changes, outcome.events, lines)
        for change in outcome.changes:
            self.documents.forget(change.job_id)
        self._past.add(outcome.changes)
        self.waiting_ids.wake(outcome.changes)
        with timed("publish"):
            for on_batch in list(self._subscribers):
                on_batch(batch)

    @property
    def clients(self) -> int:
        """The number of connections and waiting requests of all endpoints."""
        return sum(count() for count in self.watchers.values())

    # -- called for clients

    def subscribe(self, on_batch: OnBatch) -> Callable[[], None]:
        """Call `on_batch` with every batch from now on. Returns a function that unsubscribes it."""
        self._subscribers[on_batch] = None
        return lambda: self._subscribers.pop(on_batch, None)

    def reaches(self, seq: int) -> bool:
        """True if all changes after position `seq` are remembered. False for a position ahead of the stream."""
        return seq <= self.seq and self._past.reaches(seq)

    def changes_since(self, seq: int) -> list[Change] | None:
        """Return all changes after position `seq`, in order, or None if some were dropped. See `Past.since`."""
        return self._past.since(seq) if self.reaches(seq) else None

    async def find(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return the newest job that `name` names, from memory or from the database; None if there is none.

        Raises: `SourceUnavailable` if only the database could answer, and it does not.
        """
        known = self.find_now(name)
        if self.archive is None or (known is not None and self._is_newest(*known)):
            return known
        try:
            # For a known job, the query only checks whether the database has a newer one with the same ID.
            async with asyncio.timeout(KNOWN_WITHIN if known is not None else None):
                found = await self.archive.find(name, self.index.advance_clock)
        except (SourceUnavailable, TimeoutError):
            if known is not None:
                return self.find_now(name) or known
            raise
        if found is None:
            return self.find_now(name)
        if found.reading is not None:
            self._learn([found.reading])
        known, old = self.find_now(name), self._from_archive(found)
        if known is None or (old is not None and old[0].view.age_key > known[0].view.age_key):
            return old
        return known

    def _is_newest(self, shown: PublishedJob, resolved: Resolved) -> bool:
        """True if no newer job with this ID can have left memory: an old job may run longer than the retention."""
        if resolved.resolved_by in ("uuid", "legacy"):
            return True
        return (shown.view.started_at or 0) >= self.published.complete_since(self.clock())

    def find_now(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return the job in memory that `name` names, or None. Does not query the database."""
        resolved = self.published.resolve(name)
        shown = self.published.get(resolved.job_id) if resolved is not None else None
        return (shown, resolved) if shown is not None and resolved is not None else None

    def _from_archive(self, found: Found) -> tuple[PublishedJob, Resolved] | None:
        if found.legacy is not None:
            updated_at = found.legacy.updated_at or found.legacy.created_at or 0
            return PublishedJob(job_view.legacy_view(found.legacy), self.seq, updated_at), found.resolved
        assert found.reading is not None
        shown = self.archived(found.reading)
        return (shown, found.resolved) if shown is not None else None

    def archived(self, reading: Reading) -> PublishedJob | None:
        """Return a job built from its tables alone, with the current `seq`; None if it has no record.

        A job that came into memory since the query is returned as it is published: a `rev` has one document.
        """
        if reading.record is None:
            return None
        if (published := self.published.get(reading.job_id)) is not None:
            return published
        job = fold.fold(Job(reading.job_id), reading)
        children = family(reading.children, reading.child_count, [])
        updated = reading.record.updated_at or job_view.alive_at(job)
        return PublishedJob(
            job_view.view(job, self.index.id_keys),
            self.seq,
            updated,
            children.ids,
            children.count,
            alive_at=job_view.alive_at(job),
        )

    async def appearance(self, name: str, within: float) -> tuple[PublishedJob, Resolved] | None:
        """Wait for a job in memory that `name` names. None after `within` seconds, or if the daemon drains."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        with self.waiting_ids.watched_id(name):
            while (found := self.find_now(name)) is None and not self.draining and (left := until - loop.time()) > 0:
                await self.waiting_ids.changed(name, left)
        return found

    def close(self) -> None:
        """Begin to drain: end every wait for a job."""
        self.draining = True
        self.waiting_ids.wake_all()
