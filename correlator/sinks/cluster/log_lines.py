"""The log lines of an instance on their way to gateways: numbered, and grouped into messages of bounded size.

Lines go over core NATS, without a stream: a gateway that is not connected misses them. They are numbered in the run of
the collector, so that a gateway can report to its clients how many are missing: the number of the first line of a
message, plus the number of its lines, is that of the first line of the next message.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable

from correlator.jobs import encoding, sizes
from correlator.model.facts import AttributedRow

MAX_MESSAGE = 256_000
"""Bytes of one message."""

MAX_LINE = 128_000
"""Bytes of a line. Of a longer one the attrs are left out, then the end of the message."""

MAX_LINES = 10_000
MAX_BYTES = 4_000_000
"""Bounds of the lines that wait. Above them the oldest are dropped, and a gap in the numbers says so."""

OVERHEAD = 200
"""Bytes that a waiting line takes besides its text."""


class LineQueue:
    """The lines that wait to be sent. `run`: the random name of this run of the collector."""

    def __init__(
        self, run: str = "", *, max_lines: int = MAX_LINES, max_bytes: int = MAX_BYTES, max_message: int = MAX_MESSAGE
    ) -> None:
        self.run = run or secrets.token_hex(6)
        self._max_lines, self._max_bytes, self._max_message = max_lines, max_bytes, max_message
        self._first = 1
        """The number of the first line that waits."""
        self._waiting: deque[bytes] = deque()
        self._size = 0

    def add(self, rows: Iterable[AttributedRow]) -> int:
        """Append the rows that belong to a job. Returns the number of older lines that were dropped to make room."""
        before = self._first
        for row in rows:
            if row.job_id is not None:
                line = _encoded(row)
                self._waiting.append(line)
                self._size += len(line) + OVERHEAD
                while len(self._waiting) > self._max_lines or self._size > self._max_bytes:
                    self._pop()
        return self._first - before

    def clear(self) -> int:
        """Drop all lines: nobody can be reached. Returns their number."""
        dropped = len(self._waiting)
        self._waiting.clear()
        self._first += dropped
        self._size = 0
        return dropped

    def pop_message(self) -> bytes:
        """Return the next message, with as many lines as fit. Raises: `IndexError` if no line waits."""
        first, lines = self._first, [self._pop()]
        size = len(lines[0]) + OVERHEAD
        while self._waiting and size + len(self._waiting[0]) + 1 <= self._max_message:
            size += len(self._waiting[0]) + 1
            lines.append(self._pop())
        head = b'{"run":%b,"first":%d,"lines":[' % (encoding.encode(self.run), first)
        return b"%b%b]}" % (head, b",".join(lines))

    def __len__(self) -> int:
        return len(self._waiting)

    def _pop(self) -> bytes:
        line = self._waiting.popleft()
        self._first += 1
        self._size -= len(line) + OVERHEAD
        return line


def _encoded(row: AttributedRow) -> bytes:
    line = {"job_id": row.job_id, **encoding.log_line(row.entry)}
    encoded = encoding.encode(line)
    if len(encoded) > MAX_LINE:
        encoded = encoding.encode(line | {"attrs": None})
    if len(encoded) > MAX_LINE:  # A character takes up to six bytes in JSON.
        message, _ = sizes.cut_text(row.entry.message, MAX_LINE // 8)
        encoded = encoding.encode(line | {"attrs": None, "message": message})
    return encoding.compact(encoded)
