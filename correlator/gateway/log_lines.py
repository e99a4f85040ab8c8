"""The log lines of collectors at a gateway: they are counted, and a line waits until its job's document includes it.

Lines come over core NATS, which is faster than the stream and keeps nothing: a gap in their numbers is the number of
lines that were lost. A collector that starts again numbers from the beginning, under another `run`.

A line may bring its job into the filter of a subscription, or be the first of its job. So it is passed on after the
document that it changed, as in a daemon: every line is the last message of its job for a moment, so a document whose
last message is not older includes it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from msgspec import Raw, Struct

from correlator.bounded import BoundedDict, Schedule
from correlator.cluster import received
from correlator.jobs import encoding
from correlator.model.document import EXACT, Count
from correlator.model.facts import AttributedRow, Entry
from correlator.model.rows import Int64, Level, Micros

AT_ONCE = 50
"""Lines of a message that are parsed, and passed on, before other tasks run."""

MAX_ATTRS = 130_000
"""Bytes of the attrs of a line. Collectors write no larger ones."""

WAIT_FOR = 2.0
"""Seconds that a line waits for the document of its job."""

MAX_WAITING = 4_000_000
"""Bytes of waiting lines, about; the oldest are dropped first."""

OVERHEAD = 500

MAX_SEEN = 50_000
"""The number of lines that are remembered, so that none is passed on twice."""


class _Line(Struct):
    job_id: str
    event_id: Int64
    level: Level
    message: str
    at: str
    step_id: Int64 | None = None
    attrs: Raw = Raw(b"null")


class _Lines(Struct):
    run: str
    first: Count
    lines: list[_Line]


class LineBatch(NamedTuple):
    """Some lines of one message. `first`: the number of the first of them in the collector's `run`."""

    run: str
    first: int
    rows: list[AttributedRow]


def batches(payload: bytes) -> Iterator[LineBatch]:
    """Parse a message of a collector, at most `AT_ONCE` lines in each step. Raises: `Unreadable`."""
    found = received.decode(payload, _Lines, received.MAX_MESSAGE)
    for start in range(0, len(found.lines), AT_ONCE):
        lines = found.lines[start : start + AT_ONCE]
        yield LineBatch(found.run, found.first + start, [_row(line) for line in lines])


class ReceivedLines:
    """The numbers of the lines of each instance, and the lines that wait."""

    def __init__(self) -> None:
        self._next: dict[str, tuple[str, int]] = {}
        """The run of each instance, and the number of its next line."""
        self._waiting: dict[tuple[str, str], deque[tuple[float, AttributedRow, int]]] = {}
        """By instance and job ID, the oldest first: (since when, line, size)."""
        self._oldest = Schedule[tuple[str, str]]()
        """Since when the first line of each of them waits."""
        self._size = 0
        self._seen: BoundedDict[int, None] = BoundedDict(MAX_SEEN)
        """The hashes of the last lines."""

    def read(
        self, instance: str, found: LineBatch, last_at: Callable[[str], Micros | None]
    ) -> tuple[list[AttributedRow], int]:
        """Take lines of a message. Returns those to publish, and the number of lines that were lost.

        `last_at`: the time of the last message in a job's document, or None.
        """
        rows = [row for row in found.rows if self._is_new(instance, row)]
        run, expected = self._next.get(instance, (found.run, found.first))
        lost = max(0, found.first - expected) if run == found.run else 0
        self._next[instance] = (found.run, found.first + len(found.rows))
        ready = []
        for row in rows:
            assert row.job_id is not None
            at = last_at(row.job_id) if (instance, row.job_id) not in self._waiting else None
            if at is None or at < row.entry.at:
                lost += self._wait(instance, row.job_id, row)
            else:
                ready.append(row)
        return ready, min(lost, EXACT)

    def appeared(self, instance: str, documents: Iterable[tuple[str, Micros]]) -> list[AttributedRow]:
        """Return the lines that documents include: job ID, and the time of the last message."""
        lines: list[AttributedRow] = []
        if self._waiting:
            for job_id, at in documents:
                waiting = self._waiting.get((instance, job_id), deque())
                while waiting and waiting[0][1].entry.at <= at:
                    _, row, size = waiting.popleft()
                    self._size -= size
                    lines.append(row)
                if waiting:
                    self._oldest.put((instance, job_id), waiting[0][0])
                else:
                    self._pop(instance, job_id)
        return lines

    def expire(self, now: float, is_known: Callable[[str, str], bool]) -> dict[str, list[AttributedRow]]:
        """Return the lines that have waited for too long, by instance, of jobs that `is_known` (that, job ID) knows.

        The others are given up: nobody follows a job that no document names.
        """
        lines: dict[str, list[AttributedRow]] = {}
        for instance, job_id in self._oldest.pop_until(now - WAIT_FOR, len(self._oldest)):
            rows = self._pop(instance, job_id)
            if is_known(instance, job_id):
                lines.setdefault(instance, []).extend(rows)
        return lines

    def _is_new(self, instance: str, row: AttributedRow) -> bool:
        """False for a line that has come already: a successor reads the last rows of its predecessor again."""
        key = hash((instance, row.entry.event_id, row.entry.at))
        if key in self._seen:
            return False
        self._seen[key] = None
        return True

    def _wait(self, instance: str, job_id: str, row: AttributedRow) -> int:
        """Have a line wait. Returns the number of lines that were dropped to make room."""
        size = OVERHEAD + len(row.entry.message) + len(encoding.encode(row.entry.attrs))
        waiting = self._waiting.setdefault((instance, job_id), deque())
        waiting.append((time.monotonic(), row, size))
        self._oldest.put((instance, job_id), waiting[0][0])
        self._size += size
        dropped = 0
        while self._size > MAX_WAITING and (oldest := self._oldest.first()) is not None:
            dropped += len(self._pop(*oldest[1]))
        return dropped

    def _pop(self, instance: str, job_id: str) -> list[AttributedRow]:
        """Have no line of a job wait any more. Returns those that waited."""
        self._oldest.discard((instance, job_id))
        waiting = self._waiting.pop((instance, job_id), ())
        self._size -= sum(size for _, _, size in waiting)
        return [row for _, row, _ in waiting]


def _row(line: _Line) -> AttributedRow:
    at, attrs = received.time_of(line.at), received.decode(line.attrs, Any, MAX_ATTRS)
    entry = Entry(line.event_id, at, line.level, line.message, 0, line.job_id, line.step_id, by="column", attrs=attrs)
    return AttributedRow(entry, line.job_id, "column")
