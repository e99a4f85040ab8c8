"""Fenced atomic batches: several messages that JetStream stores together, and only for the owner of an instance.

Problem. A collector that was stopped for a while must not write after its successor took over. A compare-and-set of
each key is no fence: it passes for every key that the successor has not written yet.

Model. The owner of an instance knows the stream's sequence of its owner key. Every batch asserts by the header
Nats-Expected-Last-Subject-Sequence that this is still the sequence of the owner key
(Nats-Expected-Last-Subject-Sequence-Subject); NATS checks it when the batch is committed, and stores all messages or
none. Taking over writes the owner key, so its sequence changes, and every later batch of the former owner is refused.

Invariants. One batch is in flight per fence, because JetStream refuses a second message with the same expected subject
while the first is not applied (error 10164). A batch whose acknowledgement does not come may have been stored: write
its messages again, they must be idempotent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence

from msgspec import Struct

from correlator.cluster.connection import ANSWER_WITHIN, Connection, answer_of
from correlator.cluster.errors import ClusterUnavailable, Fenced, Refused, Unacknowledged

MAX_MESSAGES = 1000
"""Messages of one batch, a limit of the server."""

OVERHEAD = 250
"""Bytes of a message besides its payload: subject, headers, and what surrounds them."""

NOT_READY = 10164
STALE = (10071, NOT_READY)
"""NATS's codes for a wrong expected sequence: 10164 while an earlier message of that subject is being stored."""

_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
_NO_HEADERS: Mapping[str, str] = {}


class Message(Struct, frozen=True):
    """One message of a batch."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] = _NO_HEADERS


class Fence:
    """The owner key at `subject`, which had sequence `seq` when this process wrote it. All batches go through it."""

    def __init__(self, connection: Connection, subject: str, seq: int) -> None:
        self._connection = connection
        self._subject = subject
        self._lock = asyncio.Lock()
        self.seq = seq

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a message that is to be stored only for the owner."""
        return {_SEQUENCE: str(self.seq), _SUBJECT: self._subject}

    async def write(
        self, messages: Sequence[Message], *, after: tuple[str, int] | None = None, within: float = ANSWER_WITHIN
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
        async with self._lock:
            return await _write(self._connection, messages, self.headers, within)

    async def verify(self, stream: str, value: bytes, *, within: float = ANSWER_WITHIN) -> None:
        """Read the owner key, which has `value` if this process wrote it last.

        Raises: `Fenced` if another process did; `Unacknowledged` if the answer is older than the key's sequence, as a
        server is behind or the key is gone; `ClusterUnavailable`, `Refused`.
        """
        found = await self._connection.last(stream, self._subject, within=within)
        if found is None or int((found.headers or {})["Nats-Sequence"]) < self.seq:
            raise Unacknowledged(f"a server is behind, or {self._subject} is gone")
        if found.data != value:
            raise Fenced(f"another process owns {self._subject}")

    async def rewrite(self, value: bytes, *, within: float = ANSWER_WITHIN) -> int:
        """Write the owner key again, so that it does not pin old sequences. Returns its new sequence, now `seq`.

        Raises: as `write`. After `Unacknowledged` the sequence is unknown, so the next write may raise `Fenced`.
        """
        async with self._lock:
            self.seq = await put(self._connection, self._subject, value, expected=self.seq, within=within)
            return self.seq


async def put(
    connection: Connection, subject: str, value: bytes, *, expected: int, within: float = ANSWER_WITHIN
) -> int:
    """Write one key if its last sequence is `expected` (0: if it does not exist). Returns its new sequence.

    Raises: `Fenced` if it is not, `Unacknowledged`, `Refused`.
    """
    return await _send(connection, Message(subject, value, {_SEQUENCE: str(expected)}), within)


async def _write(connection: Connection, messages: Sequence[Message], fence: Mapping[str, str], within: float) -> int:
    size = size_of(messages)
    async with connection.window.passing(size):
        return await _write_now(connection, messages, fence, connection.window.deadline(size, within))


def size_of(messages: Sequence[Message]) -> int:
    """Return about how many bytes these messages take on the way."""
    return sum(len(message.payload) + OVERHEAD for message in messages)


async def _write_now(
    connection: Connection, messages: Sequence[Message], fence: Mapping[str, str], within: float
) -> int:
    if len(messages) == 1:
        return await _send(connection, _with(messages[0], fence), within)
    batch = secrets.token_hex(8)
    for number, message in enumerate(messages, 1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        if number == 1:
            headers |= fence
        if number == len(messages):
            return await _send(connection, _with(message, headers | {"Nats-Batch-Commit": "1"}), within)
        try:
            sent = _with(message, headers)
            await connection.publish(sent.subject, sent.payload, headers=sent.headers)
        except ClusterUnavailable as error:  # Without its commit, NATS drops the batch.
            raise Unacknowledged(str(error)) from error
    raise AssertionError("no messages")


async def _send(connection: Connection, message: Message, within: float) -> int:
    """Publish a message and return the sequence that its acknowledgement has."""
    try:
        answer = await connection.request(message.subject, message.payload, headers=message.headers, within=within)
        found = answer_of(answer.data)
    except ClusterUnavailable as error:
        raise Unacknowledged(str(error)) from error
    if refusal := found.get("error"):
        code, text = refusal.get("err_code", 0), refusal.get("description", "refused")
        raise (Fenced if code in STALE else Refused)(f"{text} ({message.subject})", code)
    return int(found["seq"])


def _with(message: Message, headers: Mapping[str, str]) -> Message:
    return Message(message.subject, message.payload, {**message.headers, **headers})
