"""The form in which the checkpoint keeps a pending event: a head, which is encoded here, and the body of the request.

The checkpoint knows neither. It shares the bytes of the body with the queue.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from correlator.jobs.model.changes import Event


class StoredDelivery(Struct, frozen=True, tag="delivery"):
    """The head of an event with a body, for one webhook. `at`: Unix seconds at which it was added."""

    webhook: str
    job_id: str
    message_id: str
    at: float


class StoredArrival(Struct, frozen=True, tag="arrival"):
    """The head of an event whose body has not been made: it is sent to every webhook that wants it."""

    event: Event
    at: float


Stored = StoredDelivery | StoredArrival
_DECODER: msgspec.msgpack.Decoder[Stored] = msgspec.msgpack.Decoder(Stored)


def encode(head: Stored) -> bytes | None:
    """Return None for a text that has no encoding (a lone surrogate): such an event does not survive a restart."""
    try:
        return msgspec.msgpack.encode(head)
    except ValueError:
        return None


def decode(value: bytes) -> Stored | None:
    """Return what was encoded, or None if it cannot be read."""
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
