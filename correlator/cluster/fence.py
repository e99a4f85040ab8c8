"""Writes to a stream that only the owner of an instance may do.

Problem. A collector that was stopped for a while must not write after its successor took over. A compare-and-set of
each key is no fence: it passes for every key that the successor has not written yet. And what has no acknowledgement
may be stored much later: it can wait in the socket of a server that lost its leader, while this process has connected
to another server and written newer values there. The owner is the same, so a fence alone does not refuse it.

Model. The owner of an instance knows the stream's sequence of its owner key. Every batch of a `Fence` asserts by the
header Nats-Expected-Last-Subject-Sequence that this is still the sequence of the owner key
(Nats-Expected-Last-Subject-Sequence-Subject); NATS checks it when the batch is committed, and stores all messages or
none. Taking over writes the owner key, so its sequence changes, and every later batch of the former owner is refused.
For the same reason an `OwnedStream` writes the owner key again after a batch without an acknowledgement, before
anything else: the lost batch is refused from then on. If it was stored before, its messages are written once more.

Invariants. One batch is in flight per fence, because JetStream refuses a second message with the same expected subject
while the first is not applied (error 10164). A batch whose acknowledgement does not come may have been stored: write
its messages again, they must be idempotent. Of two batches that `OwnedStream.write` sent, the later one is never stored
before the earlier one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from correlator.cluster.connection import (
    ANSWER_WITHIN,
    ClusterUnavailable,
    Connection,
    Fenced,
    Refused,
    Unacknowledged,
    answer_of,
    seq_of,
)
from correlator.cluster.received import Stored
from correlator.errors import CorrelatorError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

MAX_MESSAGES = 1000
"""Messages of one batch, a limit of the server."""


OVERHEAD = 250
"""Bytes of a message besides its payload: subject, headers, and what surrounds them."""


BEHIND_READS, READ_AGAIN_AFTER = 20, 0.05
"""Reads of the owner keys that may have an old answer, and seconds between two."""


NOT_READY = 10164
STALE = (10071, NOT_READY)
"""NATS's codes for a wrong expected sequence: 10164 while an earlier message of that subject is being stored."""


_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
_NO_HEADERS: Mapping[str, str] = {}


class StreamMessage(Struct, frozen=True):
    """One message of a batch."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] = _NO_HEADERS


class Fence:
    """The owner key at `subject` of `stream`. All batches go through it.

    `value`: what this process wrote, and no other process writes; `seq`: the sequence that it got.
    """

    def __init__(self, connection: Connection, stream: str, subject: str, value: bytes, seq: int) -> None:
        self.connection = connection
        self.stream = stream
        self.subject = subject
        self.value = value
        self.seq = seq
        self._lock = asyncio.Lock()

    async def own(self, stream: str, subject: str, *, within: float = ANSWER_WITHIN) -> Fence:
        """Write the owner key of another stream, which has sequences of its own, and return its fence.

        That key is read before this one, so that a successor's key is never written over. Raises: as `verify`.
        """
        for _ in range(BEHIND_READS):
            before = seq_of(await self.connection.last(stream, subject, within=within))
            if await self.is_newest(within):
                with contextlib.suppress(Fenced):  # Another process wrote it meanwhile, or the answer was old.
                    seq = await put(self.connection, subject, self.value, expected=before, within=within)
                    return Fence(self.connection, stream, subject, self.value, seq)
            await asyncio.sleep(READ_AGAIN_AFTER)
        raise Unacknowledged(f"{subject} cannot be written: a server is behind")

    def rewritten(self, seq: int) -> None:
        """Go on from `seq`: this process wrote the owner key again, which NATS had lost."""
        self.seq = seq

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a message that is to be stored only for the owner."""
        return {_SEQUENCE: str(self.seq), _SUBJECT: self.subject}

    async def write(
        self, messages: Sequence[StreamMessage], *, after: tuple[str, int] | None = None, within: float = ANSWER_WITHIN
    ) -> int:
        """Store `messages` in order, all or none. Returns the stream's sequence of the last one.

        The others have the sequences before it, without a gap. `after`: a subject, and the sequence that its last
        message must have; the owner key may be the same in an older copy of the stream. It needs two messages.

        Raises: `Fenced` if this process owns the key no longer, `Unacknowledged` if the outcome is unknown, `Refused`
        for another error of NATS, e.g. a full disk.
        """
        assert (after is not None) < len(messages) <= MAX_MESSAGES
        if after is not None:
            messages = [*messages[:-1], _with(messages[-1], {_SEQUENCE: str(after[1]), _SUBJECT: after[0]})]
        size, window = size_of(messages), self.connection.window
        async with self._lock, window.passing(size):
            return await _write(self.connection, messages, self.headers, window.deadline(size, within))

    async def verify(self, *, within: float = ANSWER_WITHIN) -> None:
        """Read the owner key, which has `value` if this process wrote it last.

        Raises: `Fenced` if another process did; `Unacknowledged` if the answer is older than the key's sequence, as a
        server is behind or the key is gone; `ClusterUnavailable`, `Refused`.
        """
        if not await self.is_newest(within):
            raise Unacknowledged(f"a server is behind, or {self.subject} is gone")

    async def is_newest(self, within: float) -> bool:
        """Read the owner key, and its sequence: it is greater if an earlier rewrite was stored without an answer.

        False if the answer is older than the key's sequence. Raises: as `verify`.
        """
        found = await self.connection.last(self.stream, self.subject, within=within)
        if found is None or seq_of(found) < self.seq:
            return False
        if found.data != self.value:
            raise Fenced(f"another process owns {self.subject}")
        self.seq = seq_of(found)
        return True

    async def rewrite(self, *, within: float = ANSWER_WITHIN) -> int:
        """Write the owner key again, so that it does not pin old sequences. Returns its new sequence, now `seq`.

        Raises: as `write`. After `Unacknowledged` the sequence is unknown, so the next write may raise `Fenced`.
        """
        async with self._lock:
            self.seq = await put(self.connection, self.subject, self.value, expected=self.seq, within=within)
            return self.seq


async def put(
    connection: Connection, subject: str, value: bytes, *, expected: int, within: float = ANSWER_WITHIN
) -> int:
    """Write one key if its last sequence is `expected` (0: if it does not exist). Returns its new sequence.

    Raises: `Fenced` if it is not, `Unacknowledged`, `Refused`.
    """
    return await _send(connection, StreamMessage(subject, value, {_SEQUENCE: str(expected)}), within)


def size_of(messages: Sequence[StreamMessage]) -> int:
    """Return about how many bytes these messages take on the way."""
    return sum(len(message.payload) + OVERHEAD for message in messages)


async def _write(
    connection: Connection, messages: Sequence[StreamMessage], fence: Mapping[str, str], within: float
) -> int:
    if len(messages) == 1:
        return await _send(connection, _with(messages[0], fence), within)
    batch = secrets.token_hex(8)
    headers = [{"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n)} for n in range(1, len(messages) + 1)]
    headers[0] |= fence
    headers[-1]["Nats-Batch-Commit"] = "1"
    parts = list(map(_with, messages, headers))
    try:
        for part in parts[:-1]:
            await connection.publish(part.subject, part.payload, headers=part.headers)
    except ClusterUnavailable as error:  # Without its commit, NATS drops the batch.
        raise Unacknowledged(str(error)) from error
    return await _send(connection, parts[-1], within)


async def _send(connection: Connection, message: StreamMessage, within: float) -> int:
    """Publish a message and return the sequence that its acknowledgement has."""
    try:
        answer = await connection.request(message.subject, message.payload, headers=message.headers, within=within)
        return _stored_seq(answer.data, message.subject)
    except ClusterUnavailable as error:
        raise Unacknowledged(str(error)) from error


def _stored_seq(acknowledgement: bytes, what: str) -> int:
    """Return the sequence that `what` got. Raises: `Fenced`, `Refused`; `ClusterUnavailable` for any other bytes."""
    try:
        return int(answer_of(acknowledgement, what, Stored)["seq"])
    except Refused as error:
        if error.code in STALE:
            raise Fenced(str(error), error.code) from None
        raise


def _with(message: StreamMessage, headers: Mapping[str, str]) -> StreamMessage:
    return StreamMessage(message.subject, message.payload, {**message.headers, **headers})


MAX_BEHIND = 5
"""So many answers without the owner key that this process wrote mean that the key is gone, and not that a server is
behind."""


BATCH_SECONDS = 0.1
"""A server that keeps a stream alone gets a batch if pipelining the messages would take longer than this."""


MEASURED_FROM = 32
"""Messages of the smallest write that is measured: of fewer, most of the time is that of the answer."""


class OwnedStream:
    """The stream of the owner key of `fence`, which is written again after `rewrite_every` seconds of `clock`.

    Only one task may call `write`.
    """

    def __init__(self, fence: Fence, rewrite_every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fence = fence
        self._clock = clock
        self._rewrite_every = rewrite_every
        self._written_at = self._clock()
        """When this process last wrote the owner key."""
        self.replicated = True
        """False if one server keeps the stream alone. Then messages are pipelined, which is faster than a batch."""
        self._message_seconds = 0.0
        """Seconds that a pipelined message took: some milliseconds if the server writes each to its disk."""
        self._lost_batch = False
        """True if a batch may still be under way."""
        self._behind = 0

    async def write(self, messages: Sequence[StreamMessage], within: float) -> int:
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

    async def _write_pipelined(self, messages: Sequence[StreamMessage], within: float) -> int:
        began = self._clock()
        try:
            seq = await write_pipelined(self._fence.connection, messages, self._fence.headers, within)
        except Fenced as error:
            if error.code != NOT_READY:
                raise
            self.replicated = True  # Another collector has raised the replicas: such servers take batches only.
            raise Unacknowledged(str(error)) from error
        if len(messages) >= MEASURED_FROM:
            self._message_seconds = (self._clock() - began) / len(messages)
        return seq

    async def settle(self, within: float) -> None:
        """Have a batch without an acknowledgement refused from now on, unless it is stored. Raises: as `write`."""
        if self._lost_batch or self._clock() - self._written_at >= self._rewrite_every:
            await self._rewrite_owner(within)

    async def _rewrite_owner(self, within: float) -> None:
        """Write the owner key again if this process still owns it."""
        fence = self._fence
        try:
            self._behind = 0 if await fence.is_newest(within) else self._behind + 1
        except ClusterUnavailable as error:
            raise Unacknowledged(str(error)) from error
        self._lost_batch = True
        try:
            await fence.rewrite(within=within)
        except Fenced as error:
            if self._behind >= MAX_BEHIND:
                raise Fenced(f"{fence.subject} is gone") from error
            # An earlier rewrite was stored meanwhile, or there is a new owner, or the answer was old: read it again.
            raise Unacknowledged(str(error)) from error
        self._written_at, self._lost_batch, self._behind = self._clock(), False, 0


async def write_pipelined(
    connection: Connection, messages: Sequence[StreamMessage], fence: Mapping[str, str], within: float
) -> int:
    """Publish fenced messages one after the other, without waiting for each acknowledgement.

    A server that keeps a stream alone checks the fence of each message against what it has stored, so many may be under
    way at once. There this takes a tenth of the time of an atomic batch, which such a server first writes to a folder
    of its own. Servers that replicate a stream refuse all but the first (error 10164). Unlike a batch, some may be
    stored and others not.

    Returns the stream's sequence of the last one. `fence`: the headers of each. Raises: `Fenced` if the fence refused
    one, `Refused` for another error, `Unacknowledged`; some may be stored.
    """
    stored: list[int] = []
    errors: list[CorrelatorError] = []
    complete = asyncio.Event()

    async def on_answer(message: Msg) -> None:
        try:
            if (message.headers or {}).get("Status"):
                raise Unacknowledged("no server responds")
            stored.append(_stored_seq(message.data, f"one of {len(messages)} messages"))
        except CorrelatorError as error:
            errors.append(error)
        if len(stored) + len(errors) == len(messages):
            complete.set()

    size, window, inbox = size_of(messages), connection.window, connection.client.new_inbox()
    try:
        async with connection.subscribed(inbox, on_answer), window.passing(size):
            for message in messages:
                headers = {**message.headers, **fence}
                await connection.publish(message.subject, message.payload, reply=inbox, headers=headers)
            async with asyncio.timeout(window.deadline(size, within)):
                await complete.wait()
    except ClusterUnavailable as error:
        raise Unacknowledged(str(error)) from error
    except TimeoutError:
        missing = len(messages) - len(stored) - len(errors)
        raise Unacknowledged(f"{missing} of {len(messages)} acknowledgements are missing") from None
    if errors:
        raise errors[0]
    return max(stored)
