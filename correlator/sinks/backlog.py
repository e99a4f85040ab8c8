"""What a reader that lags is owed: of each job the newest state, and log lines up to a bound.

Bounded by jobs and by bytes, however long the reader lags. State is owed in the order of its last change, for each
subscription by itself, so that at every moment the reader has all up to the position that the last message told it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from correlator import metrics
from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.sinks.messages import Message

MAX_LINES = 768 * 1024
"""Bytes of log lines that wait for a reader; with what its transport holds it stays under 1 MiB."""

_HEAD = struct.Struct(">II")
"""Before each waiting line: its length, and the number of those for whom it is."""

MAX_TOGETHER = 100
"""Subscriptions of one job that share a message."""

AT_ONCE = 32 * 1024
"""Bytes that are taken together when it reads again."""


class Lines:
    """Log lines in their order, in a ring of `capacity` bytes. A line that does not fit pushes the oldest out.

    They are kept in memory of their own: small objects that live for long, between the large ones that come and go with
    every batch, would hold the heap apart, and a ring that is done with goes back to the system.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ring: mmap.mmap | None = None
        self._start = self.size = 0
        self._keys: dict[tuple[int, ...], int] = {}
        self._by_number: list[tuple[int, ...]] = []

    def __bool__(self) -> bool:
        return self.size > 0

    def add(self, subs: tuple[int, ...], line: bytes) -> Iterable[tuple[int, ...]]:
        """Returns for whom those were that went."""
        gone: list[tuple[int, ...]] = []
        wanted = _HEAD.size + len(line)
        if wanted > self._capacity:
            return [subs]
        while self.size + wanted > self._capacity and (oldest := self.take()) is not None:
            gone.append(oldest[0])
        if subs not in self._keys:
            self._keys[subs] = len(self._by_number)
            self._by_number.append(subs)
        self._write(_HEAD.pack(len(line), self._keys[subs]))
        self._write(line)
        return gone

    def take(self) -> tuple[tuple[int, ...], bytes] | None:
        """The oldest, and for whom it is."""
        if not self.size:
            return None
        length, key = _HEAD.unpack(self._read(_HEAD.size))
        return self._by_number[key], self._read(length)

    def _write(self, part: bytes) -> None:
        if self._ring is None:
            self._ring = mmap.mmap(-1, self._capacity)
        at = (self._start + self.size) % self._capacity
        first = min(len(part), self._capacity - at)
        self._ring[at : at + first] = part[:first]
        self._ring[: len(part) - first] = part[first:]
        self.size += len(part)

    def _read(self, length: int) -> bytes:
        assert self._ring is not None
        first = min(length, self._capacity - self._start)
        part = self._ring[self._start : self._start + first] + self._ring[: length - first]
        self._start = (self._start + length) % self._capacity
        self.size -= length
        return part


class Owed(NamedTuple):
    """A job's newest state for one subscription. `left`: why it left it, None where it is in it.

    `new`: the reader does not have it yet.
    """

    seq: int
    left: str | None
    new: bool


@dataclass(slots=True)
class Backlog:
    """`seq`: the position up to which the reader has everything. `waiting`, `progressed`: see `Fanout.look`."""

    seq: int
    waiting: int = 0
    progressed: float = 0.0
    jobs: dict[tuple[str, int], Owed] = field(default_factory=dict)
    """By job and subscription, in the order of the last change that concerns both."""
    lines: Lines = field(default_factory=lambda: Lines(MAX_LINES))
    dropped: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.lines or self.dropped)

    def owe(self, job_id: str, seq: int, sub: int, reason: str | None, *, entering: bool) -> None:
        owed = self.jobs.pop((job_id, sub), None)
        new = owed.new if owed is not None else entering
        if reason is None or not new:  # else it never knew of it
            self.jobs[job_id, sub] = Owed(seq, reason, new)  # the last one now

    def owe_line(self, subs: tuple[int, ...], line: bytes) -> None:
        """Keep a log line, and let the oldest go where there are too many."""
        for gone in self.lines.add(subs, line):
            self.dropped[gone] = self.dropped.get(gone, 0) + 1
            metrics.DROPPED_LINES.inc()

    def forget(self, sub: int) -> None:
        """The subscription has ended."""
        self.jobs = {key: owed for key, owed in self.jobs.items() if key[1] != sub}
        lines, self.lines = self.lines, Lines(MAX_LINES)
        while (line := lines.take()) is not None:
            if left := tuple(i for i in line[0] if i != sub):
                self.lines.add(left, line[1])
        told: dict[tuple[int, ...], int] = {}
        for subs, count in self.dropped.items():
            if left := tuple(i for i in subs if i != sub):
                told[left] = told.get(left, 0) + count
        self.dropped = told

    def take(self, index: Index, now_at: int) -> list[Message]:
        """The next part: state first, then what was dropped of the lines, then lines. `now_at`: the position now."""
        taken: list[Message] = []
        size = 0
        while self.jobs and size < AT_ONCE:
            job_id, seq = next((job_id, owed.seq) for (job_id, _), owed in self.jobs.items())
            subs: dict[int, str | None] = {}
            for key, owed in list(islice(self.jobs.items(), MAX_TOGETHER)):
                if key[0] != job_id or owed.seq != seq:
                    break
                subs[key[1]] = owed.left
                del self.jobs[key]
            self.seq = seq if self.jobs else max(now_at, seq)
            messages = list(_newest(index, job_id, seq, subs))
            taken += messages
            size += sum(len(m.body) for m in messages)
        if not self.jobs:
            self.seq = max(self.seq, now_at)
            taken += [Message(wire.dropped(subs, count)) for subs, count in self.dropped.items()]
            self.dropped.clear()
            while size < AT_ONCE and (line := self.lines.take()) is not None:
                taken.append(Message(line[1]))
                size += len(line[1])
        return taken


def _newest(index: Index, job_id: str, seq: int, subs: dict[int, str | None]) -> Iterable[Message]:
    shown = index.get(job_id)
    puts = [s for s, left in subs.items() if left is None or left == "filter"]
    if shown is not None and puts:
        yield Message(wire.put(puts, seq, shown, wire.encode(wire.document(shown))), seq)
    for reason in sorted({left for left in subs.values() if left is not None}):
        yield Message(wire.delete([s for s, left in subs.items() if left == reason], seq, job_id, reason), seq)
