"""Growth: how running jobs that only go on differ from their documents in the stream, many jobs in one message.

Problem. Most changes say only that a running job has another log row and another duration. A document of each would
have every gateway receive and parse kilobytes for a line of text.

Model. A page is one key of the stream. Its message has the `Growth` of some jobs: the members that a job that goes on
changes (`published.goes_on`), from which a gateway derives all others (`encoding.grown`). Growth is not a sequence of
patches: each names, by its checksum, the document in the stream that it continues, and has all that has changed since.
So the newest message of a page and the newest document of a job are enough, whatever came between them.

Invariant. Growth whose document is not the one that the stream has is passed over. Then that document is newer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from correlator.model.rows import Level

PAGES: Final = 64
"""Pages of one appliance."""

PAGE_JOBS: Final = 64
"""Most jobs of one page. A job that finds no page free is written as a whole document."""

MAX_GROWTH: Final = 1_000
"""Bytes of one growth. A job with more is written as a whole document."""

MAX_PAGE: Final = PAGE_JOBS * (MAX_GROWTH + 1) + 2
"""Bytes of a page."""

_Time: TypeAlias = Annotated[int, Meta(ge=-62_135_596_800_000_000, le=253_402_300_799_999_999)]
"""Microseconds since 1970, in the years that RFC 3339 can express."""


class Growth(Struct, frozen=True, gc=False, array_like=True):
    """What a running job has that its document of the same `checksum` has not: `updated_at`, and its last log row."""

    job_id: str
    checksum: int
    updated_at: _Time
    at: _Time
    level: Level
    text: Annotated[str, Meta(max_length=MAX_GROWTH)]


Page: TypeAlias = Annotated[list[Growth], Meta(max_length=PAGE_JOBS)]


def checksum(stored: bytes) -> int:
    """Return the checksum of a document as the stream has it."""
    return zlib.crc32(stored)


def encode(growth: Growth) -> bytes | None:
    """Return the text of a growth; None if it is too long, or JSON cannot express it."""
    try:
        encoded = msgspec.json.encode(growth)
    except UnicodeEncodeError:
        return None
    return encoded if len(encoded) <= MAX_GROWTH else None


def page(encoded: Iterable[bytes]) -> bytes:
    """Return the payload of a page of these growths."""
    return b"[%b]" % b",".join(encoded)
