"""The cluster sink: keeps the documents of one instance in JetStream equal to memory, and publishes events and lines.

Problem. The cluster may be slow or away, and the hub must not wait for it. Another collector may hold the lease in the
meantime, and then nothing of this one may be stored.

Model. `on_batch` only marks what has changed (`DirtyKeys`, `EventQueue`, `LineQueue`). Each of three tasks writes one
of them, one batch at a time: documents and events in batches that NATS refuses unless this process owns the instance
(`OwnedStream`), lines without an acknowledgement. A fourth task compares memory with the stream, once the database has
been read and then every ten minutes, and marks what differs (`repair`).

Invariants. What the stream has not acknowledged counts as not written. After the first refusal by the fence the sink
writes nothing more and calls `on_lost` once. Every wait has a deadline.

The epoch of the cluster is a random text that changes when positions in the stream lose their meaning. A client resumes
from (epoch, sequence). Sequences start again if the stream is deleted and created again, and they go back if it is
restored from a backup or loses acknowledged messages in a crash. A collector remembers the epoch, when the stream was
created, the highest sequence that was acknowledged, and one document with its sequence, as other instances may have
written past a loss; if these do not agree with the stream, it writes a new epoch, and gateways send their clients a new
snapshot. All instances share the key: the first collector that finds the old epoch replaces it by compare-and-set, and
the others find the new one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from correlator import __version__
from correlator.cluster import keys, received, streams
from correlator.cluster.connection import (
    ClusterUnavailable,
    Connection,
    Fenced,
    Refused,
    Unacknowledged,
    kind_of,
    seq_of,
)
from correlator.cluster.fence import Fence, OwnedStream, StreamMessage, put
from correlator.jobs import encoding
from correlator.jobs.directory import JobDirectory
from correlator.model.rows import Micros
from correlator.ops import cluster_metrics
from correlator.ops.event_loop import timed
from correlator.ops.outage import Outage
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.cluster.documents import DEFAULT, ClusterTimings, DirtyKeys, next_batch, repair
from correlator.sinks.cluster.events import MAX_EVENTS, EventQueue, EventWriter, stream_event
from correlator.sinks.cluster.growing import GrowingJobs
from correlator.sinks.cluster.log_lines import LineQueue
from correlator.sinks.event_log import EventLog
from correlator.tasks import Backoff, end_tasks, set_within

log = logging.getLogger(__name__)

BEHIND_READS, READ_AGAIN_AFTER = 8, 0.25
"""Reads of a document that may have an old answer, and seconds between two: no server is longer behind."""


class Position(Struct, frozen=True):
    """What a collector remembers of the stream, also across restarts. `acknowledged`: the highest sequence.

    `subject`: of a document of this instance that was acknowledged with sequence `seq`; "" if none is known.
    """

    epoch: str
    created: str
    acknowledged: int
    subject: str = ""
    seq: int = 0

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def after(self, messages: Sequence[StreamMessage], seq: int) -> Position:
        """The position after `messages` were acknowledged, the last one with sequence `seq`."""
        if seq <= self.acknowledged:
            return replace(self, created="")  # The stream has gone back: the next check finds that it is not this one.
        if messages[-1].payload:
            return replace(self, acknowledged=seq, subject=messages[-1].subject, seq=seq)
        removed = any(message.subject == self.subject for message in messages)
        return replace(self, acknowledged=seq, subject="" if removed else self.subject)


def decode_position(value: bytes | None, instance: str) -> Position | None:
    """Return what was encoded, or None if there is nothing that can be read.

    The subject of another instance would be asked for again and again, in vain: this one may not read it.
    """
    try:
        found = msgspec.msgpack.decode(value, type=Position) if value is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if found is None or not found.subject:
        return found
    place = keys.job_of(found.subject) or keys.growth_of(found.subject)
    return found if place is not None and place[0] == instance else None


async def _has_gone_back(connection: Connection, known: Position, created: str, last_seq: int, within: float) -> bool:
    """True if the stream with this state is not the one that `known` describes, or lacks its document."""
    if created != known.created or last_seq < known.acknowledged:
        return True
    if not known.subject:
        return False
    for _ in range(BEHIND_READS):
        found = await connection.last(keys.STATE, known.subject, within=within)
        if found is not None and seq_of(found) >= known.seq:
            return False
        await asyncio.sleep(READ_AGAIN_AFTER)
    return True


class Checked(NamedTuple):
    """The state of the stream. `replaced`: a new epoch was written. `replicas`: the servers that keep the stream."""

    position: Position
    replaced: bool
    replicas: int


async def checked_epoch(connection: Connection, known: Position | None, within: float) -> Checked:
    """Create the epoch if there is none that can be read, replace it if the stream has gone back.

    Raises: `Fenced` if the stream does not exist,
    `Unacknowledged`, `Refused`.
    """
    info = await streams.info(connection, keys.STATE)
    if info is None:
        raise Fenced(f"the stream {keys.STATE} does not exist")
    replicas = int(info["config"]["num_replicas"])
    created, last_seq = str(info["created"]), int(info["state"]["last_seq"])
    found = await connection.last(keys.STATE, keys.EPOCH, within=within)
    epoch = None
    if found is not None:
        epoch = connection.parser.parse(keys.EPOCH, partial(received.epoch, found.data))
    if epoch is not None:
        if known is None or known.epoch != epoch:
            return Checked(Position(epoch, created, 0), replaced=False, replicas=replicas)
        if not await _has_gone_back(connection, known, created, last_seq, within):
            return Checked(known, replaced=False, replicas=replicas)
    epoch = secrets.token_hex(6)
    try:
        await put(connection, keys.EPOCH, epoch.encode(), expected=seq_of(found), within=within)
    except Fenced as error:  # Another collector was faster: read it again.
        raise Unacknowledged(str(error)) from error
    return Checked(Position(epoch, created, 0), replaced=True, replicas=replicas)


# -- sink


STUCK_AFTER = 90.0
"""Seconds without a heartbeat after which a task counts as stuck: more than all deadlines of one step together."""


BEAT = 1.0
"""Seconds that a task waits for work before it beats."""


DUE_NOW = 0.0
"""Monotonic time of a comparison that waits neither for the database nor for its turn: the one after a new epoch."""


Step: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]
"""One step of a task. It calls its argument to beat while it waits."""


class ClusterSink:
    """Satisfies `correlator.sinks.Sink`. Use it from one event loop only, while this process holds the lease.

    `fence`: of the lease of `instance`. `on_lost`: called with a sentence when the fence refuses a write.
    `log_read_to`: returns the time up to which the log has been read. `event_log`: has its pending events, also those
    of the last run of a collector of this instance; `position`: what the method of this name returned then.
    `max_events`: how many may wait.
    """

    def __init__(
        self,
        instance: str,
        fence: Fence,
        on_lost: Callable[[str], None],
        log_read_to: Callable[[], Micros],
        event_log: EventLog,
        *,
        position: bytes | None = None,
        timings: ClusterTimings = DEFAULT,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self._connection = fence.connection
        self._instance = instance
        self._fence = fence
        self._on_lost = on_lost
        self._log_read_to = log_read_to
        self._timings = timings
        rewrite = timings.rewrite_owner_every
        self._stream = OwnedStream(fence, rewrite)
        self._dirty = DirtyKeys(time.monotonic)
        self._growing = GrowingJobs(time.monotonic)
        self._events = EventQueue(event_log, time.monotonic, max_events=max_events)
        self._event_writer = EventWriter(
            instance, fence, self._events, within=timings.answer_within, rewrite_every=rewrite
        )
        self._lines = LineQueue()
        self._position = decode_position(position, instance)
        self._checked: int | None = None
        """The generation of the connection for which the epoch has been checked."""
        self._check_at = 0.0
        """Monotonic time of the next check."""
        self._compare_at: float | None = None
        """Monotonic time of the next comparison. None: the first, once the database has been read; `DUE_NOW`: now."""
        self._writing = False
        """True once the jobs in memory are those to be written: marks are noted from then on."""
        self._acknowledged_at: float | None = None
        self._outage = Outage()
        self._errors: dict[str, str] = {}
        """The last error of each task that has not succeeded since."""
        self._work = asyncio.Event()
        self._lines_arrived = asyncio.Event()

    def position(self) -> bytes | None:
        """Return what the next run has to know of the position in the stream, for the checkpoint."""
        return None if self._position is None else self._position.encode()

    def describe(self) -> dict[str, Any]:
        """Return the members of the part of readiness that describe the writer; an error only if there is one."""
        age = None if self._acknowledged_at is None else round(time.monotonic() - self._acknowledged_at, 3)
        unwritten = self.unwritten()
        part = {
            "pending": len(self._dirty) + len(self._events),
            "acknowledged_seconds_ago": age,
            "unwritten_seconds": unwritten["unwritten_seconds"],
        }
        reason = unwritten["write_error"]
        if self._age() >= self._timings.unwritten_after:
            reason = f"changes of the last {self._age():.0f} s are not in the cluster: {reason or 'it is slow'}"
        return part if reason is None else {**part, "ok": False, "error": reason}

    def unwritten(self) -> dict[str, Any]:
        """Return the members of the alive key that say how old the oldest change is which the cluster does not have."""
        return {
            "unwritten_seconds": round(self._age(), 3),
            "write_error": next(iter(self._errors.values()), None),
        }

    async def run(self, hub: Hub) -> None:
        """Write until cancelled, then what is still pending, within some seconds."""
        cluster_metrics.PENDING.set_function(lambda: len(self._dirty) + len(self._events))
        cluster_metrics.QUEUE_AGE.set_function(self._age)
        unsubscribe = hub.subscribe(self._on_batch)
        tasks: set[asyncio.Task[None]] = set()
        try:
            with hub.live.heartbeat("cluster", STUCK_AFTER) as beat:
                while hub.status.loading:  # What is loaded before it is complete may be older than the stream.
                    beat()
                    await asyncio.sleep(0.1)
            self._writing = True
            tasks = self._start(hub)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()  # Raises what ended it.
        except Fenced as error:
            self._writing = False
            await _end(tasks)
            log.warning("this process has lost the instance %s: %s", self._instance, error)
            self._on_lost(str(error))
            await asyncio.Event().wait()  # Until cancelled: the holder of the lease decides what follows.
        except asyncio.CancelledError:
            await self._flush(tasks)
            raise
        finally:
            unsubscribe()
            await _end(tasks)
            for gauge in (cluster_metrics.PENDING, cluster_metrics.QUEUE_AGE):  # What is left is its successor's.
                gauge.set_function(lambda: 0.0)

    def _start(self, hub: Hub) -> set[asyncio.Task[None]]:
        began = hub.clock()
        steps: dict[str, Step] = {
            "documents": lambda _: self._write_documents(hub.published),
            "events": lambda _: self._write_events(),
            "comparison": lambda beat: self._compare(hub.published, began, beat),
            "lines": lambda _: self._send_lines(),
        }
        return {
            asyncio.create_task(self._repeat(hub, name, step), name=f"cluster {name}") for name, step in steps.items()
        }

    # -- what the hub publishes

    def _on_batch(self, batch: Batch) -> None:
        with timed("cluster batch"):
            if self._writing:  # The first comparison finds earlier changes.
                for change in batch.changes:
                    self._dirty.note(change)
            for event in batch.events:
                dropped = self._events.add(stream_event(event, self._instance))
                cluster_metrics.EVENTS_DROPPED.inc(dropped)
            cluster_metrics.LINES_DROPPED.inc(self._lines.add(batch.lines))
        self._work.set()
        self._lines_arrived.set()

    # -- the tasks

    async def _repeat(self, hub: Hub, name: str, step: Step) -> None:
        """Call `step` again and again; after an error of the cluster wait a moment. Raises: `Fenced`."""
        backoff = Backoff()
        with hub.live.heartbeat(f"cluster {name}", STUCK_AFTER) as beat:
            while True:
                beat()
                try:
                    await step(beat)
                except (ClusterUnavailable, Refused) as error:
                    if isinstance(error, Fenced) and await self._is_lost():
                        raise
                    self._failed(name, error)
                    await asyncio.sleep(backoff.next())
                else:
                    backoff.reset()
                    self._errors.pop(name, None)
                    if not self._errors:
                        self._outage.end()

    async def _is_lost(self) -> bool:
        """True if another process holds the lease. Without any owner NATS has lost the key: the lease decides."""
        try:
            await self._fence.verify(within=self._timings.answer_within)
        except Fenced:
            return True
        except (ClusterUnavailable, Refused):
            return False
        return False

    async def _write_documents(self, published: JobDirectory) -> None:
        """Write one batch of documents, after checking the epoch: on a new connection, and every few seconds."""
        if self._checked != self._connection.generation or time.monotonic() >= self._check_at:
            await self._check_epoch()
        await self._wait(self._work, self._dirty.due_in)
        try:
            messages = await next_batch(
                self._connection, self._instance, published, self._dirty, self._growing, self._timings.marker_ttl
            )
            if messages:
                self._written(await self._stream.write(messages, self._timings.answer_within), messages)
        except BaseException:
            self._dirty.unacknowledged()
            self._growing.unacknowledged()
            raise
        self._dirty.acknowledged()
        self._growing.acknowledged()

    async def _check_epoch(self) -> None:
        generation, known = self._connection.generation, self._position
        checked = await checked_epoch(self._connection, known, self._timings.answer_within)
        self._position, replaced = checked.position, checked.replaced
        self._stream.replicated = checked.replicas > 1
        self._checked = generation
        self._check_at = time.monotonic() + self._timings.epoch_checked_every
        if known is not None and replaced:
            log.warning("the stream %s has lost what was acknowledged; clients start afresh", keys.STATE)
        if replaced or (known is not None and known.epoch != self._position.epoch):
            log.info("the epoch of the cluster is %s", self._position.epoch)
            self._growing.clear()
            self._compare_at = DUE_NOW  # Do not wait for the database: the stream has nothing newer.

    def _written(self, seq: int, messages: Sequence[StreamMessage]) -> None:
        """Note an acknowledged batch that ends at `seq`."""
        assert self._position is not None
        if seq <= self._position.acknowledged:
            self._checked = None
        self._position = self._position.after(messages, seq)
        self._note_acknowledgement()
        cluster_metrics.DOCUMENTS.inc(len(messages))
        cluster_metrics.BATCHES.inc()

    async def _write_events(self) -> None:
        """Write one batch of events."""
        await self._wait(self._work, lambda: 0.0 if len(self._events) else None)
        if len(self._events):
            cluster_metrics.EVENTS.inc(await self._event_writer.step())
            self._note_acknowledgement()
        else:
            await self._event_writer.settle()

    async def _compare(self, published: JobDirectory, began: Micros, beat: Callable[[], None]) -> None:
        """Compare memory with the stream if it is time to. `began`: when the jobs in memory had been loaded."""
        planned, now = self._compare_at, time.monotonic()
        if planned is None:  # The jobs of a checkpoint may be older than the stream.
            due = self._log_read_to() > began
        else:
            due = now >= planned or (self._dirty.incomplete and not len(self._dirty))
        if not due or self._checked is None:
            await asyncio.sleep(0.05 if planned is None else self._timings.due_every)
            return
        periodic = planned not in (None, DUE_NOW)
        count = await repair(
            self._connection,
            self._instance,
            published,
            self._dirty,
            self._growing,
            self._timings,
            periodic=periodic,
            beat=beat,
        )
        if self._compare_at == planned:  # A new epoch found in the meantime asks for another comparison.
            self._growing.enable()
            self._compare_at = time.monotonic() + self._timings.compare_every
        (cluster_metrics.REPAIRED if periodic else cluster_metrics.TAKEOVER_WRITES).inc(count)
        if count:
            level = logging.WARNING if periodic else logging.INFO
            log.log(level, "%d documents in the stream differ from those in memory, and are written again", count)
        self._work.set()

    async def _send_lines(self) -> None:
        """Send the lines that wait, or drop them if the cluster is away."""
        await self._wait(self._lines_arrived, lambda: 0.0 if len(self._lines) else None)
        while waiting := len(self._lines):
            message = self._lines.pop_message()
            try:
                await self._connection.publish(keys.line(self._instance), message)
            except ClusterUnavailable:
                self._lines.clear()
                cluster_metrics.LINES_DROPPED.inc(waiting)
            await asyncio.sleep(0)

    # -- internal

    async def _wait(self, event: asyncio.Event, due_in: Callable[[], float | None]) -> None:
        """Wait until there may be work, but not longer than `BEAT`. `due_in`: see `DirtyKeys`."""
        due = due_in()
        if due == 0:
            return
        event.clear()
        await set_within(event, BEAT if due is None else min(BEAT, due))

    async def _flush(self, tasks: set[asyncio.Task[None]]) -> None:
        """Wait until nothing is pending, but not longer than the time for it."""
        until = time.monotonic() + self._timings.flush_within
        self._dirty.hurry()
        self._work.set()
        while tasks and self._writing and self._connection.connected and time.monotonic() < until:
            if any(task.done() for task in tasks) or (not len(self._dirty) and not len(self._events)):
                return
            await asyncio.sleep(0.01)

    def _age(self) -> float:
        """Return the seconds for which the oldest key or event has been pending."""
        oldest = min((t for t in (self._dirty.oldest(), self._events.oldest()) if t is not None), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def _note_acknowledgement(self) -> None:
        self._acknowledged_at = time.monotonic()
        cluster_metrics.ACKNOWLEDGED.set_to_current_time()

    def _failed(self, name: str, error: Exception) -> None:
        if isinstance(error, Refused):
            cluster_metrics.REFUSED.inc()
        log.log(self._outage.level(kind_of(error)), "the cluster cannot be written: %s; trying again", error)
        self._errors[name] = str(error)


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """End the tasks, and read their exceptions."""
    await end_tasks(tasks, again=1.0)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def alive_report(
    hub: Hub, sink: ClusterSink, started_at: Micros, id_keys: Sequence[str], settings: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the alive key says of the collector to gateways, besides the members of the lease.

    `id_keys`: the members of metadata that hold external IDs; `settings`: those that a standby has to have too.
    """
    database = hub.status.describe_database()
    errors = (hub.readiness[part]().get("error") for part in ("cluster", "checkpoint"))
    return {
        "version": __version__,
        "database": database["state"],
        "error": database["error"],
        "lag_seconds": database["lag_seconds"],
        "jobs": len(hub.published),
        "complete_since": encoding.rfc3339(hub.published.complete_since(hub.clock())),
        "started_at": encoding.rfc3339(started_at),
        "id_keys": list(id_keys),
        "settings": settings,
        **sink.unwritten(),
        "warning": next(filter(None, errors), None),
    }
