"""The log lines of collectors at a gateway: they are counted, and a line waits until its job's document includes it.

Lines come over core NATS, which is faster than the stream and keeps nothing: a gap in their numbers is the number of
lines that were lost. A collector that starts again numbers from the beginning, under another `run`.

A line may bring its job into the filter of a subscription, or be the first of its job. So it is passed on after the
document that it changed, as in a daemon: every line is the last message of its job for a moment, so a document whose
last message is not older includes it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
"""Bytes of waiting lines, about. Beyond it the oldest of the appliance that has most are dropped."""

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


class _WaitingLines:
    """The lines of one appliance that wait. `size`: their bytes, about."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.size = 0
        self._of: dict[str, deque[tuple[float, AttributedRow, int]]] = {}
        """By job ID, the oldest first: (since when, line, size)."""
        self._oldest = Schedule[str]()
        """Since when the first line of each job waits."""

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._of

    def add(self, job_id: str, row: AttributedRow) -> int:
        """Have a line wait. Returns its size."""
        size = OVERHEAD + len(row.entry.message) + len(encoding.encode(row.entry.attrs))
        lines = self._of.setdefault(job_id, deque())
        lines.append((self._clock(), row, size))
        self._oldest.put(job_id, lines[0][0])
        self.size += size
        return size

    def pop_until(self, job_id: str, at: Micros) -> list[AttributedRow]:
        """Remove and return the first lines of a job that are not newer than `at`."""
        found: list[AttributedRow] = []
        lines = self._of.get(job_id, deque())
        while lines and lines[0][1].entry.at <= at:
            _, row, size = lines.popleft()
            self.size -= size
            found.append(row)
        if lines:
            self._oldest.put(job_id, lines[0][0])
        else:
            self.pop(job_id)
        return found

    def pop(self, job_id: str) -> list[AttributedRow]:
        """Remove and return the lines of a job."""
        self._oldest.discard(job_id)
        lines = self._of.pop(job_id, ())
        self.size -= sum(size for _, _, size in lines)
        return [row for _, row, _ in lines]

    def pop_oldest(self) -> list[AttributedRow]:
        """Remove and return the lines of the job whose first line waits longest."""
        oldest = self._oldest.first()
        return self.pop(oldest[1]) if oldest is not None else []

    def late(self, now: float) -> list[str]:
        """Return the jobs whose first line has waited for too long, each once."""
        return list(self._oldest.pop_until(now - WAIT_FOR, len(self._oldest)))


class ReceivedLines:
    """The numbers of the lines of each instance, and the lines that wait: at most `max_waiting` bytes, about.

    `clock`: monotonic seconds.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_waiting = max_waiting
        self._clock = clock
        self._next: dict[str, tuple[str, int]] = {}
        """The run of each instance, and the number of its next line."""
        self._waiting: dict[str, _WaitingLines] = {}
        """By instance, as long as lines wait."""
        self._size = 0
        self._dropped = Counter[str]()
        """Lines of each instance that were dropped to make room, and have not been reported."""
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
            at = last_at(row.job_id) if row.job_id not in self._waiting.get(instance, ()) else None
            if at is None or at < row.entry.at:
                self._wait(instance, row.job_id, row)
            else:
                ready.append(row)
        return ready, min(lost + self._dropped.pop(instance, 0), EXACT)

    def skip(self, instance: str) -> None:
        """Note that a message of lines was not read: nobody wanted them, so none of them is lost."""
        self._next.pop(instance, None)

    def appeared(self, instance: str, documents: Iterable[tuple[str, Micros]]) -> list[AttributedRow]:
        """Return the lines that documents include: job ID, and the time of the last message."""
        lines: list[AttributedRow] = []
        if (waiting := self._waiting.get(instance)) is not None:
            with self._changed(instance, waiting):
                for job_id, at in documents:
                    lines += waiting.pop_until(job_id, at)
        return lines

    def expire(self, now: float, is_known: Callable[[str, str], bool]) -> dict[str, list[AttributedRow]]:
        """Return the lines that have waited for too long, by instance, of jobs that `is_known` (that, job ID) knows.

        The others are given up: nobody follows a job that no document names.
        """
        lines: dict[str, list[AttributedRow]] = {}
        for instance, waiting in list(self._waiting.items()):
            with self._changed(instance, waiting):
                for job_id in waiting.late(now):
                    rows = waiting.pop(job_id)
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

    def _wait(self, instance: str, job_id: str, row: AttributedRow) -> None:
        """Have a line wait. The instance whose lines have most bytes makes room for it."""
        self._size += self._waiting.setdefault(instance, _WaitingLines(self._clock)).add(job_id, row)
        while self._size > self._max_waiting:
            crowded = max(self._waiting, key=lambda one: self._waiting[one].size)
            waiting = self._waiting[crowded]
            with self._changed(crowded, waiting):
                self._dropped[crowded] += len(waiting.pop_oldest())

    @contextmanager
    def _changed(self, instance: str, waiting: _WaitingLines) -> Iterator[None]:
        """Lines of an instance are removed during the block."""
        before = waiting.size
        try:
            yield
        finally:
            self._size -= before - waiting.size
            if not waiting.size:
                self._waiting.pop(instance, None)


def _row(line: _Line) -> AttributedRow:
    at, attrs = received.time_of(line.at), received.decode(line.attrs, Any, MAX_ATTRS)
    entry = Entry(line.event_id, at, line.level, line.message, 0, line.job_id, line.step_id, by="column", attrs=attrs)
    return AttributedRow(entry, line.job_id, "column")
