"""The epoch of the cluster: a random text that changes when positions in the stream lose their meaning.

A client resumes from (epoch, sequence). Sequences start again if the stream is deleted and created again, and they go
back if it is restored from a backup or loses acknowledged messages in a crash. A collector remembers the epoch, when
the stream was created, the highest sequence that was acknowledged, and one document with its sequence, as other
instances may have written past a loss; if these do not agree with the stream, it writes a new epoch, and gateways send
their clients a new snapshot. All instances share the key: the first collector that finds the old epoch replaces it by
compare-and-set, and the others find the new one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from correlator.cluster import keys, received, streams
from correlator.cluster.connection import Connection, Fenced, Unacknowledged, seq_of
from correlator.cluster.fence import StreamMessage, put

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


def decode(value: bytes | None) -> Position | None:
    """Return what was encoded, or None if there is nothing that can be read."""
    try:
        return msgspec.msgpack.decode(value, type=Position) if value is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


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


async def check(connection: Connection, known: Position | None, within: float) -> Checked:
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
    epoch = connection.parser.parse(keys.EPOCH, partial(received.epoch, found.data)) if found is not None else None
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
