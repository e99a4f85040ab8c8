"""What a reader that lags is owed: of each job the newest state, and log lines up to a bound.

Bounded by jobs and by bytes, however long the reader lags. State is owed in the order of its last change, so that at
every moment the reader has all up to the position that the last message told it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.sinks.messages import Message

MAX_LINES = 768 * 1024
"""Bytes of log lines that wait for a reader; with what its transport holds it stays under 1 MiB."""

LINE_OVERHEAD = 200
"""What a waiting line costs beside its bytes."""

AT_ONCE = 32 * 1024
"""Bytes that are taken together when it reads again."""


@dataclass(slots=True)
class Owed:
    """A job's newest state for some subscriptions: the reason why it left each, or None where it is in it.

    `new`: those for which the reader does not have it yet.
    """

    seq: int
    subs: dict[int, str | None] = field(default_factory=dict)
    new: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Backlog:
    """`seq`: the position up to which the reader has everything. `waiting`, `progressed`: see `Fanout.look`."""

    seq: int
    waiting: int = 0
    progressed: float = 0.0
    jobs: dict[str, Owed] = field(default_factory=dict)
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
        owed = self.jobs.pop(job_id, None) or Owed(seq)
        owed.seq = seq
        if entering and sub not in owed.subs:
            owed.new.add(sub)
        if reason is not None and sub in owed.new:
            owed.new.discard(sub)
            owed.subs.pop(sub, None)  # it never knew of it
        else:
            owed.subs[sub] = reason
        if owed.subs:
            self.jobs[job_id] = owed  # the last one now

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
        for job_id, owed in list(self.jobs.items()):
            owed.subs.pop(sub, None)
            owed.new.discard(sub)
            if not owed.subs:
                del self.jobs[job_id]
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
            job_id = next(iter(self.jobs))
            owed = self.jobs.pop(job_id)
            self.seq = owed.seq if self.jobs else max(now_at, owed.seq)
            messages = list(_newest(index, job_id, owed))
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


def _newest(index: Index, job_id: str, owed: Owed) -> Iterable[Message]:
    shown = index.get(job_id)
    puts = [s for s, reason in owed.subs.items() if reason is None or reason == "filter"]
    if shown is not None and puts:
        yield Message(wire.put(puts, owed.seq, shown, wire.encode(wire.document(shown))), owed.seq)
    for reason in sorted({r for r in owed.subs.values() if r is not None}):
        subs = [s for s, r in owed.subs.items() if r == reason]
        yield Message(wire.delete(subs, owed.seq, job_id, reason), owed.seq)
