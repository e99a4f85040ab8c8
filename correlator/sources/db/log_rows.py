"""Rows of log_events, many per statement, in bounded memory.

A row may hold 1 MB, and its size is not known before it is read. So the statement that reads a thousand rows omits long
texts and returns their sizes: a light reading. A message or attrs that it returns has at most `HEAVY` bytes. `slices`
then reads the heavy rows as a whole, a few at a time; its caller processes and drops each part before the next is read.
`BatchSize` adapts the rows of a statement to what the database can send before its deadline.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.model.rows import LogRow, Micros
from correlator.sources.db.session import TABLES, Row, Schema, Session, chunks

MESSAGE_COMPARED = 512
"""Characters of a row's message that distinguish it from another row."""

HEAVY = 4_096
"""Bytes of a message or of attrs above which a light reading leaves them out."""

SLICE_BYTES = 1 << 20
SLICE_ROWS = 250
"""Most bytes and most rows of one part; a single row may exceed the bytes."""

ReadWhole: TypeAlias = Callable[[Session, Sequence[int]], Awaitable[Sequence[LogRow]]]
"""Reads the rows of these ids as a whole, as `Queries.rows_in` does."""

Slice: TypeAlias = tuple[Sequence[LogRow], Sequence[LogRow]]
"""The same rows twice: as the light reading returned them, and as a whole."""

SMALLEST = 2
"""Fewest rows per read. For the tail, the row at the head is one of them."""


class LightLog:
    """The light queries, for the schema of one appliance.

    Args:
        expression: The SQL expression of a column.
        read: `Queries.log_row`.
    """

    def __init__(
        self,
        schema: Schema,
        expression: Callable[[str], str],
        read: Callable[[Row, Micros | None, Micros | None], LogRow],
    ) -> None:
        self._read = read
        self._columns = ", ".join(_light(schema, c) or expression(c) for c in TABLES["log_events"])

    async def rows_from(
        self, session: Session, first: int, limit: int, *, last: int | None = None, after: Micros | None = None
    ) -> list[LogRow]:
        """The rows with id ≥ `first` (and ≤ `last`), in the order of their ids.

        `after`: the time of the row before, which resolves local times that a DST change repeats; None if the rows
        have just been written.
        """
        upto = "" if last is None else f" AND id <= {int(last)}"
        rows = await session.query(
            f"SELECT {self._columns} FROM log_events WHERE id >= {int(first)}{upto} ORDER BY id LIMIT {limit}"
        )
        if after is None:
            return self._just_written(rows)
        found = []
        for row in rows:
            found.append(self._light_row(row, since=after))
            after = found[-1].ts or after
        return found

    async def rows_upto(self, session: Session, last: int, limit: int) -> list[LogRow]:
        """The rows with id ≤ `last`, the newest first."""
        return self._just_written(
            await session.query(
                f"SELECT {self._columns} FROM log_events WHERE id <= {int(last)} ORDER BY id DESC LIMIT {limit}"
            )
        )

    async def rows_in(self, session: Session, ids: Sequence[int]) -> list[LogRow]:
        """The rows of `ids`, which have just been written, in any order."""
        found: list[LogRow] = []
        for part in chunks(ids):
            rows = await session.query(
                f"SELECT {self._columns} FROM log_events WHERE id IN ({','.join(map(str, part))})"
            )
            found += self._just_written(rows)
        return found

    def _just_written(self, rows: Sequence[Row]) -> list[LogRow]:
        now = time.time_ns() // 1000
        return [self._light_row(row, now) for row in rows]

    def _light_row(self, row: Row, near: Micros | None = None, since: Micros | None = None) -> LogRow:
        attrs: Any = row[6]
        if attrs is not None and (isinstance(attrs, int) or attrs.isdigit()):
            row = (*row[:6], f"{joblog.TOO_LONG}{attrs}", *row[7:])
        return self._read(row, near, since)


async def slices(read_whole: ReadWhole, session: Session, rows: Sequence[LogRow]) -> AsyncIterator[Slice]:
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
            yield await _whole(read_whole, session, part, heavy)
            part, heavy, room = [], [], SLICE_BYTES
        part.append(row)
        room -= size
        if attrs is not None and attrs.startswith(joblog.TOO_LONG):
            heavy.append(row.id)
    if part:
        yield await _whole(read_whole, session, part, heavy)


async def _whole(read_whole: ReadWhole, session: Session, part: list[LogRow], heavy: list[int]) -> Slice:
    if not heavy:
        return part, part
    found = {row.id: row for row in await read_whole(session, heavy)}
    # A row that has been deleted meanwhile stays as the light reading returned it.
    gone = {i: replace(row, attrs=None) for row in part if (i := row.id) in heavy and i not in found}
    return part, [replace(found[r.id], ts=r.ts) if r.id in found else gone.get(r.id, r) for r in part]


def _marked(attrs: str) -> int:
    size = attrs[len(joblog.TOO_LONG) :]
    return int(size) if size.isdigit() else 0


def _light(schema: Schema, column: str) -> str | None:
    """The expression of a column that may be heavy; a number in place of attrs is the bytes of message and attrs."""
    attrs = "attrs" if schema.has("log_events", "attrs") else "NULL"
    if column == "message":
        return f"CASE WHEN LENGTH(message) > {HEAVY} THEN SUBSTR(message, 1, {MESSAGE_COMPARED}) ELSE message END"
    if column == "attrs":
        return (
            f"CASE WHEN LENGTH(message) > {HEAVY} OR LENGTH({attrs}) > {HEAVY}"
            f" THEN LENGTH(message) + COALESCE(LENGTH({attrs}), 0) ELSE {attrs} END"
        )
    return None


@dataclass(slots=True)
class BatchSize:
    """`rows` per read, at most `most`. A read of less than `quick` seconds doubles the next, a failed one halves it."""

    most: int = 1000
    quick: float = 1.0
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.most

    def succeeded(self, seconds: float) -> None:
        if seconds < self.quick:
            self.rows = min(self.most, self.rows * 2)

    def failed(self) -> None:
        """Rows of 1 MB each may not arrive within the deadline."""
        self.rows = max(SMALLEST, self.rows // 2)
