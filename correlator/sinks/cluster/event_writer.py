"""Writes the pending events to the stream `cor_events`: each once, in order, and only by the holder of the lease.

The stream has an owner key of its own, because a fence works within one stream only. It is taken by a process that
holds the lease; the former holder is refused from then on. A batch without an acknowledgement is looked up in the
stream before it is sent again, and NATS drops a message whose ID it has seen in the last minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from correlator.cluster import keys
from correlator.cluster.batches import Fence, Message, put
from correlator.cluster.connection import Connection
from correlator.cluster.errors import Fenced, Refused, Unacknowledged
from correlator.sinks.cluster import pending_events, values
from correlator.sinks.cluster.owned_stream import OwnedStream
from correlator.sinks.cluster.pending_events import PendingEvent, PendingEvents

MAX_EVENTS = 256
MAX_BYTES = 256_000
"""Bounds of one batch."""

DUPLICATE = 10201
"""NATS's code for a batch with a message whose ID it knows: it stores none of the batch."""


class EventWriter:
    """Sends what is in `pending`. `owner`: the value of this process's owner keys, which no other process writes.

    `lease`: the fence of the key of the lease. `within`: seconds to wait for an answer. Only one task may call `step`.
    """

    def __init__(
        self,
        connection: Connection,
        instance: str,
        owner: bytes,
        lease: Fence,
        pending: PendingEvents,
        *,
        within: float,
        rewrite_every: float,
    ) -> None:
        self._connection = connection
        self._instance = instance
        self._owner = owner
        self._lease = lease
        self._pending = pending
        self._within = within
        self._rewrite_every = rewrite_every
        self._stream: OwnedStream | None = None
        self._in_doubt: Sequence[PendingEvent] = ()
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
        events = self._pending.batch(MAX_EVENTS, min(MAX_BYTES, self._connection.window.share))
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

    async def _look_up(self, stream: OwnedStream, events: Sequence[PendingEvent]) -> int:
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

    async def _send(self, stream: OwnedStream, messages: Sequence[Message]) -> None:
        try:
            await stream.write(messages, self._within)
        except Refused as error:
            if error.code != DUPLICATE or len(messages) == 1:
                raise
            for message in messages:  # One by one, NATS drops those that it has, and stores the others.
                await stream.write([message], self._within)

    async def _acquire(self) -> OwnedStream:
        """Write the owner key of the stream. Raises: `Fenced` unless this process holds the lease.

        The key is read before the lease, so that a successor's key is never written over.
        """
        subject = keys.events_owner(self._instance)
        last = await self._connection.last(keys.EVENTS, subject, within=self._within)
        await self._lease.verify(keys.STATE, self._owner, within=self._within)
        expected = int((last.headers or {})["Nats-Sequence"]) if last is not None else 0
        try:
            seq = await put(self._connection, subject, self._owner, expected=expected, within=self._within)
        except Fenced as error:  # Another process wrote it meanwhile: check the lease again.
            raise Unacknowledged(str(error)) from error
        fence = Fence(self._connection, subject, seq)
        return OwnedStream(
            self._connection, keys.EVENTS, subject, self._owner, fence, rewrite_every=self._rewrite_every
        )

    def _message(self, event: PendingEvent) -> Message:
        payload = pending_events.fitting(event.payload, values.limit(self._connection.client.max_payload))
        return Message(keys.event(self._instance, event.job_id), payload, {"Nats-Msg-Id": event.message_id})
