"""Heavy rows of log_events, read as a whole, a few at a time.

`slices` takes the rows of a light reading (`light`). The caller processes and drops each part before the next is read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.model.rows import LogRow
from correlator.sources.db.light import HEAVY
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session

SLICE_BYTES = 1 << 20
SLICE_ROWS = 250
"""Most bytes and most rows of one part; a single row may exceed the bytes."""

Slice: TypeAlias = tuple[Sequence[LogRow], Sequence[LogRow]]
"""The same rows twice: as the light reading returned them, and as a whole."""


async def slices(queries: Queries, session: Session, rows: Sequence[LogRow]) -> AsyncIterator[Slice]:
    """Split the `rows` of a light reading into parts, each small enough for one call of the feed."""
    part: list[LogRow] = []
    room = SLICE_BYTES
    heavy: list[int] = []
    for row in rows:
        attrs = row.attrs
        if attrs is None:
            size = len(row.message)
        elif attrs.startswith(joblog.TOO_LONG):
            size = min(_marked(attrs), joblog.MAX_ATTRS) + HEAVY
        else:
            size = len(row.message) + len(attrs)
        if part and (size > room or len(part) >= SLICE_ROWS):
            yield await _whole(queries, session, part, heavy)
            part, heavy, room = [], [], SLICE_BYTES
        part.append(row)
        room -= size
        if attrs is not None and attrs.startswith(joblog.TOO_LONG):
            heavy.append(row.id)
    if part:
        yield await _whole(queries, session, part, heavy)


async def _whole(queries: Queries, session: Session, part: list[LogRow], heavy: list[int]) -> Slice:
    if not heavy:
        return part, part
    found = {row.id: row for row in await queries.rows_in(session, heavy)}
    # A row that has been deleted meanwhile stays as the light reading returned it.
    gone = {i: replace(row, attrs=None) for row in part if (i := row.id) in heavy and i not in found}
    return part, [replace(found[r.id], ts=r.ts) if r.id in found else gone.get(r.id, r) for r in part]


def _marked(attrs: str) -> int:
    size = attrs[len(joblog.TOO_LONG) :]
    return int(size) if size.isdigit() else 0
