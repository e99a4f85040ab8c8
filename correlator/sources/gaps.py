"""Which ids to read next, and when an id that never came is settled. Pure: it is told the ids and the time.

Ids become visible out of order, and some never do. A hole below the head is a window until there is evidence:
a dirty read that sees one of its ids proves that a transaction lives, and only a probe that began a whole grace after
the last sign of life, and saw nothing, settles it. Settled windows stay cold for a while and are still looked at; a
last look, that saw nothing either, lets go of them.

Invariants: every id up to the head is in exactly one of emitted, open, cold, expired; an id is emitted at most once;
a window whose ids a dirty read sees is never settled; work a cycle grows with windows, not with holes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Range = tuple[int, int]
"""Ids from the first to the last, both included."""

MAX_EXACT = 8
"""Holes of a window that are probed one by one; more are probed as the span they lie in."""

MAX_RANGES = 64
"""Ranges in one statement."""

BACKOFF = 1.6
MAX_INTERVAL = 0.25
WAIT_AN_ID = 0.0001
MAX_WAIT = 1.0
"""Seconds that silent windows wait for each id that a look at them returns, and at most: spans of many rows cost."""

JOIN_WITHIN = 0.1
"""Holes that appear within this many seconds of a window's birth join it: fewer windows, a grace a little longer."""


@dataclass(slots=True)
class Window:
    """Holes that appeared together, as sorted disjoint ranges. Liveness belongs to the whole window."""

    holes: list[Range]
    born: float
    alive: float
    due: float
    interval: float
    settled: float = 0.0
    revived: bool = False
    """It was settled, and then seen alive after all."""
    expired: bool = False
    """It was cold for long enough, and nobody looks at it any more."""

    @property
    def span(self) -> Range:
        return self.holes[0][0], self.holes[-1][1]

    def ranges(self) -> list[Range]:
        return list(self.holes) if len(self.holes) <= MAX_EXACT else [self.span]

    def lacks(self, ids: Sequence[int]) -> list[int]:
        """Those of the sorted `ids` that are holes here."""
        low, high = self.span
        inside = ids[bisect_left(ids, low) : bisect_right(ids, high)]
        starts = [h[0] for h in self.holes] if inside else []
        return [i for i in inside if self.holes[bisect_right(starts, i) - 1][1] >= i]

    def fill(self, ids: Iterable[int]) -> None:
        """Take `ids`, sorted and all of them holes, out of the holes."""
        left: list[Range] = []
        todo = iter([*ids, None])
        nxt = next(todo)
        for first, last in self.holes:
            low = first
            while nxt is not None and nxt <= last:
                if low < nxt:
                    left.append((low, nxt - 1))
                low = nxt + 1
                nxt = next(todo)
            if low <= last:
                left.append((low, last))
        self.holes = left


@dataclass(slots=True)
class Probe:
    """One dirty read to be made: `ranges` of ids, on behalf of `windows`. `started`: when it was asked for."""

    ranges: list[Range]
    windows: list[Window]
    started: float


@dataclass(slots=True)
class Gaps:
    """The tail's bookkeeping. Times are seconds of one monotonic clock; `grace` and `cold_for` are seconds."""

    head: int = 0
    grace: float = 5.0
    poll: float = 0.02
    cold_for: float = 600.0
    sweep_every: float = 10.0
    open: list[Window] = field(default_factory=list)
    cold: list[Window] = field(default_factory=list)
    late: int = 0
    """Rows that came after their window was settled."""
    _swept: float = 0.0
    _round: list[Window] = field(default_factory=list)
    """The cold windows that are still to be looked at in this sweep."""

    def advance(self, ids: Sequence[int], now: float) -> None:
        """`ids`, sorted and above the head, have been read in order; whatever they skip is a window now."""
        holes: list[Range] = []
        at = self.head
        for i in ids:
            if i > at + 1:
                holes.append((at + 1, i - 1))
            at = i
        self.head = at
        if not holes:
            return
        last = self.open[-1] if self.open else None
        if last is not None and now - last.born <= JOIN_WITHIN and last.span[1] < holes[0][0]:
            last.holes += holes
            last.alive = now
            last.interval = self.poll
            last.due = min(last.due, now + self.poll)
            return
        self.open.append(Window(holes, now, now, now + self.poll, self.poll))

    def probe(self, now: float) -> Probe | None:
        """The next dirty read, of windows that are due, if any is: who has waited longest comes first.

        With them go those that have waited half their time, so that many windows come to be looked at in few reads.
        """
        if all(w.due > now for w in self.open):
            return None
        return _look_at(sorted((w for w in self.open if w.due - w.interval / 2 <= now), key=lambda w: w.due), now)

    def sweep(self, now: float) -> Probe | None:
        """Now and then, a look at what was settled, in parts: the next part."""
        if not self._round and now - self._swept >= self.sweep_every:
            self._swept = now
            self._round = list(self.cold)
        if not self._round:
            return None
        part = _look_at(self._round, now)
        self._round = self._round[len(part.windows) :]
        return part

    def answer(self, probe: Probe, seen: Iterable[int], now: float) -> list[int]:
        """What the dirty read saw. Returns the ids that are missing and exist: they are to be read for real."""
        ids = sorted(seen)
        costs = min(len(ids) * WAIT_AN_ID, MAX_WAIT)
        alive: list[int] = []
        for window in probe.windows:
            if not window.holes:
                continue
            if lacks := window.lacks(ids):
                alive += lacks
                window.alive = now
                window.interval = self.poll
                window.revived = window.revived or window.settled > 0
                window.settled = 0.0
            else:
                window.interval = max(min(window.interval * BACKOFF, MAX_INTERVAL), costs)
                if window.settled:
                    window.expired = probe.started >= window.settled + self.cold_for
                elif probe.started >= window.alive + self.grace:
                    window.settled = now
            window.due = now + window.interval
        self._file()
        return sorted(alive)

    def fill(self, ids: Iterable[int]) -> list[int]:
        """Rows with these ids have been read. Returns those that were missing until now: they are to be emitted.

        None of them is cold: the answer that told of them has revived their windows.
        """
        wanted = sorted(ids)
        new: list[int] = []
        for window in self.open:
            if lacks := window.lacks(wanted):
                window.fill(lacks)
                new += lacks
                self.late += len(lacks) if window.revived else 0
        self._file()
        return sorted(new)

    def newest(self, limit: int) -> list[int]:
        """Missing ids of open windows, `limit` at the most, the latest first: what is written now is among them."""
        found: list[int] = []
        for window in reversed(self.open):
            for first, last in reversed(window.holes):
                if len(found) >= limit:
                    return found
                found += range(last, max(first - 1, last - limit + len(found)), -1)
        return found

    def missing(self) -> int:
        """How many ids are in open windows."""
        return sum(last - first + 1 for w in self.open for first, last in w.holes)

    def oldest(self, now: float) -> float:
        """The age in seconds of the oldest open window, 0 if there is none."""
        return max((now - w.born for w in self.open), default=0.0)

    def next_due(self) -> float | None:
        return min((w.due for w in self.open), default=None)

    def _file(self) -> None:
        """Put every window where it belongs now: empty and expired ones nowhere, settled ones to the cold."""
        if any(not w.holes or w.settled for w in self.open):
            self.cold += [w for w in self.open if w.holes and w.settled]
            self.open = [w for w in self.open if w.holes and not w.settled]
        if any(not w.settled or w.expired for w in self.cold):
            # Revived ones go in front: the last open window is the one that new holes may join.
            self.open = [w for w in self.cold if not w.settled] + self.open
            self.cold = [w for w in self.cold if w.settled and not w.expired]


def _look_at(windows: Iterable[Window], now: float) -> Probe:
    """A dirty read of the first of `windows`, as many as go into one statement."""
    made = Probe([], [], now)
    for window in windows:
        ranges = window.ranges()
        if made.ranges and len(made.ranges) + len(ranges) > MAX_RANGES:
            break
        made.ranges += ranges
        made.windows.append(window)
    return made
