"""Where a page of log lines ended, so that the next one misses nothing and repeats nothing. Pure.

Ids become visible out of order. So a place is not an id alone: it is how far the reader has come, and which ids below
were not there yet. Those are looked for again in every later page, for as long as a transaction may live.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Collection, Iterable, Sequence

import msgspec
from msgspec import Struct

from correlator.errors import BadRequest

MAX_SPAN = 50_000
"""Ids below the newest among which a late one is still looked for."""

MAX_TEXT = 3_000
"""Characters of a place: it has to fit in a URL."""

_VERSION = 1


class Place(Struct, frozen=True):
    """Everything up to `upto` has been told, but `holes`: ids that were not visible then."""

    upto: int
    holes: frozenset[int] = frozenset()

    def wants(self, event_id: int) -> bool:
        return event_id > self.upto or event_id in self.holes

    def ranges(self, above: int, last: int) -> list[tuple[int, int]]:
        """Where to look for what is wanted above one id and up to another: the span of the holes, and what is new."""
        spans = [(min(self.holes), max(self.holes))] if self.holes else []
        spans.append((self.upto + 1, last))
        return [(a, b) for a, b in ((max(a, above + 1), b) for a, b in spans) if a <= b]

    def advance(self, seen_to: int, visible: Collection[int], told: Iterable[int], floor: int) -> Place:
        """The place after a page for which everything wanted up to `seen_to` was looked at.

        `visible`: the ids above `floor` that were there before the page was read; `told`: the ids of its lines.
        """
        new = range(max(self.upto, floor) + 1, seen_to + 1)
        wanted = {*new, *(i for i in self.holes if floor < i <= seen_to)}
        later = {i for i in self.holes if i > max(seen_to, floor)}
        return Place(max(self.upto, seen_to), frozenset((wanted - set(visible) - set(told)) | later))

    def encode(self) -> str:
        """As text for a URL. Where there are too many holes, the oldest are given up."""
        holes = sorted(self.holes)
        while len(text := _encode(self.upto, holes)) > MAX_TEXT:
            holes = holes[len(holes) // 2 :]
        return text


def decode(text: str) -> Place:
    """Raises `BadRequest` for a text that `encode` did not make."""
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
