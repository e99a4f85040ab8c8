"""What a reader that lags is owed: of each job the newest state, and log lines up to a bound.

Bounded by jobs and by bytes, however long the reader lags. State is owed in the order of its last change, for each
subscription by itself, so that at every moment the reader has all up to the position that the last message told it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.sinks.messages import Message

MAX_LINES = 768 * 1024
"""Bytes of log lines that wait for a reader; with what its transport holds it stays under 1 MiB."""

LINE_OVERHEAD = 200
"""What a waiting line costs beside its bytes."""

MAX_TOGETHER = 100
"""Subscriptions of one job that share a message."""

AT_ONCE = 32 * 1024
"""Bytes that are taken together when it reads again."""


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
    lines: deque[tuple[tuple[int, ...], int]] = field(default_factory=deque)
    """For whom each waiting line is, and how long it is."""
    text: bytearray = field(default_factory=bytearray)
    """The lines themselves, one after the other: small objects that live for long would hold the heap apart."""
    dropped: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of lines that wait, about."""
        return len(self.text) + LINE_OVERHEAD * len(self.lines)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.lines or self.dropped)

    def owe(self, job_id: str, seq: int, sub: int, reason: str | None, *, entering: bool) -> None:
        owed = self.jobs.pop((job_id, sub), None)
        new = owed.new if owed is not None else entering
        if reason is None or not new:  # else it never knew of it
            self.jobs[job_id, sub] = Owed(seq, reason, new)  # the last one now

    def owe_line(self, subs: tuple[int, ...], line: bytes) -> None:
        """Keep a log line, and let the oldest go where there are too many."""
        self.lines.append((subs, len(line)))
        self.text += line
        gone = 0
        while self.size - gone > MAX_LINES:
            whose, length = self.lines.popleft()
            gone += length
            self.dropped[whose] = self.dropped.get(whose, 0) + 1
        del self.text[:gone]

    def forget(self, sub: int) -> None:
        """The subscription has ended."""
        self.jobs = {key: owed for key, owed in self.jobs.items() if key[1] != sub}
        lines, text, at = self.lines, self.text, 0
        self.lines, self.text = deque(), bytearray()
        for subs, length in lines:
            if left := tuple(i for i in subs if i != sub):
                self.lines.append((left, length))
                self.text += text[at : at + length]
            at += length
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
            at = 0
            while self.lines and size < AT_ONCE:
                _, length = self.lines.popleft()
                taken.append(Message(bytes(self.text[at : at + length])))
                at += length
                size += length
            del self.text[:at]
        return taken


def _newest(index: Index, job_id: str, seq: int, subs: dict[int, str | None]) -> Iterable[Message]:
    shown = index.get(job_id)
    puts = [s for s, left in subs.items() if left is None or left == "filter"]
    if shown is not None and puts:
        yield Message(wire.put(puts, seq, shown, wire.encode(wire.document(shown))), seq)
    for reason in sorted({left for left in subs.values() if left is not None}):
        yield Message(wire.delete([s for s, left in subs.items() if left == reason], seq, job_id, reason), seq)
