"""The events that the stream `cor_events` may not have: each is written once, in order, and only by the lease's holder.

An event is a fact, so none is conflated: each is kept until the stream has acknowledged it, and the checkpoint holds
those that are pending. The stream drops a message whose ID it has seen in the last ten minutes
(`correlator.cluster.streams`), so an event that is found again by a successor is stored once. A batch without an
acknowledgement is looked up in the stream before it is sent again.

The stream has an owner key of its own, because a fence works within one stream only. It is taken by a process that
holds the lease; the former holder is refused from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import orjson
from msgspec import Struct
from msgspec.msgpack import Decoder

from correlator.cluster import keys
from correlator.cluster.connection import Fenced, Refused
from correlator.cluster.fence import Fence, OwnedStream, StreamMessage
from correlator.jobs import encoding, sizes
from correlator.model.published import Event
from correlator.sinks.cluster import documents
from correlator.sinks.event_log import EventLog, PendingEvents

MAX_EVENTS = 50_000
MAX_BYTES = 80_000_000
"""Bounds of the pending events. Above them the oldest are dropped."""


OVERHEAD = 950
"""Bytes that a pending event takes besides its payload."""


BATCH_EVENTS = 256
BATCH_BYTES = 256_000
"""Bounds of one batch."""


DUPLICATE = 10201
"""NATS's code for a batch with a message whose ID it knows: it stores none of the batch."""


class EventWriter:
    """Sends what is in `pending`. `lease`: the fence of the lease.

    `within`: seconds to wait for an answer. Only one task may call `step`.
    """

    def __init__(
        self,
        instance: str,
        lease: Fence,
        pending: EventQueue,
        *,
        within: float,
        rewrite_every: float,
    ) -> None:
        self._connection = lease.connection
        self._instance = instance
        self._lease = lease
        self._pending = pending
        self._within = within
        self._rewrite_every = rewrite_every
        self._stream: OwnedStream | None = None
        self._in_doubt: Sequence[StreamEvent] = ()
        """The batch whose acknowledgement did not come."""

    async def step(self) -> int:
        """Send one batch. Returns the number of events that the stream has acknowledged.

        Raises: `Fenced` if this process does not hold the lease, `Unacknowledged` or `Refused` if the events stay
        pending.
        """
        if self._stream is None:
            self._stream = await self._acquire()
        if self._in_doubt:
            return await self._look_up(self._stream, self._in_doubt)
        events = self._pending.batch(BATCH_EVENTS, min(BATCH_BYTES, self._connection.window.share))
        try:
            await self._send(self._stream, [self._message(event) for event in events])
        except Refused as error:
            self._pending.unacknowledged()
            if isinstance(error, Fenced):
                self._stream = None  # NATS may have dropped the owner key with the oldest events.
            raise
        except BaseException:
            self._in_doubt = events
            raise
        self._pending.acknowledged()
        return len(events)

    async def settle(self) -> None:
        """Write the owner key again if that is due. Call it while no event is pending: the stream drops old messages.

        Raises: as `step`.
        """
        if self._stream is not None:
            await self._settle(self._stream)

    async def _settle(self, stream: OwnedStream) -> None:
        try:
            await stream.settle(self._within)
        except Fenced:
            self._stream = None
            raise

    async def _look_up(self, stream: OwnedStream, events: Sequence[StreamEvent]) -> int:
        """Decide whether the stream has the batch in doubt: all of it or nothing, and nothing after it."""
        await self._settle(stream)
        subject = keys.event(self._instance, events[-1].job_id)
        last = await self._connection.last(keys.EVENTS, subject, within=self._within)
        self._in_doubt = ()
        if last is None or (last.headers or {}).get("Nats-Msg-Id") != events[-1].message_id:
            self._pending.unacknowledged()
            return 0
        self._pending.acknowledged()
        return len(events)

    async def _send(self, stream: OwnedStream, messages: Sequence[StreamMessage]) -> None:
        try:
            await stream.write(messages, self._within)
        except Refused as error:
            if error.code != DUPLICATE or len(messages) == 1:
                raise
            for message in messages:  # One by one, NATS drops those that it has, and stores the others.
                await stream.write([message], self._within)

    async def _acquire(self) -> OwnedStream:
        """Write the owner key of the stream. Raises: `Fenced` unless this process holds the lease."""
        fence = await self._lease.own(keys.EVENTS, keys.events_owner(self._instance), within=self._within)
        return OwnedStream(fence, self._rewrite_every)

    def _message(self, event: StreamEvent) -> StreamMessage:
        payload = fitting(event.payload, documents.value_limit(self._connection.client.max_payload))
        return StreamMessage(keys.event(self._instance, event.job_id), payload, {"Nats-Msg-Id": event.message_id})


class StreamEvent(Struct, frozen=True, gc=False):
    """An event that the stream has not acknowledged. The next holder of the lease sends it again."""

    job_id: str
    message_id: str
    payload: bytes


class EventQueue(PendingEvents[StreamEvent]):
    """The events in order. One batch of them is in flight at a time. Above a bound the oldest are dropped.

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
        self._in_flight = 0
        """The number of events that are in flight: the first ones."""
        for (job_id, message_id), payload in event_log.pop_restored("cluster", Decoder(tuple[str, str])):
            self.add(StreamEvent(job_id, message_id, payload))

    def add(self, event: StreamEvent) -> int:
        """Append an event. Returns the number of older events that were dropped to make room."""
        number = self._event_log.add("cluster", (event.job_id, event.message_id), event.payload)
        self._append(number, event, event.payload, self._clock())
        dropped = 0
        while self.is_full and len(self) > 1:
            self._drop_first()
            self._in_flight = max(0, self._in_flight - 1)
            dropped += 1
        return dropped

    def batch(self, most_events: int, most_bytes: int) -> list[StreamEvent]:
        """Return the first events, which are in flight from now on: at least one if there is any."""
        chosen: list[StreamEvent] = []
        size = 0
        for number in islice(self, most_events):
            event = self[number]
            size += len(event.payload)
            if chosen and size > most_bytes:
                break
            chosen.append(event)
        self._in_flight = len(chosen)
        return chosen

    def acknowledged(self) -> None:
        """The stream has the events in flight: forget them."""
        for _ in range(self._in_flight):
            self._drop_first()
        self._in_flight = 0

    def unacknowledged(self) -> None:
        """The stream may not have the events in flight: the next `batch` begins with them."""
        self._in_flight = 0

    def _drop_first(self) -> None:
        self._forget(self._first_number())


def stream_event(event: Event, instance: str) -> StreamEvent:
    """Return the message of an event. Its ID is the same whichever process makes it, and how often."""
    payload = {"instance": instance, "kind": event.kind.value, **encoding.transition(event)}
    if event.event_id is not None:
        message_id = f"{instance}:{event.event_id}"
    else:
        step = "" if event.step_id is None else event.step_id
        message_id = f"{instance}:{event.kind.value}:{keys.escape(event.job_id)}:{step}:{event.at}"
    return StreamEvent(event.job_id, message_id, encoding.compact(encoding.encode(payload)))


def fitting(payload: bytes, limit: int) -> bytes:
    """Return an event in at most `limit` bytes: its error is cut, so that it does not stop those behind it."""
    if len(payload) <= limit:
        return payload
    try:
        found = dict(orjson.loads(payload))
    except (TypeError, ValueError):
        return b"{}"  # A checkpoint had it, and no collector wrote it.
    error = str(found.get("error") or "")
    found |= {"error": "", "error_cut": found.get("error_cut") or sizes.size(error)}
    room = limit - len(encoding.compact(encoding.encode(found)))
    found["error"], _ = sizes.cut_text(error, max(0, room // 6))  # A byte takes up to six in JSON.
    return encoding.compact(encoding.encode(found))
