"""The log lines of collectors at a gateway: they are counted, and a line waits until its job is known.

Lines come over core NATS, which is faster than the stream and keeps nothing: a gap in their numbers is the number of
lines that were lost. A collector that starts again numbers from the beginning, under another `run`.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct

from correlator.jobs import document_parser
from correlator.jobs.model.facts import AttributedRow, Entry
from correlator.jobs.model.rows import Level

WAIT_FOR = 2.0
"""Seconds that a line waits for its job to appear."""

MAX_WAITING = 4_000_000
"""Bytes of waiting lines, about; the oldest are dropped first."""

OVERHEAD = 500


class _Line(Struct):
    job_id: str
    event_id: int
    level: Level
    message: str
    at: str
    step_id: int | None = None
    attrs: Any = None


class _Lines(Struct):
    run: str
    first: int
    lines: list[_Line]


_decoder = msgspec.json.Decoder(_Lines)

Result = tuple[dict[str, list[AttributedRow]], dict[str, int]]
"""By instance: the lines to publish, and the number of lines that were lost."""


class LogLines:
    """The numbers of the lines of each instance, and the lines that wait."""

    def __init__(self) -> None:
        self._next: dict[str, tuple[str, int]] = {}
        """The run of each instance, and the number of its next line."""
        self._waiting: OrderedDict[str, deque[tuple[str, float, AttributedRow, int]]] = OrderedDict()
        """By job ID, the oldest first: (instance, since when, line, size)."""
        self._size = 0

    def read(self, instance: str, payload: bytes, is_known: Callable[[str], bool]) -> Result:
        """Read a message of a collector."""
        try:
            found = _decoder.decode(payload)
            rows = [_row(line) for line in found.lines]
        except (ValueError, msgspec.MsgspecError):
            return {}, {}
        run, expected = self._next.get(instance, (found.run, found.first))
        lost = max(0, found.first - expected) if run == found.run else 0
        self._next[instance] = (found.run, found.first + len(rows))
        ready = []
        for row in rows:
            assert row.job_id is not None
            if row.job_id in self._waiting or not is_known(row.job_id):
                lost += self._wait(instance, row.job_id, row)
            else:
                ready.append(row)
        return ({instance: ready} if ready else {}), ({instance: lost} if lost else {})

    def appeared(self, job_ids: Iterable[str]) -> Result:
        """Return the lines that have waited for these jobs."""
        lines: dict[str, list[AttributedRow]] = {}
        if self._waiting:
            for job_id in job_ids:
                for instance, _, row, size in self._waiting.pop(job_id, ()):
                    self._size -= size
                    lines.setdefault(instance, []).append(row)
        return lines, {}

    def expire(self, now: float) -> Result:
        """Give up the lines whose job has not appeared: nobody follows a job that no document names."""
        while self._waiting:
            job_id, first = next(iter(self._waiting.items()))
            if now - first[0][1] < WAIT_FOR:
                break
            self._size -= sum(size for _, _, _, size in first)
            del self._waiting[job_id]
        return {}, {}

    def _wait(self, instance: str, job_id: str, row: AttributedRow) -> int:
        """Have a line wait. Returns the number of lines that were dropped to make room."""
        size = OVERHEAD + len(row.entry.message) + len(msgspec.json.encode(row.entry.attrs))
        self._waiting.setdefault(job_id, deque()).append((instance, time.monotonic(), row, size))
        self._size += size
        dropped = 0
        while self._size > MAX_WAITING:
            _, oldest = self._waiting.popitem(last=False)
            self._size -= sum(size for _, _, _, size in oldest)
            dropped += len(oldest)
        return dropped


def _row(line: _Line) -> AttributedRow:
    at = document_parser.micros(line.at)
    entry = Entry(
        line.event_id, at, line.level, line.message, 0, line.job_id, line.step_id, by="column", attrs=line.attrs
    )
    return AttributedRow(entry, line.job_id, "column")
