"""The topic tree as the index has it, and what of it the broker lacks.

What a retained topic should hold follows from the index at the moment of sending: topics are marked, payloads are built
when they are sent. A job that left the index gets a tombstone: its last state with ``"deleted": true``, then an empty
message that removes the topic. Nothing here does I/O, and times are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, assert_never

from correlator.jobs import job_document
from correlator.jobs.bounded import BoundedDict
from correlator.jobs.directory import JobDirectory
from correlator.jobs.model.changes import Change
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import AgeKey, PublishedJob
from correlator.model.messages import DaemonIndex, DaemonState, DaemonStatus, ExternalId
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Batch
from correlator.sinks.mqtt.outbox import TURNS, Outbox, PendingEvent, PendingEvents, no_clock
from correlator.sinks.mqtt.topics import Key, Message, Topics, parse_state

T = TypeVar("T")

BEGIN_BATCH = 500
"""Maximum number of jobs that one step of `Tree.begin` sorts, and of topics that one adds."""

MAX_TOMBSTONES = 20_000
"""Maximum number of jobs that left and whose topics still exist. The sweep after the next connect finds the others."""


class Parcel(NamedTuple):
    """Messages to send one after the other. `tag` identifies them for `Tree.acknowledged`."""

    tag: Key | int
    messages: tuple[Message, ...]


class Tree:
    """The topics of the index, with an outbox of those that the broker lacks.

    There is no connection before `begin` and after `end`; changes are not marked then. `clock`: returns seconds, the
    same as the clock of `events`. Use it from one event loop only.
    """

    def __init__(
        self,
        topics: Topics,
        published: JobDirectory,
        epoch: str,
        events: PendingEvents,
        clock: Callable[[], float] = no_clock,
    ) -> None:
        self._topics = topics
        self._published = published
        self._epoch = epoch
        self._events = events
        self._outbox = Outbox(clock=clock)
        self._tombstones: BoundedDict[str, tuple[PublishedJob | dict[str, Any], int]] = BoundedDict(MAX_TOMBSTONES)
        self._connected = False
        self._turn = 0

    def on_batch(self, batch: Batch) -> int:
        """Mark the topics that a batch of the hub changes. Returns the number of events that were dropped."""
        for change in batch.changes:
            if change.new is not None:
                self._tombstones.pop(change.job_id, None)
            elif change.old is not None:
                self._tombstones[change.job_id] = change.old, change.seq
            if self._connected:  # `begin` finds earlier changes in the index
                if not change.moved:
                    self._outbox.mark(Key("state", change.job_id))
                for external_id in _affected_external_ids(change):
                    self._outbox.mark(Key("ext", external_id))
        dropped = 0
        for event in batch.events:
            payload = job_document.encode(job_document.event(event, self._epoch, batch.seq))
            dropped += self._events.add(PendingEvent(event.job_id, job_document.compact(payload)))
        return dropped

    def begin(self) -> Iterator[None]:
        """Start a connection: add all topics, the newest jobs first, then those of jobs that left meanwhile.

        A step sorts at most `BEGIN_BATCH` jobs, or adds as many topics. Other tasks may run between two steps; what
        they change is sent too. Do not call `pop_next` before the last step.
        """
        self._outbox.restart()
        self._events.restart()
        self._connected = True
        published = list(self._published.all())
        left = [name if isinstance(last, dict) else last for name, (last, _) in self._tombstones.items()]
        by_age: list[list[tuple[AgeKey, PublishedJob]]] = []
        for batch in _batches(published):
            with timed("mqtt begin"):
                by_age.append(sorted(((job.view.age_key, job) for job in batch), key=itemgetter(0), reverse=True))
            yield
        newest_first = (job for _, job in merge(*by_age, key=itemgetter(0), reverse=True))
        keys = (key for job in chain(newest_first, left) for key in _keys(job))
        more = True
        while more:
            with timed("mqtt begin"):
                part = list(islice(keys, BEGIN_BATCH))
                self._outbox.add(part)
                more = bool(part)
            yield

    def end(self) -> None:
        """End the connection. The next `begin` computes what the broker lacks from the index."""
        self._connected = False
        self._outbox.restart()
        self._events.restart()

    def on_retained(self, topic: str, payload: bytes) -> None:
        """Remove a topic that the broker holds, if an earlier run left it and the index does not have its job."""
        match self._topics.key(topic):
            case Key("state", name) as key if self._published.get(name) is None and name not in self._tombstones:
                self._tombstones[name] = parse_state(payload, name), self._published.seq
                self._outbox.mark(key)
            case Key("ext", name) as key if self._published.owner(name) is None:
                self._outbox.mark(key)

    def pop_next(self, now: float) -> Parcel | None:
        """Dequeue what to send next: an event or a topic alternately; with late changes, one event in `TURNS`.

        `now`: seconds of the clock, must not decrease.
        """
        self._turn = (self._turn + 1) % TURNS
        if self._turn == 0 if self._outbox.is_late(now) else self._turn % 2 == 1:
            return self._pop_event() or self._pop_topic(now)
        return self._pop_topic(now) or self._pop_event()

    def acknowledged(self, tag: Key | int) -> None:
        """The broker has acknowledged every message of the parcel."""
        if isinstance(tag, int):
            self._events.acknowledged(tag)
        elif self._outbox.acknowledged(tag) and tag.kind == "state":
            self._tombstones.pop(tag.name, None)

    def due(self) -> float | None:
        """Return when `pop_next` may have a topic without a new change, or None."""
        return self._outbox.due()

    def oldest(self) -> float | None:
        """Return the clock time since which the oldest pending topic or event waits. None if nothing is pending."""
        return min((t for t in (self._outbox.oldest(), self._events.oldest()) if t is not None), default=None)

    def oldest_change(self) -> float | None:
        """As `oldest`, without topics that are published again over a new connection."""
        return min((t for t in (self._outbox.oldest_change(), self._events.oldest()) if t is not None), default=None)

    @property
    def pending(self) -> int:
        """Number of topics and events that the broker has not acknowledged."""
        return self._outbox.pending + len(self._events)

    def status(self, state: DaemonState, at: Micros) -> Message:
        """Return the message of the daemon's state. `at`: microseconds since the epoch."""
        payload: DaemonStatus = {
            "state": state,
            "epoch": self._epoch,
            "seq": self._published.seq,
            "at": job_document.rfc3339(at),
        }
        return Message(self._topics.status, job_document.encode(payload))

    def index(self) -> Message:
        """Return the message with the epoch, the last seq and the number of jobs."""
        payload: DaemonIndex = {"epoch": self._epoch, "seq": self._published.seq, "count": len(self._published)}
        return Message(self._topics.index, job_document.encode(payload))

    def messages(self, key: Key) -> tuple[Message, ...]:
        """Return the messages after which the topic holds what the index has."""
        match key.kind:
            case "state":
                return self._job(self._topics.of(key), key.name)
            case "ext":
                return (self._external(self._topics.of(key), key.name),)
            case kind:
                assert_never(kind)

    def _external(self, topic: str, name: str) -> Message:
        if (owner := self._published.resolve(name)) is None or self._published.owner(name) is None:
            return Message(topic, b"")
        payload: ExternalId = {"external_id": name, "job_id": owner.job_id}
        return Message(topic, job_document.encode(payload))

    def _job(self, topic: str, job_id: str) -> tuple[Message, ...]:
        if (shown := self._published.get(job_id)) is not None:
            return (Message(topic, self._state(job_document.text(shown), {}, shown.rev), expires=shown.view.terminal),)
        empty = Message(topic, b"")
        if job_id not in self._tombstones:
            return (empty,)
        last, seq = self._tombstones[job_id]
        document = job_document.text(last) if isinstance(last, PublishedJob) else job_document.encode(last)
        return Message(topic, self._state(document, {"deleted": True}, seq)), empty

    def _state(self, document: bytes, more: Mapping[str, Any], seq: int) -> bytes:
        return job_document.extended(document, {**more, "epoch": self._epoch, "seq": seq})

    def _pop_event(self) -> Parcel | None:
        if (popped := self._events.pop_next()) is None:
            return None
        tag, event = popped
        return Parcel(tag, (Message(self._topics.event(event.job_id), event.payload, retain=False),))

    def _pop_topic(self, now: float) -> Parcel | None:
        key = self._outbox.pop_next(now)
        return Parcel(key, self.messages(key)) if key is not None else None


def _batches(jobs: Sequence[T]) -> Iterator[Sequence[T]]:
    return (jobs[at : at + BEGIN_BATCH] for at in range(0, len(jobs), BEGIN_BATCH))


def _keys(shown: PublishedJob | str) -> Iterator[Key]:
    """The topics of a job. Of a job that an earlier run left on the broker only the ID is known."""
    if isinstance(shown, str):
        yield Key("state", shown)
        return
    yield Key("state", shown.job_id)
    for external_id in shown.view.external_ids:
        yield Key("ext", external_id)


def _affected_external_ids(change: Change) -> Iterable[str]:
    """The external IDs whose owner may have changed: the jobs with that ID, or which of them is the newest, changed."""
    old, new = (shown.view if shown is not None else None for shown in (change.old, change.new))
    before, after = (view.external_ids if view is not None else () for view in (old, new))
    if old is None or new is None or change.moved or old.age_key != new.age_key:
        return {*before, *after}
    return () if before == after else set(before) ^ set(after)
