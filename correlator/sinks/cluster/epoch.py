"""The epoch of the cluster: a random text that changes when positions in the stream lose their meaning.

A client resumes from (epoch, sequence). Sequences start again if the stream is deleted and created again, and they go
back if it is restored from a backup or loses acknowledged messages in a crash. A collector remembers the epoch, when
the stream was created, and the highest sequence that was acknowledged; if these do not agree with the stream, it
writes a new epoch, and gateways send their clients a new snapshot. All instances share the key: the first collector
that finds the old epoch replaces it by compare-and-set, and the others find the new one.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import NamedTuple

import msgspec
from msgspec import Struct

from correlator.cluster import keys, received, streams
from correlator.cluster.batches import put
from correlator.cluster.connection import Connection
from correlator.cluster.errors import Fenced, Unacknowledged


class Position(Struct, frozen=True):
    """What a collector remembers of the stream, also across restarts. `acknowledged`: the highest sequence."""

    epoch: str
    created: str
    acknowledged: int

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def decode(value: bytes | None) -> Position | None:
    """Return what was encoded, or None if there is nothing that this version can read."""
    try:
        return msgspec.msgpack.decode(value, type=Position) if value is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def has_gone_back(known: Position, epoch: str, created: str, last_seq: int) -> bool:
    """True if the stream with this state is not the one that `known` describes, and still has its epoch."""
    return known.epoch == epoch and (created != known.created or last_seq < known.acknowledged)


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
    if epoch is not None and (known is None or not has_gone_back(known, epoch, created, last_seq)):
        acknowledged = known.acknowledged if known is not None and known.epoch == epoch else 0
        return Checked(Position(epoch, created, acknowledged), replaced=False, replicas=replicas)
    epoch = secrets.token_hex(6)
    expected = int((found.headers or {})["Nats-Sequence"]) if found is not None else 0
    try:
        await put(connection, keys.EPOCH, epoch.encode(), expected=expected, within=within)
    except Fenced as error:  # Another collector was faster: read it again.
        raise Unacknowledged(str(error)) from error
    return Checked(Position(epoch, created, 0), replaced=True, replicas=replicas)
