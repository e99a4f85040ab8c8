"""Light reading of log_events: many rows per statement, in bounded memory.

A row may hold 1 MB, and its size is not known before it is read. So the statement that reads a thousand rows omits long
texts and returns their sizes; a message or attrs that it returns has at most `HEAVY` bytes. `heavy.slices` then reads
the heavy rows as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from correlator.jobs import joblog
from correlator.model.rows import LogRow, Micros
from correlator.sources.db.session import TABLES, Row, Schema, Session, chunks

MESSAGE_COMPARED = 512
"""Characters of a row's message that distinguish it from another row."""

HEAVY = 4_096
"""Bytes of a message or of attrs above which a light reading leaves them out."""


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
