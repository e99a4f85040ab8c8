"""Bookmarks in the log lines of a job: where a page ended, so that the next one misses and repeats nothing. Pure.

Ids become visible out of order. So a place is not only an id: it is the id up to which rows have been read, and the ids
below that were not visible then. Every later page reads those again, for as long as a transaction may live.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from correlator.errors import BadRequest

MAX_SPAN = 50_000
"""Ids below the newest among which missing ones are still read again."""

MAX_TEXT = 3_000
"""Most characters of an encoded place: it has to fit in a URL."""

_VERSION = 1


class Place(Struct, frozen=True):
    """Everything up to `upto` has been read except `holes`: ids that were not visible then."""

    upto: int
    holes: frozenset[int] = frozenset()

    def advance(self, seen_to: int, missing: Iterable[int]) -> Place:
        """The place after everything up to `seen_to` has been read except the ids that were `missing`."""
        return Place(max(self.upto, seen_to), self.holes.union(missing))

    def settle(self, found: Iterable[int]) -> Place:
        """The place after the rows of some holes have been read."""
        return Place(self.upto, self.holes.difference(found))

    def forget(self, floor: int) -> Place:
        """The place without holes up to `floor`: no transaction commits there any more."""
        return Place(self.upto, frozenset(i for i in self.holes if i > floor))

    def encode(self) -> str:
        """The place as text for a URL. If there are too many holes, the oldest are given up."""
        holes = sorted(self.holes)
        while len(text := _encode(self.upto, holes)) > MAX_TEXT:
            holes = holes[len(holes) // 2 :]
        return text


def decode(text: str) -> Place:
    """The place that `encode` encoded. Raises `BadRequest` for any other text."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        version, upto, first, packed = msgspec.msgpack.decode(raw, type=tuple[int, int, int, bytes])
        bits = zlib.decompressobj().decompress(packed, MAX_SPAN // 8 + 1) if packed else b""
    except (ValueError, binascii.Error, msgspec.MsgspecError, zlib.error) as error:
        raise BadRequest("after: expected the next_after of the page before, as it was given") from error
    if version != _VERSION or min(upto, first) < 0:
        raise BadRequest("after: this next_after is from another version; begin without it")
    holes = frozenset(first + 8 * i + b for i, byte in enumerate(bits) if byte for b in range(8) if byte >> b & 1)
    return Place(upto, holes)


def _encode(upto: int, holes: Sequence[int]) -> str:
    first = holes[0] if holes else 0
    bits = bytearray((holes[-1] - first) // 8 + 1) if holes else bytearray()
    for i in holes:
        bits[(i - first) // 8] |= 1 << (i - first) % 8
    packed = zlib.compress(bytes(bits), 9) if bits else b""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((_VERSION, upto, first, packed))).decode().rstrip("=")
