"""The hub gives sinks and clients the published jobs and their changes: one publisher, any number of subscribers.

Problem. A client needs a snapshot and every later change, with no change lost or applied twice between the two. Many
clients of different speed must get the same stream, and the slowest of them must not delay the publisher.

Model. One publisher changes the published jobs and calls each subscriber with one `Batch`. A subscriber queues the
batch in buffers of its own, which it bounds. A position in the stream is (epoch, seq): seq grows with each change, and
an epoch is a random text, so a position of another stream is never mistaken for one of this stream.

Invariants.

* Publishing and `subscribe` are synchronous. A subscriber that subscribes and reads the published jobs in the same step
  of the event loop sees the state just before the next batch: snapshot and stream join without a gap or an overlap.
* Batches arrive in order, and each change and each log line is in one batch only.
* A subscriber must not wait and must not raise. If one does, the others get the batch all the same.
* Everything here runs in the event loop's thread.

There are two hubs. That of a daemon (`local_hub`) publishes what its index makes of the database's rows. That of a
gateway publishes what a stream of documents says. Both also answer what memory cannot: `find`, `page` and `ask`
ask the database, or the daemon that reads it, and may raise `SourceUnavailable`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias, TypeVar

from msgspec import Struct

from correlator.errors import SourceUnavailable
from correlator.jobs.directory import JobDirectory
from correlator.jobs.document_cache import Documents
from correlator.model.facts import AttributedRow
from correlator.model.messages import DatabaseState
from correlator.model.published import Change, Event, PublishedJob, Reason
from correlator.model.replies import Resolved
from correlator.model.rows import Micros
from correlator.ops.stalls import Heartbeats, timed
from correlator.pipeline.queries import JobQuery, OtherJobs, Question
from correlator.pipeline.resume_ring import ResumeRing
from correlator.pipeline.waiting_ids import WaitingIds

UNREACHABLE = "the database is unreachable"

KNOWN_WITHIN = 1.0
"""Seconds that the database has to name a newer job with an ID that a job in memory has."""

A = TypeVar("A")


def wall_clock() -> Micros:
    """Return the Unix time in microseconds."""
    return time.time_ns() // 1000


class Batch(Struct, frozen=True):
    """Changes, events and log lines that are published together; `seq` is the stream's position after them.

    `lines`: log rows, each in one batch only, with the jobs they belong to; empty while the log's past is loaded.
    `dropped`: the number of log lines before these that were lost on their way to a gateway.
    """

    seq: int
    changes: Sequence[Change] = ()
    events: Sequence[Event] = ()
    lines: Sequence[AttributedRow] = ()
    dropped: int = 0


OnBatch: TypeAlias = Callable[[Batch], None]


class Hub(ABC):
    """The published jobs with their subscribers. Event loop's thread only.

    `epoch`: the stream that positions belong to. `on_watch()` is called each time a client begins to wait for an ID
    (see `WaitingIds`). `clock` returns Unix time in microseconds.
    """

    def __init__(
        self,
        published: JobDirectory,
        status: DatabaseStatus,
        epoch: str,
        archive: object | None,
        *,
        documents: Documents | None = None,
        resume_ring: ResumeRing | None = None,
        on_watch: Callable[[], None] = lambda: None,
        refusal: Callable[[], str | None] = lambda: None,
        clock: Callable[[], Micros] = wall_clock,
    ) -> None:
        self.published = published
        self._resume_ring = resume_ring or ResumeRing()
        self.status = status
        self.epoch = epoch
        self.archive = archive
        """What answers where memory cannot. None: memory is all there is, and the methods that need it raise."""
        self.clock = clock
        self.draining = False
        self.refusal = refusal
        """Returns why clients are not served, e.g. by a standby; None: they are. The text may be sent to clients."""
        self.live = Heartbeats()
        """The heartbeats of the process's tasks."""
        self.waiting_ids = WaitingIds(lambda name: published.resolve(name) is not None, on_watch)
        self.readiness: dict[str, Callable[[], dict[str, Any]]] = {"database": status.describe_database}
        """For each part that /health/ready reports: a function that describes it. "ok" is false if it has a problem."""
        self.watchers: dict[str, Callable[[], int]] = {"waiting": lambda: self.waiting_ids.waiters}
        """For each kind of endpoint: a function that returns its number of connections and waiting requests."""
        self._subscribers: dict[OnBatch, None] = {}
        self._publishing = timed("publish")
        self.documents = documents or Documents()
        """The encoded documents of the jobs in memory."""

    @property
    def seq(self) -> int:
        return self.published.seq

    @property
    def clients(self) -> int:
        """The number of connections and waiting requests of all endpoints."""
        return sum(count() for count in self.watchers.values())

    def subscribe(self, on_batch: OnBatch) -> Callable[[], None]:
        """Call `on_batch` with every batch from now on. Returns a function that unsubscribes it."""
        self._subscribers[on_batch] = None
        return lambda: self._subscribers.pop(on_batch, None)

    def _deliver(self, batch: Batch) -> None:
        """Pass a batch to every subscriber. Called by the publisher, after the published jobs were changed."""
        for change in batch.changes:
            self.documents.forget(change.job_id, left=change.new is None)
        self.waiting_ids.wake(batch.changes)
        with self._publishing, ExitStack() as calls:  # All are called even if one raises: only then is that raised.
            for on_batch in reversed(self._subscribers):
                calls.callback(on_batch, batch)

    def close(self) -> None:
        """Begin to drain: end every wait for a job."""
        self.draining = True
        self.waiting_ids.wake_all()

    @property
    @abstractmethod
    def serves(self) -> bool:
        """True if streams can begin."""

    # -- positions

    @abstractmethod
    def reaches(self, seq: int) -> bool:
        """True if all changes after position `seq` are remembered. False for a position ahead of the stream."""

    @abstractmethod
    def changed(self) -> Iterator[tuple[str, int]]:
        """Yield the jobs whose changes are remembered, each with the seq of its last change, the newest first."""

    def knows_before(self, seq: int) -> bool:
        """True if what jobs were before their changes after position `seq` is known."""
        return self._resume_ring.reaches(seq)

    def changed_with(self, names: Iterable[str], seq: int, most: int) -> list[str] | None:
        """Return the jobs that changed after position `seq` and that one of `names` leads to, or led to since.

        They are in the order of their last change. None: nobody knows, or there may be more than `most`.
        """
        if not self.knows_before(seq):
            return None
        found: set[str] = set()
        for name in names:
            found.add(name)
            found.update(self.published.carriers(name), self._resume_ring.losers(name))
            if len(found) > most:
                return None
        last = self._resume_ring.last
        return sorted((job_id for job_id in found if last(job_id) > seq), key=last)

    def before(self, job_id: str, seq: int) -> Sequence[PublishedJob] | None:
        """Return what a job was before its changes after position `seq`, in the members that filters use.

        States that filters cannot distinguish from a later one are omitted. None: nobody knows.
        """
        return self._resume_ring.before(job_id, seq) if self.knows_before(seq) else None

    @abstractmethod
    def reason(self, job_id: str) -> Reason | None:
        """Return why a job left memory, if that was its last change, and that is remembered."""

    @abstractmethod
    async def reached(self, seq: int, within: float) -> bool:
        """Wait until the stream is at position `seq`. False if it is not after `within` seconds."""

    @abstractmethod
    async def is_behind(self, seq: int) -> bool:
        """True if position `seq` may be in the stream although this process has not read that far yet."""

    # -- IDs

    async def find(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return the newest job that `name` names, from memory or from the database; None if there is none.

        Raises: `SourceUnavailable` if only the database could answer, and it does not.
        """
        if (certain := self.find_certain(name)) is not None or self.archive is None:
            return certain
        known = self.find_now(name)
        try:
            # For a known job, the query only checks whether the database has a newer one with the same ID.
            async with asyncio.timeout(KNOWN_WITHIN if known is not None else None):
                other = await self._search(name)
        except (SourceUnavailable, TimeoutError):
            if known is not None:
                return self.find_now(name) or known
            raise
        known = self.find_now(name)
        if known is None or (other is not None and other[0].view.age_key > known[0].view.age_key):
            return other
        return known

    def find_certain(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return what `find` would return without a query of the database; None if it needs one, or there is no job."""
        known = self.find_now(name)
        return known if known is not None and (self.archive is None or self._is_newest(*known)) else None

    def _is_newest(self, shown: PublishedJob, resolved: Resolved) -> bool:
        """True if no newer job with this ID can have left memory: an old job may run longer than the retention."""
        if resolved.resolved_by in ("uuid", "legacy"):
            return True
        return (shown.view.started_at or 0) >= self.published.complete_since(self.clock())

    def find_now(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return the job in memory that `name` names, its own ID in any case, or None. Does not query the database."""
        published = self.published
        resolved = published.resolve(name) or published.resolve(published.in_its_case(name))
        shown = published.get(resolved.job_id) if resolved is not None else None
        return (shown, resolved) if shown is not None and resolved is not None else None

    async def appearance(self, name: str, within: float) -> tuple[PublishedJob, Resolved] | None:
        """Wait for a job in memory that `name` names. None after `within` seconds, or if the process drains."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        with self.waiting_ids.watched_id(name):
            while (found := self.find_now(name)) is None and not self.draining and (left := until - loop.time()) > 0:
                await self.waiting_ids.changed(name, left)
        return found

    # -- what memory does not have. Each may raise `SourceUnavailable`.

    @abstractmethod
    async def _search(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        """Return the newest job that `name` names, from the database."""

    @abstractmethod
    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, known: Callable[[str], bool]
    ) -> OtherJobs[PublishedJob]:
        """Return jobs older than `before`, newest first by (started, ID), without those for which `known` is true."""

    @abstractmethod
    async def ask(self, question: Question[A]) -> A:
        """Return the answer to a question that is about more than one job in memory."""

    @property
    @abstractmethod
    def running(self) -> int:
        """The number of jobs that run."""


class DatabaseStatus(ABC):
    """The state of the database behind the published jobs. `error` is for the operator, `public_error` for clients."""

    def __init__(self) -> None:
        self.database: DatabaseState = "down"
        self.error: str | None = None
        self.loading = True
        """True until everything is loaded: not ready yet."""
        self.reading: tuple[int, int] | None = None
        """(read, to read) while loading takes longer than usual."""
        self._subscribers: dict[Callable[[], None], None] = {}
        self.public_error: str | None = None
        self._what = UNREACHABLE

    @property
    @abstractmethod
    def lag_seconds(self) -> float:
        """Seconds since the database last answered in full; 0 while it is live, and before the first answer."""

    @property
    def problem(self) -> str:
        """Why the database is not live, for the operator."""
        unreachable = self._what == UNREACHABLE
        return f"{'waiting for the database' if self.loading and unreachable else self._what}: {self.error}"

    def subscribe(self, on_status: Callable[[], None]) -> Callable[[], None]:
        """Call `on_status` each time the database's state changes. Returns a function that unsubscribes it."""
        self._subscribers[on_status] = None
        return lambda: self._subscribers.pop(on_status, None)

    def set_state(
        self, state: DatabaseState, error: str | None = None, public: str | None = None, what: str = UNREACHABLE
    ) -> None:
        """Set the database's state. `error` is for the operator, `public` for clients; None: the same text.

        `what`: what it means that the database is not live.
        """
        if (state, error, what) == (self.database, self.error, self._what):
            return
        self.database, self.error, self._what = state, error, what
        self.public_error = public if public is not None else error
        for on_status in list(self._subscribers):
            on_status()

    def describe_database(self) -> dict[str, Any]:
        """Describe the database for /health/ready."""
        part: dict[str, Any] = {
            "ok": self.database == "live",
            "state": self.database,
            "lag_seconds": self.lag_seconds,
            "error": self.public_error,
        }
        if self.reading is not None or self.loading:
            done, total = self.reading or (0, 0)
            part["loading"] = {"done": done, "total": total}
        return part


def available(archive: A | None) -> A:
    """Return the archive. Raises: `SourceUnavailable` if there is none."""
    if archive is None:
        raise SourceUnavailable("there is none")
    return archive
