"""Reset markers: rows by which the daemon finds its place again in a log whose ids have started again lower.

A crash of the server can take back the newest ids, a restored backup takes back more, and TRUNCATE all of them. The
newest marker that is still the same row shows where to go on. All of the newest rows are markers; of older rows, fewer
the older they are. So a log that lost n rows is read again from a row at most about n / 30 below its new end, for any
n. Pure, and small enough for every checkpoint.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from correlator.model.rows import LogRow
from correlator.sources.db.log_rows import MESSAGE_COMPARED

RECENT = 1_024
"""Number of newest rows that are all markers."""

EVERY = 4
LEVELS = 6
PER_LEVEL = 96
"""One of `EVERY` markers that leave a level enters the next. There are `LEVELS` levels of `PER_LEVEL` markers each."""

QUARTER = 900_000_000
"""Microseconds. After a change of the zone a row's time reads differently, by a multiple of a quarter of an hour."""

_PACKED = struct.Struct("<QI")

_Mark = tuple[int, int]


class LogReset(Exception):
    """The ids of log_events have started again lower: TRUNCATE, a restored backup, or a crash of the server."""


class ResetMarkers:
    """Markers in the order of their ids. Rows are the same if id, time and message are: the rest may change later.

    `packed`: what `packed()` returned in an earlier run.
    """

    def __init__(self, packed: bytes = b"") -> None:
        self._levels: tuple[deque[_Mark], ...] = tuple(deque[_Mark]() for _ in range(1 + LEVELS))
        self._skipped = [0] * len(self._levels)
        self._packed: bytes | None = None
        known = list(_PACKED.iter_unpack(packed[: len(packed) // _PACKED.size * _PACKED.size]))
        self._levels[0].extend(known[-RECENT:])
        end = len(known) - RECENT
        for level in self._levels[1:]:
            if end > 0:
                level.extend(known[max(0, end - PER_LEVEL) : end])
            end -= PER_LEVEL

    def add(self, rows: Iterable[LogRow]) -> None:
        """Add rows that have been read, in ascending order of id."""
        self._levels[0].extend(map(_mark, rows))
        self._sort_out()

    def add_late(self, rows: Iterable[LogRow]) -> None:
        """Add rows that became visible below newer ones, so that none is read again as a new one after a reset.

        Those of before all markers are left out.
        """
        newest = self._levels[0]
        for mark in map(_mark, rows):
            if (at := bisect_left(newest, mark)) or len(newest) < RECENT:
                newest.insert(at, mark)
        self._sort_out()

    def _sort_out(self) -> None:
        """Hand markers down to the levels of older ones, where a level has too many."""
        self._packed = None
        leaving: list[_Mark] = []
        for depth, level in enumerate(self._levels):
            level.extend(leaving)
            leaving = []
            while len(level) > (PER_LEVEL if depth else RECENT):
                mark = level.popleft()
                self._skipped[depth] = (self._skipped[depth] + 1) % EVERY
                if not self._skipped[depth]:
                    leaving.append(mark)
            if not leaving:
                break

    def packed(self) -> bytes:
        """The markers for the checkpoint. Their size does not depend on the length of the log."""
        if self._packed is None:
            self._packed = b"".join(_PACKED.pack(*mark) for mark in chain(*reversed(self._levels)))
        return self._packed

    def ids(self) -> Iterator[int]:
        """The ids of all markers, the newest first."""
        return (mark[0] for mark in self._newest_first())

    def newest_of(self, rows: Iterable[LogRow]) -> LogRow | None:
        """The highest of `rows` that is still the same row as its marker; None if there is none."""
        wanted = {row.id: row for row in rows}
        known = (m for m in self._newest_first() if m[0] in wanted)
        return next((wanted[m[0]] for m in known if _mark(wanted[m[0]]) == m), None)

    def cut(self, last: int) -> None:
        """Remove the markers above `last`: their rows are gone or replaced."""
        self._packed = None
        for level in self._levels:
            while level and level[-1][0] > last:
                level.pop()

    def _newest_first(self) -> Iterator[_Mark]:
        return chain.from_iterable(reversed(level) for level in self._levels)


def same(row: LogRow, other: LogRow) -> bool:
    """True if both are readings of the same row, not only of the same id."""
    return row.id == other.id and _mark(row) == _mark(other)


def _mark(row: LogRow) -> _Mark:
    # Deleting a job sets job_id and step_id of its rows to NULL; the rest of a row never changes.
    text = f"{row.ts % QUARTER} {row.message[:MESSAGE_COMPARED]}"
    return row.id, zlib.crc32(text.encode("utf-8", "surrogatepass"))
