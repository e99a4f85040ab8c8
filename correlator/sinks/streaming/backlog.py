"""The backlog of a client that lags: the newest state of each job, and log lines up to a bound.

Its size is bounded in jobs and in bytes, however long the client lags. States are kept in the order of their last
change, separately for each subscription. So the client always has every change up to the position of the last message
that it got.
"""

from __future__ import annotations

import mmap
import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from correlator.jobs import encoding
from correlator.jobs.directory import JobDirectory
from correlator.jobs.document_cache import Documents
from correlator.sinks.streaming.messages import Message

_HEAD = struct.Struct(">II")
"""Stored before each line: its length, and the number of its tuple of subscriptions."""

MAX_TOGETHER = 100
"""Subscriptions of one job that share a message, at most."""


class LineBuffer:
    """Log lines in order, in a ring buffer of `capacity` bytes. When it is full, the oldest lines are dropped.

    The buffer is anonymous mapped memory. Small objects that live long would fragment the heap, and a mapping returns
    to the operating system when it is released.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: mmap.mmap | None = None
        self._start = self.size = 0
        self._keys: dict[tuple[int, ...], int] = {}
        self._by_number: list[tuple[int, ...]] = []

    def __bool__(self) -> bool:
        return self.size > 0

    def add(self, subs: tuple[int, ...], line: bytes, dropped: dict[tuple[int, ...], int]) -> int:
        """Append a line. Lines that are dropped for it are counted in `dropped`, by their subscriptions.

        Returns the number of dropped lines.
        """
        if (number := self._keys.get(subs)) is None:
            number = self._keys[subs] = len(self._by_number)
            self._by_number.append(subs)
        record = _HEAD.pack(len(line), number) + line
        if len(record) > self.capacity:
            dropped[subs] = dropped.get(subs, 0) + 1
            return 1
        count = 0
        while self.size + len(record) > self.capacity:
            length, number = self._read_head()
            self._skip(_HEAD.size + length)
            key = self._by_number[number]
            dropped[key] = dropped.get(key, 0) + 1
            count += 1
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, self.capacity)
        at = (self._start + self.size) % self.capacity
        if (first := self.capacity - at) >= len(record):
            self._buffer[at : at + len(record)] = record
        else:
            self._buffer[at:] = record[:first]
            self._buffer[: len(record) - first] = record[first:]
        self.size += len(record)
        return count

    def pop_oldest(self) -> tuple[tuple[int, ...], bytes] | None:
        """Remove the oldest line. Returns its subscriptions and its text, or None when there is none."""
        if not self.size:
            return None
        length, key = self._read_head()
        self._skip(_HEAD.size)
        line = self._read(length)
        self._skip(length)
        return self._by_number[key], line

    def _read_head(self) -> tuple[int, int]:
        assert self._buffer is not None
        if self._start + _HEAD.size <= self.capacity:
            length, key = _HEAD.unpack_from(self._buffer, self._start)
        else:
            length, key = _HEAD.unpack(self._read(_HEAD.size))
        return length, key

    def _read(self, length: int) -> bytes:
        assert self._buffer is not None
        first = min(length, self.capacity - self._start)
        return self._buffer[self._start : self._start + first] + self._buffer[: length - first]

    def _skip(self, length: int) -> None:
        self._start = (self._start + length) % self.capacity
        self.size -= length


class PendingState(NamedTuple):
    """The pending newest state of a job for one subscription.

    `left`: the reason for which the job left the filter; None if it matches. `new`: the client does not have it yet.
    """

    seq: int
    left: str | None
    new: bool


@dataclass(slots=True)
class Backlog:
    """What is pending for one lagging client.

    `seq`: the position up to which the client has every change. `waiting`: bytes in its transport at the last check;
    `progressed`: monotonic seconds of the last check that found fewer.
    """

    seq: int
    lines: LineBuffer
    waiting: int = 0
    progressed: float = 0.0
    jobs: OrderedDict[tuple[str, int], PendingState] = field(default_factory=OrderedDict)
    """By job and subscription, in the order of the last change that concerns both. Finding the first entry of a plain
    dict would visit the place of every entry that has been removed."""
    dropped: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.lines or self.dropped)

    def add(self, job_id: str, seq: int, sub: int, reason: str | None, *, entering: bool) -> None:
        """Replace the pending state of a job for subscription `sub`; it moves to the end of the order."""
        pending = self.jobs.pop((job_id, sub), None)
        new = pending.new if pending is not None else entering
        if reason is None or not new:  # a client that has never had the job needs no delete
            self.jobs[job_id, sub] = PendingState(seq, reason, new)

    def add_line(self, subs: tuple[int, ...], line: bytes) -> int:
        """Keep a log line. Lines that are dropped for it are counted in `dropped`. Returns their number."""
        return self.lines.add(subs, line, self.dropped)

    def add_dropped(self, subs: tuple[int, ...], count: int) -> None:
        """Count lines that were lost before they came here."""
        self.dropped[subs] = self.dropped.get(subs, 0) + count

    def remove_subscription(self, sub: int) -> None:
        """Discard what is pending for a subscription that has ended."""
        self.jobs = OrderedDict((key, pending) for key, pending in self.jobs.items() if key[1] != sub)
        lines, self.lines = self.lines, LineBuffer(self.lines.capacity)
        while (line := lines.pop_oldest()) is not None:
            if left := tuple(i for i in line[0] if i != sub):
                self.lines.add(left, line[1], {})  # there is room for it
        dropped: dict[tuple[int, ...], int] = {}
        for subs, count in self.dropped.items():
            if left := tuple(i for i in subs if i != sub):
                dropped[left] = dropped.get(left, 0) + count
        self.dropped = dropped

    def pop_next(self, published: JobDirectory, documents: Documents, now_at: int, size: int) -> list[Message]:
        """Remove and return the next messages: states, then the numbers of dropped lines, then lines.

        `now_at`: the current position of the hub, which the client has reached when no state is pending any more.
        `size`: bytes of the messages, about.
        """
        messages: list[Message] = []
        while self.jobs and size > 0:
            job_id, seq = next((job_id, pending.seq) for (job_id, _), pending in self.jobs.items())
            subs: dict[int, str | None] = {}
            for key, pending in list(islice(self.jobs.items(), MAX_TOGETHER)):
                if key[0] != job_id or pending.seq != seq:
                    break
                subs[key[1]] = pending.left
                del self.jobs[key]
            self.seq = seq
            part = list(_newest(published, documents, job_id, seq, subs))
            messages += part
            size -= sum(len(m.body) for m in part)
        if not self.jobs:
            self.seq = max(self.seq, now_at)
            messages += [Message(encoding.dropped(subs, count)) for subs, count in self.dropped.items()]
            self.dropped.clear()
            while size > 0 and (line := self.lines.pop_oldest()) is not None:
                messages.append(Message(line[1]))
                size -= len(line[1])
        return messages


def _newest(
    published: JobDirectory, documents: Documents, job_id: str, seq: int, subs: dict[int, str | None]
) -> Iterable[Message]:
    shown = published.get(job_id)
    puts = [s for s, left in subs.items() if left is None or left == "filter"]
    if shown is not None and puts:
        yield Message(encoding.put(puts, seq, shown, documents.encoded(shown)), seq)
    for reason in sorted({left for left in subs.values() if left is not None}):
        yield Message(encoding.delete([s for s, left in subs.items() if left == reason], seq, job_id, reason), seq)
