"""The IDs that clients of a gateway wait for, as gateways publish them for collectors.

A client may ask for a job before its first row is committed. While somebody waits for an unknown ID, a gateway
publishes it every `WANT_EVERY` seconds, and the collectors query for it as often as for their own clients during
`WANTED_FOR` seconds: longer, so that a message may be lost. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from correlator.cluster.received import decode
from correlator.model.document import MAX_ID

WANT_EVERY = 20.0
WANTED_FOR = 30.0

MAX_IDS = 100
"""Most IDs in one message."""

MAX_MESSAGE_BYTES = 128_000
"""A larger message is dropped."""


class Want(Struct, frozen=True, omit_defaults=True):
    """IDs that clients wait for. `instance`: the appliance that is asked for them; None: all."""

    ids: tuple[str, ...] = ()
    instance: str | None = None


def encode(ids: Iterable[str], instance: str | None = None) -> bytes:
    """Encode at most `MAX_IDS` IDs."""
    return msgspec.json.encode(Want(tuple(ids)[:MAX_IDS], instance))


def wanted_ids(message: bytes, instance: str) -> tuple[str, ...]:
    """Return the IDs of a message that `instance` is to query for. Raises: `Unreadable`."""
    want = decode(message, Want, MAX_MESSAGE_BYTES)
    if want.instance not in (None, instance):
        return ()
    return tuple(name for name in want.ids[:MAX_IDS] if 0 < len(name) <= MAX_ID)
