"""What is remembered of the rows that were read, to know them again when the log is not what it was.

The problem: the ids of the log start again lower after TRUNCATE, a restored backup, a crash of the server, or when the
database is a replica that is behind; and people rewrite the log: another precision of `ts`, seven minutes added to all
times. What was read must not be read again as new, and what is new must not pass for what was read.

The model: a mark identifies a row by its id with two checksums. One is of time and message: it never changes while the
row exists, not even when the deletion of its job clears its columns. The other, the shape, is of message and attrs: it
outlasts another time. A row with the time of its mark is the row that was read. One with the shape of its mark alone
may be another one, as many rows are alike. So times count as rewritten only where `ALIKE` marked rows in a row, with
`SHAPES` different shapes, have kept their shapes.

`ResetMarkers` are few, in every checkpoint, and show where to go on. `ReadRows` are many, in memory alone, and tell
whether a row that comes back after a reset is news.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from correlator.jobs import joblog
from correlator.model.rows import LogRow
from correlator.sources.db.queries import HEAVY, MESSAGE_COMPARED

RECENT = 1_024
"""Number of newest rows that are all markers."""

EVERY = 4
LEVELS = 6
PER_LEVEL = 96
"""One of `EVERY` markers that leave a level enters the next. There are `LEVELS` levels of `PER_LEVEL` markers each."""

QUARTER = 900_000_000
"""Microseconds. After a change of the zone a row's time reads differently, by a multiple of a quarter of an hour."""

ALIKE, SHAPES = 4, 3
"""Marked rows in a row that have kept their shapes, and different shapes among them, where their times are others."""

READ_ROWS = 50_000
"""Rows that `ReadRows` remembers, 12 bytes each."""

_PACKED = struct.Struct("<QI")
_SHAPE = struct.Struct("<I")
_UNKNOWN = 0
"""The shape of a mark of an earlier version."""

Mark: TypeAlias = tuple[int, int, int]
"""The id of a row, the checksum of its time and message, and its shape."""


def mark_of(row: LogRow) -> Mark:
    message = row.message[:MESSAGE_COMPARED].encode("utf-8", "surrogatepass")
    at = zlib.crc32(message, zlib.crc32(b"%d " % (row.ts % QUARTER)))
    return row.id, at, zlib.crc32(_attrs(row), zlib.crc32(message)) or 1


def _attrs(row: LogRow) -> bytes:
    """The attrs that a shape has: those that a light reading has too."""
    attrs, message = row.attrs or "", row.message
    if attrs[:1] == joblog.TOO_LONG:
        return b""
    text = attrs.encode("utf-8", "surrogatepass")
    if len(text) > HEAVY or (4 * len(message) > HEAVY and len(message.encode("utf-8", "surrogatepass")) > HEAVY):
        return b""
    return b"\0" + text


def same(row: LogRow, other: LogRow) -> bool:
    """True if both are readings of the same row, not only of the same id."""
    return mark_of(row)[:2] == mark_of(other)[:2]


class ResetMarkers:
    """Rows by which the daemon finds its place again in a log whose ids have started again lower, in order of ids.

    A crash of the server can take back the newest ids, a restored backup takes back more, and TRUNCATE all of them. The
    newest marker that is still the same row shows where to go on. All of the newest rows are markers; of older rows,
    fewer the older they are. So a log that lost n rows is read again from a row at most about n / 30 below its new end,
    for any n. Pure, and small enough for every checkpoint.

    `packed`, `shapes`: what `packed()` and `shapes()` returned in an earlier run.
    """

    def __init__(self, packed: bytes = b"", shapes: bytes = b"") -> None:
        self._levels: tuple[deque[Mark], ...] = tuple(deque[Mark]() for _ in range(1 + LEVELS))
        self._skipped = [0] * len(self._levels)
        self._packed: tuple[bytes, bytes] | None = None
        marks = list(_PACKED.iter_unpack(packed[: len(packed) // _PACKED.size * _PACKED.size]))
        if len(shapes) != len(marks) * _SHAPE.size:
            shapes = bytes(len(marks) * _SHAPE.size)
        known = [(*mark, shape) for mark, (shape,) in zip(marks, _SHAPE.iter_unpack(shapes), strict=True)]
        self._levels[0].extend(known[-RECENT:])
        end = len(known) - RECENT
        for level in self._levels[1:]:
            if end > 0:
                level.extend(known[max(0, end - PER_LEVEL) : end])
            end -= PER_LEVEL

    def add(self, marks: Iterable[Mark]) -> None:
        """Add rows that have been read, in ascending order of id."""
        self._levels[0].extend(marks)
        self._sort_out()

    def add_late(self, marks: Iterable[Mark]) -> None:
        """Add rows that became visible below newer ones, so that none is read again as a new one after a reset.

        Those of before all markers are left out.
        """
        newest = self._levels[0]
        for mark in marks:
            if (at := bisect_left(newest, mark)) or len(newest) < RECENT:
                newest.insert(at, mark)
        self._sort_out()

    def _sort_out(self) -> None:
        """Hand markers down to the levels of older ones, where a level has too many."""
        self._packed = None
        leaving: list[Mark] = []
        for depth, level in enumerate(self._levels):
            level.extend(leaving)
            surplus = [level.popleft() for _ in range(len(level) - (PER_LEVEL if depth else RECENT))]
            leaving = surplus[EVERY - 1 - self._skipped[depth] :: EVERY]
            self._skipped[depth] = (self._skipped[depth] + len(surplus)) % EVERY
            if not leaving:
                break

    def packed(self) -> bytes:
        """The markers for the checkpoint, without their shapes. Their size does not depend on the length of the log."""
        return self._pack()[0]

    def shapes(self) -> bytes:
        """The shapes of the markers for the checkpoint, in the same order."""
        return self._pack()[1]

    def _pack(self) -> tuple[bytes, bytes]:
        if self._packed is None:
            marks = list(self)
            self._packed = (
                b"".join(_PACKED.pack(*mark[:2]) for mark in marks),
                b"".join(_SHAPE.pack(mark[2]) for mark in marks),
            )
        return self._packed

    def __iter__(self) -> Iterator[Mark]:
        """All markers, the oldest first."""
        return chain(*reversed(self._levels))

    def ids(self) -> Iterator[int]:
        """The ids of all markers, the newest first."""
        return (mark[0] for mark in self._newest_first())

    def newest_known(self, rows: Mapping[int, LogRow], down_to: int = 0) -> LogRow | None:
        """The newest row that was read; None if there is none among the markers with ids from `down_to` on.

        `rows`: those of these markers that exist, by id.
        """
        alike: list[LogRow] = []
        shapes: set[int] = set()
        for event_id, at, shape in self._newest_first():
            if event_id < down_to:
                break
            if (row := rows.get(event_id)) is None:
                continue
            _, at_now, shape_now = mark_of(row)
            if at_now == at:
                return row
            if shape == shape_now:
                alike.append(row)
                shapes.add(shape)
                if len(alike) >= ALIKE and len(shapes) >= SHAPES:
                    return alike[0]
            else:
                alike.clear()
                shapes.clear()
        return None

    def renew(self, rows: Mapping[int, LogRow]) -> int:
        """Note that the times of `rows`, by id, are others than when they were read. Returns of how many they are."""
        renewed = 0
        for level in self._levels:
            for n, (event_id, at, shape) in enumerate(level):
                if (row := rows.get(event_id)) is not None:
                    mark = mark_of(row)
                    if mark[2] == shape and mark[1] != at:
                        level[n], renewed = mark, renewed + 1
        self._packed = None
        return renewed

    def cut(self, last: int) -> None:
        """Remove the markers above `last`: their rows are gone or replaced."""
        self._packed = None
        for level in self._levels:
            while level and level[-1][0] > last:
                level.pop()

    def _newest_first(self) -> Iterator[Mark]:
        return chain.from_iterable(reversed(level) for level in self._levels)


class ReadRows:
    """The newest `READ_ROWS` rows that were read in this run, and those among them that a reset took away.

    Between `reset` and `forget`, `is_known` tells whether a row that comes back is one of these.
    """

    def __init__(self, most: int = READ_ROWS) -> None:
        self._most = most
        self._parts: deque[bytes] = deque()
        self._count = 0
        self._away: dict[int, int] = {}

    def add(self, marks: Sequence[Mark]) -> None:
        """Add rows that have been read, some hundred in a call."""
        self._parts.append(b"".join([_PACKED.pack(event_id, at) for event_id, at, _ in marks]))
        self._count += len(marks)
        while self._count > self._most and len(self._parts) > 1:
            self._count -= len(self._parts.popleft()) // _PACKED.size

    def reset(self, last: int) -> None:
        """Note that the rows above `last` have gone, and may come back."""
        found = chain.from_iterable(_PACKED.iter_unpack(part) for part in self._parts)
        self._away |= {event_id: at for event_id, at in found if event_id > last}

    def is_known(self, mark: Mark) -> bool:
        """True if this is a row that went away, and not another one with its id."""
        return self._away.get(mark[0]) == mark[1]

    def forget(self) -> None:
        """Note that what is away does not come back."""
        self._away = {}

    def __bool__(self) -> bool:
        """True while rows may come back."""
        return bool(self._away)
