"""Gaps in the ids of log_events: which ids to probe next, and when a missing id is given up.

The problem: AUTO_INCREMENT ids are assigned at INSERT and become visible at COMMIT, so rows appear out of order, and
the id of a rolled-back transaction never appears. A program that waits for every id stops; one that skips loses rows.

The model: ids that are missing below the head when it advances form a window. A probe is a dirty read (READ
UNCOMMITTED) of the ids of windows. If it sees one, a transaction that has not ended holds the window, or the row has
just been committed: the window is alive and is probed at short intervals. A probe that began at least `grace` seconds
after the window was last alive, and that sees none of its ids, settles it. A settled window is cold: periodic sweeps
still probe it, one that sees an id reopens it, and one after `cold_for` seconds that sees nothing expires it.

Invariants: every id up to the head is in exactly one of emitted, open, cold and expired. An id is emitted at most once.
A window of which a dirty read sees an id is never settled by that read. The work of a cycle grows with the number of
windows, not of missing ids. A row that was committed before `read_to()` is not missing in an open window.

This module is pure: ids and monotonic times come as arguments. `Tail` runs the queries.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from correlator.sources.db.session import Range

MAX_EXACT = 8
"""Ranges of a window up to which each is probed by itself. Above that, the probe covers the whole span."""

MAX_RANGES = 64
"""Most ranges in one statement."""

MAX_IDS = 20_000
"""Most ids that the windows of one statement cover, and so most rows that it returns. A single window may exceed it."""

BACKOFF = 1.6
MAX_INTERVAL = 0.25
WAIT_AN_ID = 0.0001
MAX_WAIT = 1.0
"""Seconds that silent windows wait per id that their last probe returned, and at most: large spans are expensive."""

MAX_KEPT = 10_000
"""Most ranges in a checkpoint: those of the newest open windows first, then those of cold ones."""

MAX_COLD = 100_000
"""Most ranges in cold windows. Above that, the oldest windows expire early."""

JOIN_WITHIN = 0.1
"""Missing ids that appear within this many seconds of a window's creation join it: fewer windows, a longer grace."""


@dataclass(slots=True)
class Window:
    """Missing ids that appeared together, as sorted disjoint ranges. They are settled and reopened together.

    Times are monotonic seconds: `born` of creation, `alive` when a dirty read last saw one of the ids, `due` of the
    next probe, `settled` when it was settled (0 while open).
    """

    holes: list[Range]
    born: float
    alive: float
    due: float
    interval: float
    settled: float = 0.0
    revived: bool = False
    """It was settled, and a later probe saw one of its ids."""
    expired: bool = False
    """It was cold for `cold_for` seconds and is no longer probed."""
    read_to: float = -math.inf
    """Those of its ids that were committed before that time have been read. `-inf`: it has not been probed yet."""

    @property
    def span(self) -> Range:
        return self.holes[0][0], self.holes[-1][1]

    def ranges(self) -> list[Range]:
        return list(self.holes) if len(self.holes) <= MAX_EXACT else [self.span]

    def lacks(self, ids: Sequence[int]) -> list[int]:
        """Those of the sorted `ids` that are missing in this window."""
        low, high = self.span
        inside = ids[bisect_left(ids, low) : bisect_right(ids, high)]
        starts = [h[0] for h in self.holes] if inside else []
        return [i for i in inside if self.holes[bisect_right(starts, i) - 1][1] >= i]

    def fill(self, ids: Iterable[int]) -> None:
        """Remove `ids` from the missing ones. They are sorted, and all of them are missing here."""
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
    """A dirty read to run: `ranges` of ids, on behalf of `windows`. `started`: monotonic seconds when it began."""

    ranges: list[Range]
    windows: list[Window]
    started: float


@dataclass(slots=True)
class Gaps:
    """The head and the windows below it. Not thread-safe; `Tail` calls it from one event loop.

    Args:
        head: The highest id that has been read.
        grace: Seconds without evidence after which a window is settled.
        poll: Seconds between probes of a window that is alive.
        cold_for: Seconds for which a settled window is still probed.
        sweep_every: Seconds between sweeps over the cold windows.

    `now` is always monotonic seconds.
    """

    head: int = 0
    grace: float = 5.0
    poll: float = 0.02
    cold_for: float = 600.0
    sweep_every: float = 10.0
    open: list[Window] = field(default_factory=list)
    cold: list[Window] = field(default_factory=list)
    late: int = 0
    """Number of rows that appeared after their window had been settled."""
    _swept: float = 0.0
    _round: list[Window] = field(default_factory=list)
    """The cold windows that this sweep has still to probe."""

    def advance(self, ids: Sequence[int], now: float, asked: float | None = None) -> None:
        """Advance the head over `ids`, sorted and above it. The ids that they skip become a window.

        `asked`: when the query began that found them; None: now.
        """
        asked = now if asked is None else asked
        holes = _skipped(self.head, ids)
        self.head = ids[-1] if ids else self.head
        if not holes:
            return
        last = self.open[-1] if self.open else None
        if last is not None and now - last.born <= JOIN_WITHIN and last.span[1] < holes[0][0]:
            last.holes += holes
            last.alive = now
            last.interval = self.poll
            last.due = min(last.due, now + self.poll)
            last.read_to = min(last.read_to, asked)
            return
        self.open.append(Window(holes, now, now, now + self.poll, self.poll, read_to=asked))

    def behind(self, after: int, ids: Sequence[int], last: int, now: float) -> None:
        """Open a window below the head: of the ids above `after` and up to `last`, only `ids` (sorted) were visible."""
        if holes := _skipped(after, [*ids, last + 1]):
            # In front: new missing ids may only join the last open window.
            self.open.insert(0, Window(holes, now, now, now + self.poll, self.poll, read_to=now))

    def kept(self) -> tuple[tuple[Range, ...], ...]:
        """The missing ids of each window for the checkpoint: `MAX_KEPT` ranges at most, newest open windows first."""
        found: list[tuple[Range, ...]] = []
        room = MAX_KEPT
        for window in chain(reversed(self.open), reversed(self.cold)):
            if room <= 0:
                break
            if holes := tuple(window.holes[-room:]):
                found.append(holes)
                room -= len(holes)
        return tuple(reversed(found))

    def probe(self, now: float) -> Probe | None:
        """The next dirty read of open windows, the longest overdue first; None if no window is due.

        It includes windows that have waited half of their interval, so that few reads cover many windows.
        """
        if all(w.due > now for w in self.open):
            return None
        return _probe_of(sorted((w for w in self.open if w.due - w.interval / 2 <= now), key=lambda w: w.due), now)

    def sweep(self, now: float) -> Probe | None:
        """The next dirty read of cold windows; None between two sweeps. A sweep takes as many reads as it needs."""
        if not self._round and now - self._swept >= self.sweep_every:
            self._swept = now
            self._round = list(self.cold)
        if not self._round:
            return None
        part = _probe_of(self._round, now)
        self._round = self._round[len(part.windows) :]
        return part

    def answer(self, probe: Probe, seen: Iterable[int], now: float) -> list[int]:
        """Apply the result of a dirty read. Returns the missing ids that it saw: read those with READ COMMITTED."""
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

    def probed(self, probe: Probe) -> None:
        """Note that the rows that a dirty read saw have been read, as far as they are committed."""
        highest = max(last for _, last in probe.ranges)
        for window in probe.windows:
            if window.holes and window.span[1] <= highest:  # Else ids have joined it since the read began.
                window.read_to = probe.started

    def read_to(self) -> float:
        """Every row below the head that was committed before that time has been read, or its window is settled."""
        return min((w.read_to for w in self.open), default=math.inf)

    def fill(self, ids: Iterable[int]) -> list[int]:
        """Mark `ids` as read. Returns those that were missing until now: emit exactly their rows.

        None of them is in a cold window: the probe that saw them has reopened it.
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
        """Missing ids of open windows, the highest first, at most `limit`. Transactions that end now are among them."""
        found: list[int] = []
        for window in reversed(self.open):
            for first, last in reversed(window.holes):
                if len(found) >= limit:
                    return found
                found += range(last, max(first - 1, last - limit + len(found)), -1)
        return found

    def oldest(self, now: float) -> float:
        """The age in seconds of the oldest open window, 0 if there is none."""
        return max((now - w.born for w in self.open), default=0.0)

    def next_due(self) -> float | None:
        """Monotonic seconds at which the next open window is due; None if there is none."""
        return min((w.due for w in self.open), default=None)

    def _bound(self) -> None:
        """Expire the oldest cold windows while they have more than `MAX_COLD` ranges."""
        held = 0
        for index in range(len(self.cold) - 1, -1, -1):
            held += len(self.cold[index].holes)
            if held > MAX_COLD:
                for window in self.cold[: index + 1]:
                    window.expired = True
                del self.cold[: index + 1]
                return

    def _file(self) -> None:
        """Move settled windows to `cold` and reopened ones to `open`; drop empty and expired ones."""
        if any(not w.holes or w.settled for w in self.open):
            self.cold += [w for w in self.open if w.holes and w.settled]
            self.open = [w for w in self.open if w.holes and not w.settled]
            self._bound()
        if any(not w.settled or w.expired for w in self.cold):
            # Reopened ones go in front: new missing ids may only join the last open window.
            self.open = [w for w in self.cold if not w.settled] + self.open
            self.cold = [w for w in self.cold if w.settled and not w.expired]


def _skipped(after: int, ids: Iterable[int]) -> list[Range]:
    """The ranges above `after` that the sorted `ids` skip."""
    holes: list[Range] = []
    for i in ids:
        if i > after + 1:
            holes.append((after + 1, i - 1))
        after = i
    return holes


def _probe_of(windows: Iterable[Window], now: float) -> Probe:
    """A dirty read of the first of `windows`, as many as fit in one statement."""
    made = Probe([], [], now)
    ids = 0
    for window in windows:
        ranges = window.ranges()
        ids += sum(last - first + 1 for first, last in ranges)
        if made.ranges and (len(made.ranges) + len(ranges) > MAX_RANGES or ids > MAX_IDS):
            break
        made.ranges += ranges
        made.windows.append(window)
    return made
