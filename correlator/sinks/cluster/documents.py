"""The documents of the jobs in memory, on their way into the stream `KV_cor`.

A document is state: only the newest one counts. So `DirtyKeys` has the IDs of the jobs whose newest document the stream
may not have, and no document: a cluster that is away for a day costs one set of IDs, and a job that changed a thousand
times meanwhile is written once. `next_batch` makes a batch from the keys that are dirty, with each
document as it is at that moment. Making one takes several steps of the event loop, so that no call blocks it for long.

Invariant: a key is clean only after the stream has acknowledged a document that was made after the last mark. One
batch is in flight at a time; a batch without an acknowledgement may or may not have been stored, so its keys are dirty
again.

The value of a job's key is its document without `rev`, in at most `MAX_VALUE` bytes: the position of a message in the
stream is the revision of its document, so a gateway adds it. A message of NATS has a limit, and a gateway keeps every
document in memory, so a larger document is cut: first its metadata, then its errors, then its children, then its oldest
steps. Each cut shows in the document, as docs/protocol.md describes. A cut document is still one that `encoding` makes,
so that a gateway can read it back.

Memory follows the database, so it is right where memory and stream differ. `repair` reads the stream in slices while
both change: a job that is marked while the comparison runs is written anyway, and is not compared
(`DirtyKeys.begin_comparison`). What differs is written again, and is counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from msgspec import UNSET
from msgspec.structs import replace

from correlator.bounded import BoundedDict, chunks
from correlator.cluster import keys
from correlator.cluster.connection import Connection
from correlator.cluster.fence import StreamMessage
from correlator.cluster.growth import MAX_GROWTH, MAX_PAGE
from correlator.cluster.received import UNWRITTEN_AFTER
from correlator.cluster.stream_reader import StreamReader
from correlator.cluster.streams import MARKER_TTL
from correlator.jobs import encoding, joblog, sizes
from correlator.jobs.directory import JobDirectory, place_of
from correlator.model.encoder import encode_document
from correlator.model.published import Change, PublishedJob, Reason
from correlator.model.rows import StepRecord
from correlator.ops import cluster_metrics
from correlator.ops.event_loop import timed
from correlator.sinks.cluster.growing import GrowingJobs

log = logging.getLogger(__name__)

MAX_VALUE = 256_000
"""Bytes of a document in the stream."""

HEADERS = 2_000
"""Bytes of a message besides its payload, at most."""

MARGIN = 4_000
"""Bytes that a cut removes beyond the excess, for the marks that it leaves."""

KEPT_CHILDREN = 100
"""The number of children that a document names which is too large: the newest."""

MIN_STEP = 100
"""A step has at least this many bytes."""


def value_limit(max_payload: int) -> int:
    """Bytes of a value in a message of a server that accepts `max_payload` bytes."""
    return min(MAX_VALUE, max_payload - HEADERS)


def encode(shown: PublishedJob, limit: int = MAX_VALUE) -> bytes:
    """Return the value of a job's key, at most `limit` bytes. Raises: `ValueError` if it cannot be cut so far."""
    if len(shown.view.steps) * MIN_STEP > limit:  # Do not encode ten thousand steps to find that they are too many.
        shown = _with_newest_steps(shown, limit // MIN_STEP)
    value = _encoded(shown)
    for cut in (_cut_metadata, _cut_errors, _cut_children, _cut_steps):
        if len(value) <= limit:
            return value
        shown = cut(shown, len(value) - limit + MARGIN)
        value = _encoded(shown)
    if len(value) > limit:
        raise ValueError(f"a document of {len(value)} bytes cannot be cut to {limit}")
    return value


def _encoded(shown: PublishedJob) -> bytes:
    return encode_document(replace(encoding.document(shown), rev=UNSET))


def _cut_metadata(shown: PublishedJob, excess: int) -> PublishedJob:
    """Drop the largest members of the metadata, together at least `excess` bytes, or all that need not be kept."""
    metadata = joblog.metadata_object(shown.view.metadata) or {}
    earlier = metadata.pop(sizes.CUT, None)
    missing = {n: size for n, size in earlier.items() if isinstance(size, int)} if isinstance(earlier, dict) else {}
    rest = missing.pop(sizes.REST, 0)
    members = [(name, encoding.encode(value).decode()) for name, value in metadata.items()]
    largest_first = sorted(members, key=lambda member: len(member[1]), reverse=True)
    room = max(0, sum(sizes.size(name) + sizes.size(text) for name, text in members) - excess)
    text = sizes.cut_object(reversed(largest_first), missing, sizes.Sizes().keep, room, rest)
    return replace(shown, view=replace(shown.view, metadata=text))


def _cut_errors(shown: PublishedJob, _: int) -> PublishedJob:
    view = replace(shown.view, steps=tuple(map(_with_short_error, shown.view.steps)))
    if view.error is not None:
        error, full = sizes.cut_text(view.error, sizes.MAX_ERROR)
        if full is not None:
            view = replace(view, error=error, error_cut=view.error_cut or full)
    return replace(shown, view=view)


def _with_short_error(step: StepRecord) -> StepRecord:
    if step.error_message is None:
        return step
    error, full = sizes.cut_text(step.error_message, sizes.SHORT_ERROR)
    return step if full is None else replace(step, error_message=error, error_cut=step.error_cut or full)


def _cut_children(shown: PublishedJob, _: int) -> PublishedJob:
    return replace(shown, children=shown.children[-KEPT_CHILDREN:])


def _cut_steps(shown: PublishedJob, excess: int) -> PublishedJob:
    """Leave out the oldest steps, together at least `excess` bytes."""
    kept = len(shown.view.steps)
    for step in encoding.document(shown).steps.values():
        if excess <= 0:
            break
        excess -= len(encode_document(step))
        kept -= 1
    return _with_newest_steps(shown, kept)


def _with_newest_steps(shown: PublishedJob, count: int) -> PublishedJob:
    steps = shown.view.steps
    view = replace(shown.view, steps=steps[len(steps) - count :])
    return replace(shown, view=view, steps_cut=shown.steps_cut or len(steps))


# -- the documents to write


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

    unwritten_after: float = UNWRITTEN_AFTER
    """Until a change that the cluster does not have is a problem."""

    marker_ttl: float = MARKER_TTL
    """For which the stream keeps the marker of a removed job."""


DEFAULT = ClusterTimings()


MAX_KEYS = 256
FULL_AT = 256_000
"""A batch is complete with so many keys, or from this number of bytes on, or that of the window of the connection: one
more document may be in it."""


AT_ONCE = 32
"""Documents that are made in one step."""


REASON_HEADER = "Cor-Reason"


MAX_REMOVED = 20_000
"""Maximum number of jobs that left memory and that the stream still has. The next comparison finds the others."""


async def next_batch(
    connection: Connection,
    instance: str,
    published: JobDirectory,
    dirty: DirtyKeys,
    growing: GrowingJobs,
    marker_ttl: float = MARKER_TTL,
) -> list[StreamMessage]:
    """Return the next batch, whose keys are in flight from now on. Empty if there is nothing to write.

    `marker_ttl`: seconds for which the stream keeps the marker of a removed job.
    """
    purge = {"KV-Operation": "PURGE", "Nats-TTL": f"{marker_ttl:.0f}s"}
    batch: list[StreamMessage] = []
    pages: dict[int, None] = {}
    size, limit = 0, value_limit(connection.client.max_payload)
    full_at = min(FULL_AT, connection.window.share)
    for rested in growing.rested():
        dirty.mark(rested)
    while len(batch) < MAX_KEYS and size < full_at:
        with timed("cluster batch"):
            for _ in range(min(AT_ONCE, MAX_KEYS - len(batch))):
                job_id = dirty.pop_next() if size < full_at else None
                if job_id is None:
                    size = full_at
                    break
                shown = published.get(job_id)
                if shown is not None and limit >= MAX_PAGE and (page := growing.grow(shown)) is not None:
                    if page not in pages:
                        pages[page] = None
                        _take_along(page, published, dirty, growing)
                        size += len(growing.payload(page))
                    size += MAX_GROWTH
                    continue
                try:
                    value = encode(shown, limit) if shown is not None else b""
                except ValueError as error:
                    cluster_metrics.REFUSED.inc()
                    log.warning("the job %s is not in the cluster: %s", job_id, error)
                    continue
                growing.replace(job_id, shown, value)
                headers: dict[str, str] = {**purge, REASON_HEADER: dirty.removal(job_id)} if shown is None else {}
                batch.append(StreamMessage(keys.job(instance, job_id), value, headers))
                size += len(value)
        await asyncio.sleep(0)
    pages |= dict.fromkeys(growing.emptied())
    return [*batch, *(StreamMessage(keys.growth(instance, page), growing.payload(page), {}) for page in pages)]


def _take_along(page: int, published: JobDirectory, dirty: DirtyKeys, growing: GrowingJobs) -> None:
    """Write what else has grown on a page, though it is not due yet: from now on its jobs are due together."""
    for job_id in growing.jobs(page):
        if (shown := published.get(job_id)) is not None and growing.can_grow(shown) and dirty.take(job_id):
            growing.grow(shown)


PAST_TURN = 4
"""Of so many keys, one is of the past while others wait too."""

GOES_ON_EVERY = 1.0
"""Least seconds between two documents of a job that only goes on."""

DUE_TOGETHER = 0.05
"""Seconds for which documents that become due one after the other wait for each other."""

Urgency: TypeAlias = Literal["now", "goes on", "past"]


def urgency(change: Change) -> Urgency:
    """How soon a change has to be written: at once, unless the job only goes on, or had ended before.

    A warning or an error is written at once. A job that had ended before changes while the log's past is read, all of
    them at a first start.
    """
    old, new = change.old, change.new
    if old is None or new is None:
        return "now"
    if change.goes_on:
        quiet = (new.view.warnings, new.view.errors) == (old.view.warnings, old.view.errors)
        return "goes on" if quiet else "now"
    return "past" if old.view.terminal and new.view.terminal else "now"


class DirtyKeys:
    """The keys to write, in queues by their urgency.

    What changes now does not wait for 20,000 documents of the past: of `PAST_TURN` keys of a batch only one is of the
    past, so changes that never end do not starve those either. What a comparison found to differ counts as past. A job
    that only goes on, because its log has new rows, is written again after `spacing` seconds: rows that come in the
    meantime cost nothing. `clock`: returns seconds. Use it from one event loop only.

    Each queue is in the order of its times, so that the oldest key is the first of one.
    """

    def __init__(
        self, clock: Callable[[], float], *, max_removed: int = MAX_REMOVED, spacing: float = GOES_ON_EVERY
    ) -> None:
        self._clock = clock
        self._spacing = spacing
        self._now: OrderedDict[str, float] = OrderedDict()
        """Keys to write at once, by the time of the first mark that is not acknowledged."""
        self._past: OrderedDict[str, float] = OrderedDict()
        self._paced: dict[str, None] = {}
        """Keys of jobs that only went on since they were written, less than `spacing` ago."""
        self._written: OrderedDict[str, float] = OrderedDict()
        """Keys that were written less than `spacing` ago, by the time of that."""
        self._removed: BoundedDict[str, Reason] = BoundedDict(max_removed)
        """Why each job left whose removal is not acknowledged."""
        self._in_flight: dict[str, tuple[float, OrderedDict[str, float]]] = {}
        """With the queue that each was in."""
        self._served = 0
        self._touched: set[str] | None = None
        self.incomplete = False
        """True if a removed job was dropped. Only a comparison finds it in the stream; it sets this to False."""

    def note(self, change: Change) -> None:
        """Mark the job of a change, unless its document is the same."""
        if change.new is None:
            self.mark_removed(change.job_id, change.reason or "gone")
        elif not change.moved:
            self.mark(change.job_id, urgency(change))

    def mark(self, job_id: str, urgency: Urgency = "now") -> None:
        """The document of a job has changed."""
        self._removed.pop(job_id, None)
        self._mark(job_id, urgency)

    def mark_removed(self, job_id: str, reason: Reason) -> None:
        """A job has left memory."""
        self._mark(job_id, "now")
        if (evicted := self._removed.put(job_id, reason)) is not None:
            self._now.pop(evicted[0], None)
            self._past.pop(evicted[0], None)
            self.incomplete = True

    def add(self, job_ids: Iterable[str]) -> None:
        """Add jobs whose document in the stream differs from that in memory."""
        now = self._clock()
        for job_id in job_ids:
            if not self._is_dirty(job_id):
                self._past[job_id] = now

    def pop_next(self) -> str | None:
        """Move the next key that is due into the batch in flight. None if there is none."""
        self._release()
        self._served += 1
        queue = (self._past or self._now) if self._served % PAST_TURN == 0 else (self._now or self._past)
        if not queue:
            return None
        job_id, since = queue.popitem(last=False)
        self._put_in_flight(job_id, since, queue)
        return job_id

    def take(self, job_id: str) -> bool:
        """Move this key into the batch in flight, even if it is not due. False if it is clean, or of the past."""
        if (since := self._now.pop(job_id, None)) is None:
            if job_id not in self._paced:
                return False
            del self._paced[job_id]
            since = self._clock()
        self._put_in_flight(job_id, since, self._now)
        return True

    def due_in(self) -> float | None:
        """Return the seconds until a key is due; 0: one is. None if there is nothing to write."""
        self._release()
        if self._now or self._past:
            return 0.0
        if not self._paced:
            return None
        return max(DUE_TOGETHER, next(iter(self._written.values())) + self._spacing - self._clock())

    def hurry(self) -> None:
        """Write all that is dirty at once, from now on: the process stops."""
        self._spacing = 0.0
        self._release()

    def removal(self, job_id: str) -> Reason:
        """Why a job left memory. A job of which nothing is known is gone: an earlier run has written it."""
        return self._removed.get(job_id, "gone")

    def acknowledged(self) -> None:
        """The stream has stored the batch in flight."""
        for job_id in self._in_flight:
            if not self._is_dirty(job_id):
                self._removed.pop(job_id, None)
        self._in_flight.clear()

    def unacknowledged(self) -> None:
        """The stream may not have stored the batch in flight: its keys are dirty again, before all others."""
        for job_id, (since, queue) in reversed(self._in_flight.items()):
            if job_id in self._now:
                queue = self._now  # noqa: PLW2901 - it has changed meanwhile
            self._past.pop(job_id, None)
            self._paced.pop(job_id, None)
            queue[job_id] = since
            queue.move_to_end(job_id, last=False)
        self._in_flight.clear()

    def begin_comparison(self) -> set[str]:
        """Begin to compare memory with the stream.

        Returns the keys that must not be compared: those that are dirty, in flight, or marked until `end_comparison`.
        The set grows meanwhile.
        """
        self._touched = {*self._now, *self._past, *self._paced, *self._in_flight}
        return self._touched

    def end_comparison(self) -> None:
        """End the comparison: marks are no longer noted for it."""
        self._touched = None

    def oldest(self) -> float | None:
        """Return the clock time since which the oldest key could have been written. None if none could."""
        firsts = [next(iter(queue.values())) for queue in (self._now, self._past) if queue]
        return min([*firsts, *(since for since, _ in self._in_flight.values())], default=None)

    def __len__(self) -> int:
        """Number of keys that are not clean."""
        dirty = len(self._now) + len(self._past) + len(self._paced)
        return dirty + sum(not self._is_dirty(job_id) for job_id in self._in_flight)

    def _put_in_flight(self, job_id: str, since: float, queue: OrderedDict[str, float]) -> None:
        self._in_flight[job_id] = since, queue
        self._written[job_id] = self._clock()
        self._written.move_to_end(job_id)

    def _is_dirty(self, job_id: str) -> bool:
        return job_id in self._now or job_id in self._past or job_id in self._paced

    def _mark(self, job_id: str, urgency: Urgency) -> None:
        if self._touched is not None:
            self._touched.add(job_id)
        if job_id in self._now:
            return
        if urgency == "past" and job_id not in self._paced:
            self._past.setdefault(job_id, self._clock())
            return
        self._release()
        self._past.pop(job_id, None)
        if urgency == "goes on" and job_id in self._written:
            self._paced[job_id] = None
        else:
            self._paced.pop(job_id, None)
            self._now[job_id] = self._clock()

    def _release(self) -> None:
        """Make the paced keys due that were written `spacing` seconds ago. Each key costs a step once."""
        now = self._clock()
        while self._written and next(iter(self._written.values())) + self._spacing <= now:
            job_id, _ = self._written.popitem(last=False)
            if job_id in self._paced:
                del self._paced[job_id]
                self._now[job_id] = now


# -- the comparison of memory with the stream


SLICE = 200
"""Messages of one slice of the stream."""


COMPARED_AT_ONCE = 100
"""Documents that are made and compared in one step: a few milliseconds."""


async def repair(
    connection: Connection,
    instance: str,
    published: JobDirectory,
    dirty: DirtyKeys,
    growing: GrowingJobs,
    timings: ClusterTimings,
    *,
    periodic: bool,
    beat: Callable[[], None],
) -> int:
    """Compare all jobs in memory with the stream once, and add what differs to the dirty keys.

    Returns the number of differences. `periodic`: there should be none, so take time, and read each difference again
    before it counts: a server that is behind may have answered. Raises: `ClusterUnavailable`, `Refused`.
    """
    limit = value_limit(connection.client.max_payload)
    dirty.incomplete = False
    touched = dirty.begin_comparison()
    touched.update(growing)
    comparison = StreamComparison(published, touched, limit)
    differing: list[str] = []
    found: list[str] = []
    try:
        async for stored in slices(connection, instance):
            for part in chunks(stored, COMPARED_AT_ONCE):
                with timed("cluster comparison"):
                    differing += comparison.differing(part)
                await asyncio.sleep(0)
            beat()
            await asyncio.sleep(timings.slice_pause if periodic else 0)
        for some in comparison.to_write(differing):
            found += some
            await asyncio.sleep(0)
        if periodic and found:
            await asyncio.sleep(timings.behind_within)
            suspected, found = found, []
            for job_id in suspected:
                last = await connection.last(keys.STATE, keys.job(instance, job_id), within=timings.answer_within)
                again = StoredValue(job_id, None) if last is None else _stored(job_id, last.data, last.headers)
                found += comparison.differing([again])
                beat()
        if not growing.is_enabled:
            found += await _continued(connection, instance, published, growing)
        dirty.add(found)
    except BaseException:
        dirty.incomplete = True
        raise
    finally:
        dirty.end_comparison()
    return len(found)


async def _continued(connection: Connection, instance: str, published: JobDirectory, growing: GrowingJobs) -> list[str]:
    """Return the jobs of which the stream has growth of another run, whatever their documents are."""
    found: dict[str, None] = {}
    async for message in StreamReader(connection, keys.STATE, keys.growths(instance)).messages():
        if (page := keys.growth_of((message.headers or {})["Nats-Subject"])) is not None:
            found |= dict.fromkeys(growing.found(page[1], message.data, published))
    return list(found)


class StoredValue(NamedTuple):
    """The newest message of a key. `value` None: a marker of a removed job."""

    job_id: str
    value: bytes | None


class StreamComparison:
    """One comparison, without the jobs in `touched`, which grows while it runs. `limit`: bytes of a document."""

    def __init__(self, published: JobDirectory, touched: set[str], limit: int = MAX_VALUE) -> None:
        self._published = published
        self._touched = touched
        self._limit = limit
        self._seen: set[str] = set()

    def differing(self, stored: Sequence[StoredValue]) -> list[str]:
        """Return those keys of a slice of the stream that differ from memory. At most `COMPARED_AT_ONCE` per call."""
        found = []
        for job_id, value in stored:
            if job_id in self._touched:
                continue
            shown = self._published.get(job_id)
            if shown is None:
                if value is not None:
                    found.append(job_id)
                continue
            self._seen.add(job_id)
            if value is None or value != encode(shown, self._limit):
                found.append(job_id)
        return found

    def to_write(self, differing: Iterable[str]) -> Iterator[list[str]]:
        """Yield, in steps, these keys and those of which the stream has nothing, in the order to write them.

        Jobs that have not ended come first, then the others, each the newest first. Call it after the last slice.
        """
        rest, ended = dict.fromkeys(differing), list[str]()
        page = self._published.newest(None, 5 * COMPARED_AT_ONCE)
        while page:
            found: list[str] = []
            for shown in page:
                job_id = shown.job_id
                if job_id in rest or (job_id not in self._seen and job_id not in self._touched):
                    rest.pop(job_id, None)
                    (ended if shown.view.terminal else found).append(job_id)
            before = place_of(page[-1])
            yield found
            page = self._published.newest(before, 5 * COMPARED_AT_ONCE)
        yield [*ended, *rest]  # The rest has left memory.


async def slices(connection: Connection, instance: str) -> AsyncIterator[list[StoredValue]]:
    """Yield the newest message of each job of `instance`, in the order of the stream. Raises: as `StreamReader`."""
    slice_: list[StoredValue] = []
    async for message in StreamReader(connection, keys.STATE, keys.jobs(instance)).messages():
        headers = message.headers or {}
        if (job := keys.job_of(headers["Nats-Subject"])) is not None:
            slice_.append(_stored(job[1], message.data, headers))
        if len(slice_) == SLICE:
            yield slice_
            slice_ = []
    yield slice_


def _stored(job_id: str, payload: bytes, headers: dict[str, str] | None) -> StoredValue:
    removed = headers is not None and ("KV-Operation" in headers or "Nats-Marker-Reason" in headers)
    return StoredValue(job_id, None if removed else payload)
