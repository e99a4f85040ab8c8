"""What the broker lacks: topics that differ from the index, and events that it has not acknowledged.

The two differ in what may be lost. A topic holds state: only the newest message counts, so `DirtyTopics` has keys and
no payloads, and memory does not grow with the number of changes. `MqttOutbox` builds the payload from the index when it
is sent. A job that left the index gets a tombstone: its last state with ``"deleted": true``, then an empty message that
removes the topic. Of a topic that an earlier run left, only the name is kept: a broker may hold any number of them, and
anything in them (`MAX_LEFT`). An event is a fact: `MqttEvents` stores each with its payload, in the order of its job,
until the broker has acknowledged it, up to `MAX_EVENTS` and `MAX_BYTES`.

A broker may be too slow for all of them, for hours. Then what is late is chosen: a state that has waited for
`STATES_WITHIN` goes before events, an event of a job that has ended before one of a job that runs, and each of them
still has every eighth turn. What does not fit is chosen as well: events of steps of running jobs are dropped first.

What the broker has not acknowledged when a connection ends is sent again over the next one, which `MqttSink.run` opens
(`MqttOutbox.begin`, `MqttEvents.restart`).

Invariants: a topic is clean only after the broker has acknowledged a message that was built after the last `mark`; of
one topic at most one message is in flight, so an older version never overtakes a newer one. Nothing here reads a clock
or does I/O: times are arguments.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heappop, heappush, merge
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple, assert_never

from msgspec import Struct
from msgspec.msgpack import Decoder

from correlator.bounded import SizedDict, chunks
from correlator.jobs import encoding
from correlator.jobs.directory import NO_AGE, JobDirectory, Names
from correlator.jobs.fold import vm_name
from correlator.model.facts import Kind
from correlator.model.messages import DaemonIndex, DaemonState, DaemonStatus, ExternalId
from correlator.model.published import AgeKey, Change, PublishedJob
from correlator.model.rows import Micros
from correlator.ops.event_loop import timed
from correlator.pipeline.hub import Batch
from correlator.sinks.event_log import EventLog, PendingEvents
from correlator.sinks.mqtt import home_assistant
from correlator.sinks.mqtt.topics import SPACING, MqttMessage, TopicKey, Topics

BEGIN_BATCH = 500
"""Jobs that one step of `MqttOutbox.begin` sorts at most, and topics that one adds."""


MAX_TOMBSTONES = 16 * 1024 * 1024
"""Maximum bytes of the last states of jobs that left and whose topics still exist. The sweep after the next connect
finds the topics of the others."""


MEMBERS, STEP = 2_000, 500
"""Bytes of the last state of a job, and of a step, without long texts."""


MAX_LEFT = 16 * 1024 * 1024
"""Maximum bytes of the topics of earlier runs that are being removed. Others are read again after them."""


KEY = 512
"""Bytes that a key takes besides its name, while it is pending."""


MAX_EVENTS = 50_000
MAX_BYTES = 64 * 1024 * 1024
"""Maximum number of events that wait for the broker, and of the bytes that they take. Above it some are dropped."""


OVERHEAD = 800
"""Bytes that an event takes besides its payload."""


STATES_WITHIN = 1.0
"""Seconds that a changed topic waits before it goes before everything else."""


TURNS = 8
"""Each eighth message is one of those that others go before."""


class Parcel(NamedTuple):
    """Messages to send one after the other. `tag` identifies them for `MqttOutbox.acknowledged`."""

    tag: TopicKey | int
    messages: tuple[MqttMessage, ...]


class MqttOutbox:
    """The topics of the index, with an outbox of those that the broker lacks.

    There is no connection before `begin` and after `end`; changes are not marked then. `clock`: returns seconds, the
    same as the clock of `events`. `devices`: whether each VM is a device for Home Assistant. `max_tombstones`,
    `max_left`: bytes. `at_once`: jobs that one step of `begin` sorts, and topics that one adds. Use it from one event
    loop only.
    """

    def __init__(
        self,
        topics: Topics,
        published: JobDirectory,
        epoch: str,
        events: MqttEvents,
        clock: Callable[[], float],
        *,
        devices: bool = False,
        max_tombstones: int = MAX_TOMBSTONES,
        max_left: int = MAX_LEFT,
        at_once: int = BEGIN_BATCH,
    ) -> None:
        self._topics = topics
        self._at_once = at_once
        self._published = published
        self._epoch = epoch
        self._events = events
        self._outbox = DirtyTopics(clock)
        self._tombstones: SizedDict[str, tuple[PublishedJob, int]] = SizedDict(max_tombstones, _size_of_state)
        """The last state of each job that left, and the `seq` of its end."""
        self._left: set[TopicKey] = set()
        """The topics of earlier runs that are being removed."""
        self._left_bytes, self._max_left = 0, max_left
        self.has_missed = False
        """Whether there was no room for a topic of an earlier run since the begin of the last sweep."""
        self._vms = VmJobs()
        self._devices = devices
        self._connected = False
        self._turn = 0

    def on_batch(self, batch: Batch) -> int:
        """Mark the topics that a batch of the hub changes. Returns the number of events that were dropped."""
        for change in batch.changes:
            if change.new is not None:
                self._tombstones.discard(change.job_id)
            elif change.old is not None:
                self._tombstones.put(change.job_id, (change.old, change.seq))
            if self._connected:  # `begin` finds earlier changes in the index
                if not change.moved:
                    self._outbox.mark(TopicKey("state", change.job_id))
                for external_id in _affected_external_ids(change):
                    self._outbox.mark(TopicKey("ext", external_id))
                for name, is_new in self._vms.put(change.job_id, change.new, change.old):
                    if is_new and self._devices:
                        self._outbox.mark(TopicKey("discovery", name))
                    self._outbox.mark(TopicKey("vm", name))
        dropped = 0
        for event in batch.events:
            payload = encoding.encode(encoding.event(event, self._epoch, batch.seq))
            dropped += self._events.add(MqttEvent(event.job_id, encoding.compact(payload)))
        return dropped

    def begin(self) -> Iterator[None]:
        """Start a connection: add all topics, the newest jobs first, then those of jobs that left meanwhile.

        A step sorts at most `at_once` jobs, or adds as many topics. Other tasks may run between two steps; what
        they change is sent too. Do not call `pop_next` before the last step.
        """
        self._restart()
        self._connected = True
        self._vms = VmJobs()
        published = list(self._published.all())
        gone = [last for last, _ in self._tombstones.values()]
        by_age: list[list[tuple[AgeKey, PublishedJob]]] = []
        for batch in chunks(published, self._at_once):
            with timed("mqtt begin"):
                by_age.append(sorted(((job.view.age_key, job) for job in batch), key=itemgetter(0), reverse=True))
                for job in batch:
                    self._vms.put(job.job_id, self._published.get(job.job_id))
            yield
        newest_first = (job for _, job in merge(*by_age, key=itemgetter(0), reverse=True))
        marker = (TopicKey("marker"),) if self._devices else ()
        keys = chain(marker, (key for job in chain(newest_first, gone) for key in self._keys(job)))
        more = True
        while more:
            with timed("mqtt begin"):
                part = list(islice(keys, self._at_once))
                self._outbox.add(part)
                more = bool(part)
            yield

    def end(self) -> None:
        """End the connection. The next `begin` computes what the broker lacks from the index."""
        self._connected = False
        self._restart()

    def _restart(self) -> None:
        self._outbox.restart()
        self._events.restart()
        self._left.clear()
        self._left_bytes = 0

    def begin_sweep(self) -> None:
        """All topics that the broker holds are about to be passed to `on_retained`."""
        self.has_missed = False

    def on_retained(self, topic: str) -> TopicKey | None:
        """Remove a topic that the broker holds, if an earlier run left it and the index does not have its job.

        The marker stays until `devices_removed`. Returns the key of the topic.
        """
        key = self._topics.key(topic)
        if key is not None and key not in self._left and self._is_obsolete(key):
            if self.left + _size_of_key(key) <= self._max_left:
                self._left.add(key)
                self._left_bytes += _size_of_key(key)
                self._outbox.mark(key)
            else:
                self.has_missed = True
        return key

    def _is_obsolete(self, key: TopicKey) -> bool:
        match key.kind:
            case "state":
                return self._published.get(key.name) is None and key.name not in self._tombstones
            case "ext":
                return self._published.owner(key.name) is None
            case "vm":
                return self._vms.newest(key.name) is None
            case "discovery":
                return not self._devices or self._vms.newest(key.name) is None
            case "marker":
                return False
            case kind:
                assert_never(kind)

    @property
    def left(self) -> int:
        """Bytes of the topics of earlier runs that are being removed."""
        return self._left_bytes

    def devices_removed(self) -> None:
        """The broker holds no device of an earlier run any more, and this run has none: remove the marker."""
        self._outbox.mark(TopicKey("marker"))

    def announce(self) -> Iterator[None]:
        """Publish all devices again, in steps as `begin`."""
        for names in chunks(self._vms.names(), self._at_once):
            self._outbox.add(TopicKey("discovery", name) for name in names)
            yield

    def pop_next(self, now: float) -> Parcel | None:
        """Dequeue what to send next: an event or a topic alternately; with late changes, one event in `TURNS`.

        `now`: seconds of the clock, must not decrease.
        """
        self._turn = (self._turn + 1) % TURNS
        if self._turn == 0 if self._outbox.is_late(now) else self._turn % 2 == 1:
            return self._pop_event() or self._pop_topic(now)
        return self._pop_topic(now) or self._pop_event()

    def acknowledged(self, tag: TopicKey | int) -> None:
        """The broker has acknowledged every message of the parcel."""
        if isinstance(tag, int):
            self._events.acknowledged(tag)
        elif self._outbox.acknowledged(tag):
            if tag.kind == "state":
                self._tombstones.discard(tag.name)
            if tag in self._left:
                self._left.remove(tag)
                self._left_bytes -= _size_of_key(tag)

    def due(self) -> float | None:
        """Return when `pop_next` may have a topic without a new change, or None."""
        return self._outbox.due()

    def oldest(self, *, changes: bool = False) -> float | None:
        """Return the clock time since which the oldest pending topic or event waits. None if nothing is pending.

        `changes`: without topics that are published again over a new connection.
        """
        oldest = self._outbox.oldest(changes=changes), self._events.oldest()
        return min((since for since in oldest if since is not None), default=None)

    @property
    def pending(self) -> int:
        """Number of topics and events that the broker has not acknowledged."""
        return self._outbox.pending + len(self._events)

    def status(self, state: DaemonState, at: Micros) -> MqttMessage:
        """Return the message of the daemon's state. `at`: microseconds since the epoch."""
        payload: DaemonStatus = {
            "state": state,
            "epoch": self._epoch,
            "seq": self._published.seq,
            "at": encoding.rfc3339(at),
        }
        return MqttMessage(self._topics.status, encoding.encode(payload))

    def index(self) -> MqttMessage:
        """Return the message with the epoch, the last seq and the number of jobs."""
        payload: DaemonIndex = {"epoch": self._epoch, "seq": self._published.seq, "count": len(self._published)}
        return MqttMessage(self._topics.index, encoding.encode(payload))

    def messages(self, key: TopicKey) -> tuple[MqttMessage, ...]:
        """Return the messages after which the topic holds what the index has."""
        match key.kind:
            case "state":
                return self._job(self._topics.of(key), key.name)
            case "ext":
                return (self._external(self._topics.of(key), key.name),)
            case "vm":
                return (self._vm(self._topics.of(key), key.name),)
            case "discovery":
                exists = self._devices and self._vms.newest(key.name) is not None
                payload = encoding.encode(home_assistant.device(self._topics, key.name)) if exists else b""
                return (MqttMessage(self._topics.of(key), payload),)
            case "marker":
                return (MqttMessage(self._topics.of(key), b"true" if self._devices else b""),)
            case kind:
                assert_never(kind)

    def _external(self, topic: str, name: str) -> MqttMessage:
        if (owner := self._published.resolve(name)) is None or self._published.owner(name) is None:
            return MqttMessage(topic, b"")
        payload: ExternalId = {"external_id": name, "job_id": owner.job_id}
        return MqttMessage(topic, encoding.encode(payload))

    def _vm(self, topic: str, name: str) -> MqttMessage:
        shown = self._published.get(job_id) if (job_id := self._vms.newest(name)) is not None else None
        if shown is None:
            return MqttMessage(topic, b"")
        payload = self._state(encoding.text(shown, steps=False), {"vm_name": name}, shown.rev)
        return MqttMessage(topic, payload, expires=shown.view.terminal)

    def _job(self, topic: str, job_id: str) -> tuple[MqttMessage, ...]:
        if (shown := self._published.get(job_id)) is not None:
            return (MqttMessage(topic, self._state(encoding.text(shown), {}, shown.rev), expires=shown.view.terminal),)
        if (tombstone := self._tombstones.get(job_id)) is not None:
            last, seq = tombstone
            document = encoding.text(last)
        else:  # an earlier run left it, or there was no room for its last state
            document, seq = encoding.encode({"job_id": job_id}), self._published.seq
        return MqttMessage(topic, self._state(document, {"deleted": True}, seq)), MqttMessage(topic, b"")

    def _state(self, document: bytes, more: Mapping[str, Any], seq: int) -> bytes:
        return encoding.extended(document, {**more, "epoch": self._epoch, "seq": seq})

    def _keys(self, shown: PublishedJob) -> Iterator[TopicKey]:
        """The topics of a job, including those of its VM: a newer job of the VM may have begun since `begin`."""
        yield TopicKey("state", shown.job_id)
        for external_id in shown.view.external_ids:
            yield TopicKey("ext", external_id)
        if name := vm_name(shown.view):
            yield TopicKey("vm", name)
            if self._devices:
                yield TopicKey("discovery", name)

    def _pop_event(self) -> Parcel | None:
        if (popped := self._events.pop_next()) is None:
            return None
        tag, event = popped
        return Parcel(tag, (MqttMessage(self._topics.event(event.job_id), event.payload, retain=False),))

    def _pop_topic(self, now: float) -> Parcel | None:
        key = self._outbox.pop_next(now)
        return Parcel(key, self.messages(key)) if key is not None else None


def _size_of_state(tombstone: tuple[PublishedJob, int]) -> int:
    view = tombstone[0].view
    texts = len(view.metadata or "") + len(view.error or "") + sum(len(step.error_message or "") for step in view.steps)
    return MEMBERS + STEP * len(view.steps) + texts


def _size_of_key(key: TopicKey) -> int:
    return KEY + len(key.name)


def _affected_external_ids(change: Change) -> Iterable[str]:
    """The external IDs whose owner may have changed: the jobs with that ID, or which of them is the newest, changed."""
    old, new = (shown.view if shown is not None else None for shown in (change.old, change.new))
    before, after = (view.external_ids if view is not None else () for view in (old, new))
    if old is None or new is None or change.moved or old.age_key != new.age_key:
        return {*before, *after}
    return () if before == after else set(before) ^ set(after)


class _Place(Struct, frozen=True, gc=False):
    """The VM of a job, empty if there is none, and the age of the job."""

    vm: str
    age: AgeKey


_NOWHERE = _Place("", NO_AGE)


class VmJobs:
    """The newest job of each VM (`JobView.age_key`), of the jobs that were `put`."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}
        """Of jobs with a VM, by job ID."""
        self._names = Names(lambda job_id: self._places[job_id].age)

    def newest(self, name: str) -> str | None:
        """The newest job of the VM with this name; None if it has none."""
        return self._names.owner(name)

    def names(self) -> list[str]:
        return list({place.vm for place in self._places.values()})

    def put(self, job_id: str, new: PublishedJob | None, old: PublishedJob | None = None) -> list[tuple[str, bool]]:
        """Note what is published of a job now; None: nothing is. `old`: what was published before, if that is known.

        Returns the VMs of which it is or was the newest job, each with whether it is their first or was their last.
        """
        was, now = self._places.get(job_id, _NOWHERE), _NOWHERE
        if new is not None:
            same = old is not None and old.view.metadata == new.view.metadata
            now = _Place(was.vm if same else vm_name(new.view), new.view.age_key)
        names = {place.vm for place in (was, now) if place.vm}
        before = {name: self._names.owner(name) for name in names}
        if was != now:
            self._names.move(job_id, filter(None, (was.vm,)), was.age, filter(None, (now.vm,)), now.age)
            if now.vm:
                self._places[job_id] = now
            else:
                self._places.pop(job_id, None)
        after = {name: self._names.owner(name) for name in names}
        return [
            (name, (before[name] is None) != (after[name] is None))
            for name in names
            if job_id in (before[name], after[name])
        ]


class _InFlight(Struct):
    """A topic from `pop_next` until its message is acknowledged and its spacing has elapsed."""

    changed: bool
    """It was in the queue of changes."""
    acknowledged: bool = False
    spaced: bool = False
    marked: bool = False
    since: float = 0.0
    """Clock time of the first mark while in flight."""


class DirtyTopics:
    """Topics to send, each once, at most one message of a topic in flight.

    Two queues are served alternately: a change does not wait behind thousands of topics that are published again, and
    changes that never end do not starve those. While changes are late, they have all turns but one of `TURNS`.
    `clock`: returns seconds, as the argument of `pop_next`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: dict[TopicKey, float] = {}
        """Clock time since which each topic is not clean."""
        self._changed: OrderedDict[TopicKey, None] = OrderedDict()
        self._republish: OrderedDict[TopicKey, None] = OrderedDict()
        self._turn = 0
        self._in_flight: dict[TopicKey, _InFlight] = {}
        self._dirty: dict[TopicKey, _InFlight] = {}
        """Those in flight that are not clean: few, while thousands that are acknowledged wait for their spacing."""
        self._spacings: deque[tuple[float, TopicKey]] = deque()

    def mark(self, key: TopicKey) -> None:
        """The content of the topic has changed: send it again."""
        self._since.setdefault(key, self._clock())
        if (in_flight := self._in_flight.get(key)) is not None:
            in_flight.since = in_flight.since if in_flight.marked else self._clock()
            in_flight.marked = True
            self._dirty[key] = in_flight
        else:
            self._republish.pop(key, None)
            self._changed[key] = None

    def restart(self) -> None:
        """Start a new connection: nothing is in flight, and nothing is pending until `add`."""
        self._in_flight.clear()
        self._dirty.clear()
        self._spacings.clear()
        self._changed.clear()
        self._republish.clear()
        self._since.clear()

    def add(self, keys: Iterable[TopicKey]) -> None:
        """Add `keys` to the topics that are published again, except those that are pending already.

        One in flight is published again after its spacing, as if it had changed.
        """
        now = self._clock()
        for key in keys:
            if key in self._in_flight:
                self.mark(key)
            elif key not in self._since:
                self._republish[key] = None
                self._since[key] = now

    def pop_next(self, now: float) -> TopicKey | None:
        """Dequeue the next topic that may be sent at `now` (seconds, must not decrease). None if there is none."""
        while self._spacings and self._spacings[0][0] <= now:
            key = self._spacings.popleft()[1]
            self._in_flight[key].spaced = True
            self._release(key)
        self._turn = (self._turn + 1) % TURNS
        serve_changed = self._turn != 0 if self.is_late(now) else self._turn % 2 == 1
        queue = (self._changed or self._republish) if serve_changed else (self._republish or self._changed)
        if not queue:
            return None
        key = queue.popitem(last=False)[0]
        self._in_flight[key] = self._dirty[key] = _InFlight(queue is self._changed)
        self._spacings.append((now + SPACING, key))
        return key

    def acknowledged(self, key: TopicKey) -> bool:
        """Record the acknowledgement. Returns True if the topic was not marked while the message was in flight."""
        in_flight = self._in_flight[key]
        in_flight.acknowledged = True
        if in_flight.marked:
            self._since[key] = in_flight.since
        else:
            self._since.pop(key, None)
            del self._dirty[key]
        self._release(key)
        return not in_flight.marked

    def due(self) -> float | None:
        """Return the time at which the next spacing elapses, or None: until then only `mark` makes a topic ready."""
        return self._spacings[0][0] if self._spacings else None

    def is_late(self, now: float) -> bool:
        """Return True if the first of the changed topics has waited for `STATES_WITHIN`."""
        first = next(iter(self._changed), None)
        return first is not None and now - self._since[first] >= STATES_WITHIN

    def oldest(self, *, changes: bool = False) -> float | None:
        """Return the clock time since which the oldest pending topic is not clean. None if all are clean.

        A topic that is published again and has changed since counts from its place in the queue of changes. `changes`:
        without topics that are published again.
        """
        keys = [key for key, in_flight in self._dirty.items() if in_flight.changed or not changes]
        for queue in (self._changed,) if changes else (self._changed, self._republish):
            keys += islice(queue, 1)
        return min((self._since[key] for key in keys), default=None)

    @property
    def pending(self) -> int:
        """Number of topics that are not clean."""
        return len(self._since)

    def _release(self, key: TopicKey) -> None:
        in_flight = self._in_flight[key]
        if in_flight.acknowledged and in_flight.spaced:
            del self._in_flight[key]
            if in_flight.marked:
                del self._dirty[key]
                self._changed[key] = None


class MqttEvent(Struct, frozen=True, gc=False):
    """An event to publish."""

    job_id: str
    payload: bytes

    @property
    def kind(self) -> bytes:
        """The value of its member ``kind``. In no text of the JSON can these bytes occur: its quotes are escaped."""
        return self.payload.partition(b'"kind":"')[2].partition(b'"')[0]


class _JobEvents(Struct, gc=False):
    """The waiting events of a job, in order. `ended`: one of them is its end, or was."""

    waiting: list[int]
    ended: bool = False


_ENDS = frozenset(kind.value.encode() for kind in Kind if kind.ends_job)


class MqttEvents(PendingEvents[MqttEvent]):
    """Events, each pending until the broker has acknowledged it; those of one job in their order.

    Events of jobs that have ended are sent first, job by job in the order of the ends; then those of running jobs, the
    oldest first, which also have one of `TURNS` turns meanwhile. Above `max_events` or `max_bytes`, events are dropped,
    the oldest first: of steps of running jobs, then of steps of other jobs, then of jobs. Those in flight are not.
    `clock`: returns seconds; only `oldest` depends on it.
    """

    def __init__(
        self,
        event_log: EventLog,
        clock: Callable[[], float],
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(event_log, max_events=max_events, max_bytes=max_bytes, overhead=OVERHEAD)
        self._clock = clock
        self._in_flight: dict[int, None] = {}
        self._queues: dict[str, _JobEvents] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        """The jobs whose queue has ended, in this order."""
        self._running: list[int] = []
        """A heap of the events that were added while their job ran; also some that wait no more, or whose job ended."""
        self._steps: list[int] = []
        """A heap of the events of steps; also some that wait no more, or whose job ended."""
        self._ended_steps: list[int] = []
        """A heap of those whose job is known to have ended."""
        self._turn = 0
        for job_id, payload in event_log.pop_restored("mqtt", Decoder(str)):
            self.add(MqttEvent(job_id, payload))

    def add(self, event: MqttEvent) -> int:
        """Append an event. Returns the number of events that were dropped to make room."""
        number = self._event_log.add("mqtt", event.job_id, event.payload)
        self._append(number, event, event.payload, self._clock())
        self._enqueue(number)
        dropped = 0
        while self.is_full and self._waiting:
            self._drop()
            dropped += 1
        return dropped

    def pop_next(self) -> tuple[int, MqttEvent] | None:
        """Dequeue the next event, with the number that `acknowledged` takes. None if no event waits."""
        self._turn = (self._turn + 1) % TURNS
        if self._turn != 0:
            number = self._first_ended() or self._first_running()
        else:
            number = self._first_running() or self._first_ended()
        if number is None:
            return None
        self._dequeue(number)
        self._in_flight[number] = None
        return number, self[number]

    def acknowledged(self, number: int) -> None:
        """The broker has the event: forget it."""
        del self._in_flight[number]
        self._forget(number)

    def restart(self) -> None:
        """Start a new connection: events that were sent and not acknowledged are sent again, in the old order."""
        for number in [*self._in_flight]:
            del self._in_flight[number]
            self._enqueue(number)

    @property
    def _waiting(self) -> int:
        """Number of events that wait: they are pending and not in flight."""
        return len(self) - len(self._in_flight)

    def _waits(self, number: int) -> bool:
        return number in self and number not in self._in_flight

    def _enqueue(self, number: int) -> None:
        event = self[number]
        job_id, kind = event.job_id, event.kind
        queue = self._queues.get(job_id)
        if queue is None:
            queue = self._queues[job_id] = _JobEvents([])
        insort(queue.waiting, number)
        if kind in _ENDS and not queue.ended:
            queue.ended = True
            self._ended[job_id] = None
        if not queue.ended:
            heappush(self._running, number)
        if kind.startswith(b"step."):
            heappush(self._ended_steps if queue.ended else self._steps, number)
        self._compact()

    def _dequeue(self, number: int) -> None:
        job_id = self[number].job_id
        waiting = self._queues[job_id].waiting
        waiting.remove(number)
        if not waiting:
            del self._queues[job_id]
            self._ended.pop(job_id, None)

    def _first_ended(self) -> int | None:
        job_id = next(iter(self._ended), None)
        return self._queues[job_id].waiting[0] if job_id is not None else None

    def _first_running(self) -> int | None:
        while self._running and not self._runs(self._running[0]):
            heappop(self._running)
        return self._running[0] if self._running else None

    def _runs(self, number: int) -> bool:
        """Return True if the event waits, and its job has not ended."""
        return self._waits(number) and not self._queues[self[number].job_id].ended

    def _drop(self) -> None:
        number = self._pop_step() or next(filter(self._waits, self))
        self._dequeue(number)
        self._forget(number)

    def _pop_step(self) -> int | None:
        """Return the oldest waiting event of the steps of running jobs, or else of ended jobs."""
        while self._steps:
            number = heappop(self._steps)
            if self._runs(number):
                return number
            if self._waits(number):
                heappush(self._ended_steps, number)
        while self._ended_steps:
            if self._waits(number := heappop(self._ended_steps)):
                return number
        return None

    def _compact(self) -> None:
        """Remove from the heaps what waits no more, and repetitions, once that is the larger part."""
        most = 2 * self._waiting + 1000
        for heap in (self._running, self._steps, self._ended_steps):
            if len(heap) > most:
                heap[:] = sorted(filter(self._waits, {*heap}))
