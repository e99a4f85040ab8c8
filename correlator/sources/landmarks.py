"""Rows by which the log is known again where its ids have started anew lower: what is still the same has been read.

A crash of the server takes the newest ids back, a restored backup more of them; TRUNCATE leaves none. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from correlator.jobs.model import LogRow, Micros

RECENT = 1_000
"""Rows that are all remembered."""

EVERY = 100
OLDER = 4_000
"""Of older rows one in so many is, and this many of them."""

_Mark = tuple[int, Micros, int]


class Landmarks:
    """In the order of their ids. A row is its id, its time and its text: the rest of a row may change later."""

    def __init__(self) -> None:
        self._recent: deque[_Mark] = deque()
        self._older: deque[_Mark] = deque(maxlen=OLDER)
        self._skipped = 0

    def add(self, rows: Iterable[LogRow]) -> None:
        """Rows that were read, each higher than the last."""
        self._recent.extend(_mark(row) for row in rows)
        while len(self._recent) > RECENT:
            oldest = self._recent.popleft()
            self._skipped += 1
            if self._skipped == EVERY:
                self._skipped = 0
                self._older.append(oldest)

    def ids(self) -> Iterator[int]:
        """The newest first."""
        return (mark[0] for mark in chain(reversed(self._recent), reversed(self._older)))

    def newest_of(self, rows: Iterable[LogRow]) -> LogRow | None:
        """The highest of `rows` that is still the same."""
        wanted = {row.id: row for row in rows}
        known = (m for m in chain(reversed(self._recent), reversed(self._older)) if m[0] in wanted)
        return next((wanted[m[0]] for m in known if _mark(wanted[m[0]]) == m), None)

    def cut(self, last: int) -> None:
        """What is above `last` is another row now, or none."""
        self._recent = deque(m for m in self._recent if m[0] <= last)
        self._older = deque((m for m in self._older if m[0] <= last), maxlen=OLDER)


def _mark(row: LogRow) -> _Mark:
    return row.id, row.ts, hash(row.message)
