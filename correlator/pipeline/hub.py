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

There are two hubs. That of a daemon (`pipeline.LocalHub`) publishes what its index makes of the database's rows. That
of a gateway publishes what a stream of documents says. Both also answer what memory cannot: `find`, `page` and `ask`
ask the database, or the daemon that reads it, and may raise `SourceUnavailable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice, takewhile
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.errors import SourceUnavailable
from correlator.jobs.directory import JobDirectory
from correlator.jobs.encoding import Documents, encode
from correlator.jobs.fold import vm_name
from correlator.model.facts import AttributedRow
from correlator.model.messages import DatabaseState
from correlator.model.published import Change, Event, JobView, PublishedJob, Reason
from correlator.model.replies import Resolved
from correlator.model.rows import Micros
from correlator.ops.event_loop import Heartbeats, timed
from correlator.pipeline.queries import JobQuery, OtherJobs, Question
from correlator.tasks import set_within

MAX_CHANGES = 10_000
MAX_BYTES = 16 * 1024 * 1024
"""Bounds of the resume ring. A client whose position was dropped gets a snapshot."""

PLACE = 400
OVERHEAD = 600
"""Approximate bytes of a change with the entry of its job, and of the members that it keeps, without their texts."""


class ResumeRing:
    """The latest changes, for clients that resume: which jobs changed since their position, and what they were before.

    Problem. Thousands of clients that were cut resume at once, each at a position of its own, and most follow one
    job. What one of them costs must depend on the jobs that it follows, and not on how much has changed since its
    position.

    Model. A job is after a change as it was before its next change, and after the last one as it is published. So a
    change keeps only what it replaced, and nothing if the members that filters use stayed the same, as they mostly
    do. It keeps these members and not the document: metadata of 100 kB would otherwise be kept once per change. The
    changes are found by their order, by their job, and by the IDs that they took from a job.

    Invariant. A job that changed after a position, and that an ID leads to now or led to since, carries the ID now,
    or is among the `losers` of the ID. The resume ring is bounded by the number of changes and by bytes.

    Beyond `max_changes` or `max_bytes` the oldest changes are dropped. `after`: the position from which on it is
    given all changes.
    """

    def __init__(self, max_changes: int = MAX_CHANGES, max_bytes: int = MAX_BYTES, *, after: int = 0) -> None:
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._changes: deque[_Kept] = deque()
        """The oldest first."""
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        """The jobs of the changes, in the order of their last change."""
        self._lost: dict[str, dict[str, int]] = {}
        """For an ID: the jobs that it was taken from, each with the number of changes that did."""
        self._size = 0
        self._dropped = after
        """The seq of the newest change that was dropped, or not given."""

    def add(self, changes: Iterable[Change]) -> None:
        """Append changes, in the order of their seq."""
        for change in changes:
            kept = _kept(change)
            self._changes.append(kept)
            self._size += kept.size
            job = self._jobs.get(kept.job_id)
            if job is None:
                job = self._jobs[kept.job_id] = _Job(kept, None, [])
            else:
                self._jobs.move_to_end(kept.job_id)
            job.last, job.reason = kept, change.reason
            if kept.differs:
                job.differing.append(kept)
            for name in kept.lost:
                losers = self._lost.setdefault(name, {})
                losers[kept.job_id] = losers.get(kept.job_id, 0) + 1
        while len(self._changes) > self._max_changes or self._size > self._max_bytes:
            self._drop(self._changes.popleft())

    def _drop(self, kept: _Kept) -> None:
        self._dropped = kept.seq
        self._size -= kept.size
        job = self._jobs[kept.job_id]
        if kept.differs:
            del job.differing[0]
        if job.last is kept:
            del self._jobs[kept.job_id]
        for name in kept.lost:
            losers = self._lost[name]
            losers[kept.job_id] -= 1
            if not losers[kept.job_id]:
                del losers[kept.job_id]
            if not losers:
                del self._lost[name]

    def reaches(self, seq: int) -> bool:
        """True if all changes after position `seq` are here. The position must not be ahead of the stream."""
        return seq >= self._dropped

    def changed(self) -> Iterator[tuple[str, int]]:
        """Yield the jobs that changed, each with the seq of its last change, the newest first."""
        for job_id, job in reversed(self._jobs.items()):
            yield job_id, job.last.seq

    def last(self, job_id: str) -> int:
        """Return the seq of the last change of a job; 0 if it is not remembered."""
        job = self._jobs.get(job_id)
        return job.last.seq if job is not None else 0

    def reason(self, job_id: str) -> Reason | None:
        """Return why a job left memory, if that was its last change."""
        job = self._jobs.get(job_id)
        return job.reason if job is not None else None

    def losers(self, name: str) -> Iterable[str]:
        """The jobs that do not carry the ID `name` any more, or that left memory, by a change that is remembered."""
        return self._lost.get(name, ())

    def before(self, job_id: str, seq: int) -> list[PublishedJob]:
        """Return what a job was before its changes after position `seq`, in the members that filters use.

        States that filters cannot distinguish from a later one are omitted. The state after the last change is what is
        published.
        """
        job = self._jobs.get(job_id)
        if job is None or job.last.seq <= seq:
            return []
        found: list[PublishedJob] = []
        for kept in reversed(job.differing):
            if kept.seq <= seq:
                break
            if kept.old is not None:
                found.append(kept.old)
        return found


class _Job(Struct, gc=False):
    """The changes of one job: the last one and its reason, and those that filters notice, oldest first."""

    last: _Kept
    reason: Reason | None
    differing: list[_Kept]


class _Kept(Struct, frozen=True, gc=False):
    """A change. `old`, before it, has only the members that filters use; None unless they differ.

    `lost`: the IDs that the job carried before it, and not after it.
    """

    job_id: str
    seq: int
    size: int
    """Approximate bytes."""
    differs: bool = False
    old: PublishedJob | None = None
    lost: tuple[str, ...] = ()


def _kept(change: Change) -> _Kept:
    old, new = change.old, change.new
    if change.goes_on or (
        old is not None and new is not None and _members(old) == _members(new) and _same_vm(old, new)
    ):
        return _Kept(change.job_id, change.seq, PLACE)
    carried = _carried(new)
    lost = tuple(name for name in _carried(old) if name not in carried)
    return _Kept(change.job_id, change.seq, PLACE + _size(old) + PLACE * len(lost), True, _stripped(old), lost)


def _carried(shown: PublishedJob | None) -> tuple[str, ...]:
    """The IDs besides its own that may resolve to a job. See `JobDirectory.carriers`."""
    return shown.view.names()[1:] if shown is not None and shown.view.source == "joblog" else ()


_members = attrgetter(
    "view.status",
    "view.source",
    "view.external_ids",
    "view.context_id",
    "view.parent_job_id",
    "view.job_type",
    "view.operation",
    "view.started_at",
    "instance",
)
"""The members of a job that filters use. The job ID of a job stays the same."""


def _same_vm(old: PublishedJob, new: PublishedJob) -> bool:
    return old.view.metadata == new.view.metadata or vm_name(old.view) == vm_name(new.view)


def _stripped(shown: PublishedJob | None) -> PublishedJob | None:
    if shown is None:
        return None
    view = shown.view
    vm = vm_name(view)
    found = JobView(
        view.job_id,
        view.status,
        view.source,
        view.external_ids,
        context_id=view.context_id,
        parent_job_id=view.parent_job_id,
        job_type=view.job_type,
        operation=view.operation,
        started_at=view.started_at,
        metadata=encode({"vm_name": vm}).decode() if vm else None,
    )
    return PublishedJob(found, shown.rev, shown.updated_at, instance=shown.instance)


def _size(shown: PublishedJob | None) -> int:
    if shown is None:
        return 0
    view = shown.view
    return OVERHEAD + sum(map(len, view.names())) + len(view.job_type or "") + len(view.operation or "")


# -- IDs that clients wait for


WATCHED_FOR = 60.0
"""Seconds for which the source queries often for an ID that no job has."""

MAX_WATCHED_FOR = 1_000
"""Most IDs of other processes. One more takes the place of the one that was asked for longest ago."""


class WaitingIds:
    """IDs that clients wait for and that no job in memory has yet, and the requests that wait for a job to change.

    A client may ask for a job before its first row is committed. While an ID is watched, the source queries the
    tables for new jobs more often than usual. That costs the database something, so an ID counts only for
    `WATCHED_FOR` seconds after the last client began to wait for it; the client may go on waiting, and gets the job
    whenever it appears. The clients of gateways wait too: their IDs are watched for the time that a gateway asks
    for (`watch_for`).

    Event loop's thread only. `is_known(name)`: whether a job in memory has that ID. `on_watch()` is called each
    time a client begins to wait for an ID; it must not wait and must not raise. `clock`: monotonic seconds.
    `max_watched_for`: IDs of other processes that are watched at most.
    """

    def __init__(
        self,
        is_known: Callable[[str], bool],
        on_watch: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_watched_for: int = MAX_WATCHED_FOR,
    ) -> None:
        self._is_known = is_known
        self._on_watch = on_watch
        self._clock = clock
        self._watched: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """For each ID: how many clients wait for it, and until when it is watched; in the order of that time."""
        self._watched_for: BoundedDict[str, tuple[int, float]] = BoundedDict(max_watched_for)
        """The same for IDs of other processes."""
        self._waiters: dict[str, dict[asyncio.Event, None]] = {}

    @property
    def waiters(self) -> int:
        """The number of names for which a request waits in `changed`."""
        return len(self._waiters)

    def watch_id(self, name: str) -> None:
        """Have the source query often for this ID, for `WATCHED_FOR` seconds from now. Paired with `unwatch_id`."""
        count, _ = self._watched.get(name, (0, 0.0))
        self._watched[name] = (count + 1, self._clock() + WATCHED_FOR)
        self._watched.move_to_end(name)
        self._on_watch()

    def unwatch_id(self, name: str) -> None:
        """End one `watch_id` of this ID. An ID that is not watched is ignored."""
        count, until = self._watched.get(name, (1, 0.0))
        if count > 1:
            self._watched[name] = (count - 1, until)
        else:
            self._watched.pop(name, None)

    def watch_for(self, names: Iterable[str], seconds: float) -> None:
        """Have the source query often for `names` in the next `seconds`: clients of another process wait for them."""
        until = self._clock() + seconds
        for name in names:
            self._watched_for[name] = 0, until
            self._watched_for.move_to_end(name)
            self._on_watch()

    @contextlib.contextmanager
    def watched_id(self, name: str) -> Iterator[None]:
        """Watch an ID for as long as the block lasts."""
        self.watch_id(name)
        try:
            yield
        finally:
            self.unwatch_id(name)

    def has_waiting_ids(self) -> bool:
        """True if an ID is watched that no job in memory has.

        Older IDs cost nothing: the search ends at the first of them.
        """
        return next(self._unknown(), None) is not None

    def unknown_ids(self, most: int) -> list[str]:
        """Return watched IDs that no job in memory has, of the `most` newest; those of own clients go first."""
        return list(self._unknown(most))

    def _unknown(self, most: int | None = None) -> Iterator[str]:
        """The watched IDs that no job in memory has, the newest first."""
        now = self._clock()
        watched = (
            takewhile(lambda item: item[1][1] >= now, reversed(ids.items()))
            for ids in (self._watched, self._watched_for)
        )
        for name, _ in islice(chain.from_iterable(watched), most):
            if not self._is_known(name):
                yield name

    async def changed(self, name: str, within: float) -> bool:
        """Wait until a job that `name` names changes or appears. False if `within` seconds passed before that.

        `wake_all` ends the wait too.
        """
        event = asyncio.Event()
        self._waiters.setdefault(name, {})[event] = None
        try:
            return await set_within(event, within)
        finally:
            if event in (waiters := self._waiters.get(name, {})):
                del waiters[event]
                if not waiters:
                    del self._waiters[name]

    def wake(self, changes: Iterable[Change]) -> None:
        """End the waits for the jobs that `changes` are about, under each name that a job had or has."""
        if not self._waiters:
            return
        for change in changes:
            names = set(change.new.view.names()) if change.new is not None else set()
            if change.old is not None:
                names.update(change.old.view.names())
            for name in names:
                self.wake_name(name)

    def wake_name(self, name: str) -> None:
        """End the waits for this ID. Each is ended once, however often this is called."""
        for event in self._waiters.pop(name, ()):
            event.set()

    def wake_all(self) -> None:
        """End every wait, because the daemon stops."""
        for events in self._waiters.values():
            for event in events:
                event.set()


# -- the hub


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
    `dropped`: the number of log lines before these that were lost on their way from the appliance `dropped_by` to a
    gateway.
    """

    seq: int
    changes: Sequence[Change] = ()
    events: Sequence[Event] = ()
    lines: Sequence[AttributedRow] = ()
    dropped: int = 0
    dropped_by: str = ""


OnBatch: TypeAlias = Callable[[Batch], None]

Shows: TypeAlias = Callable[[PublishedJob], bool]
"""Whether a client may see a job."""


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
        self._subscribers: dict[OnBatch, Callable[[], bool]] = {}
        """Each with a function that returns whether it wants log lines."""
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

    def subscribe(self, on_batch: OnBatch, wants_lines: Callable[[], bool] = lambda: True) -> Callable[[], None]:
        """Call `on_batch` with every batch from now on. Returns a function that unsubscribes it.

        `wants_lines`: returns False while it does not need the log lines of a batch, which may then be missing.
        """
        self._subscribers[on_batch] = wants_lines

        def unsubscribe() -> None:
            self._subscribers.pop(on_batch, None)

        return unsubscribe

    def wants_lines(self) -> bool:
        """True if a subscriber needs log lines now."""
        return any(wants_lines() for wants_lines in self._subscribers.values())

    def _deliver(self, batch: Batch) -> None:
        """Pass a batch to every subscriber. Called by the publisher, after the published jobs were changed."""
        self.documents.forget(batch.changes)
        self.waiting_ids.wake(batch.changes)
        with self._publishing, ExitStack() as calls:  # All are called even if one raises: only then is that raised.
            for on_batch in reversed(self._subscribers):
                calls.callback(on_batch, batch)

    def close(self) -> None:
        """Begin to drain: end every wait for a job."""
        self.draining = True
        self.waiting_ids.wake_all()

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

    async def find(self, name: str, shows: Shows | None = None) -> tuple[PublishedJob, Resolved] | None:
        """Return the newest job that `name` names, from memory or from the database; None if there is none.

        Of a job that the client must not see (`shows`) nothing is found, in the way of an ID that no job has.

        Raises: `SourceUnavailable` if only the database could answer, and it does not.
        """
        certain = _seen(self.find_certain(name), shows)
        if certain is not None or self.archive is None:
            return certain
        known = _seen(self.find_now(name), shows)
        try:
            # For a known job, the query only checks whether the database has a newer one with the same ID.
            async with asyncio.timeout(KNOWN_WITHIN if known is not None else None):
                other = await self._search(name)
        except (SourceUnavailable, TimeoutError):
            if known is not None:
                return _seen(self.find_now(name), shows) or known
            raise
        known = _seen(self.find_now(name), shows)
        if known is None or (other is not None and other[0].view.age_key > known[0].view.age_key):
            return _seen(other, shows)
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

    async def appearance(
        self, name: str, within: float, shows: Shows | None = None
    ) -> tuple[PublishedJob, Resolved] | None:
        """Wait for a job in memory that `name` names, and that the client may see (`shows`).

        None after `within` seconds, or if the process drains.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        with self.waiting_ids.watched_id(name):
            while (
                (found := _seen(self.find_now(name), shows)) is None
                and not self.draining
                and (left := until - loop.time()) > 0
            ):
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


def _seen(found: tuple[PublishedJob, Resolved] | None, shows: Shows | None) -> tuple[PublishedJob, Resolved] | None:
    return found if found is None or shows is None or shows(found[0]) else None


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
