"""Batches to one stream by the holder of its owner key, in the order in which they are written.

Problem. A batch whose acknowledgement does not come may be stored much later: it can wait in the socket of a server
that lost its leader, while this process has connected to another server and written newer documents there. Stored
after them, it would bring back old ones. The fence does not refuse it, because the owner is the same.

Model. After such a batch the owner key is written again before anything else. That changes its sequence, so the lost
batch is refused from then on. If it was stored before, the keys in it are still dirty and are written once more.

Invariant: of two batches that `write` sent, the later one is never stored before the earlier one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from correlator.cluster.batches import NOT_READY, Fence, Message
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable, Fenced, Refused, Unacknowledged
from correlator.sinks.cluster.pipelined import Pipelined

MAX_BEHIND = 5
"""So many answers without the owner key that this process wrote mean that the key is gone, and not that a server is
behind."""

BATCH_SECONDS = 0.1
"""A server that keeps a stream alone gets a batch if pipelining the messages would take longer than this."""

MEASURED_FROM = 32
"""Messages of the smallest write that is measured: of fewer, most of the time is that of the answer."""


class OwnedStream:
    """The stream `name`, whose owner key at `subject` has the value `owner`, which no other process writes.

    `fence`: has the sequence at which this process wrote the key. `rewrite_every`: seconds after which the key is
    written again. Only one task may call `write`.
    """

    def __init__(
        self, connection: Connection, name: str, subject: str, owner: bytes, fence: Fence, *, rewrite_every: float
    ) -> None:
        self._connection = connection
        self._name = name
        self._subject = subject
        self._owner = owner
        self._fence = fence
        self._rewrite_every = rewrite_every
        self._written_at = time.monotonic()
        """When this process last wrote the owner key."""
        self._pipelined = Pipelined(connection)
        self.replicated = True
        """False if one server keeps the stream alone. Then messages are pipelined, which is faster than a batch."""
        self._message_seconds = 0.0
        """Seconds that a pipelined message took: some milliseconds if the server writes each to its disk."""
        self._lost_batch = False
        """True if a batch may still be under way."""
        self._behind = 0

    async def write(self, messages: Sequence[Message], within: float) -> int:
        """Store `messages` in order. Returns the stream's sequence of the last one.

        After an error all or none are stored if the stream is `replicated`, else some may be.

        `within`: seconds to wait for an answer. Raises: `Fenced` if another process owns the key or it is gone,
        `Unacknowledged` if the outcome is unknown, `Refused` for another error.
        """
        await self.settle(within)
        try:
            if self.replicated or len(messages) * self._message_seconds > BATCH_SECONDS:
                return await self._fence.write(messages, within=within)
            return await self._write_pipelined(messages, within)
        except BaseException as error:
            self._lost_batch = not isinstance(error, Refused)
            raise

    async def _write_pipelined(self, messages: Sequence[Message], within: float) -> int:
        began = time.monotonic()
        try:
            seq = await self._pipelined.write(messages, self._fence.headers, within)
        except Fenced as error:
            if error.code != NOT_READY:
                raise
            self.replicated = True  # Another collector has raised the replicas: such servers take batches only.
            raise Unacknowledged(str(error)) from error
        if len(messages) >= MEASURED_FROM:
            self._message_seconds = (time.monotonic() - began) / len(messages)
        return seq

    async def settle(self, within: float) -> None:
        """Have a batch without an acknowledgement refused from now on, unless it is stored. Raises: as `write`."""
        if self._lost_batch or time.monotonic() - self._written_at >= self._rewrite_every:
            await self._rewrite_owner(within)

    async def _rewrite_owner(self, within: float) -> None:
        """Write the owner key again if this process still owns it."""
        try:
            found = await self._connection.last(self._name, self._subject, within=within)
        except ClusterUnavailable as error:
            raise Unacknowledged(str(error)) from error
        seq = int((found.headers or {})["Nats-Sequence"]) if found is not None else 0
        if found is not None and seq >= self._fence.seq:
            if found.data != self._owner:
                raise Fenced(f"another process owns {self._subject}")
            self._fence.seq, self._behind = seq, 0  # Greater if an earlier rewrite was stored without an answer.
        else:
            self._behind += 1
        self._lost_batch = True
        try:
            await self._fence.rewrite(self._owner, within=within)
        except Fenced as error:
            if self._behind >= MAX_BEHIND:
                raise Fenced(f"{self._subject} is gone") from error
            # An earlier rewrite was stored meanwhile, or there is a new owner, or the answer was old: read it again.
            raise Unacknowledged(str(error)) from error
        self._written_at, self._lost_batch, self._behind = time.monotonic(), False, 0
