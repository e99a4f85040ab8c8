"""The times of `log_events`: which ids have rows of some time, and which of its two readings a repeated hour has.

Problem: the log is read by ranges of its primary key, no index has `ts`, and a reader wants the rows of some time. Ids
grow in the order in which rows are written. `ts` does not: the clock that writes it is set back by seconds or hours,
and a single row may have any time. So a time narrows the ids to read only if the times of all other ids are known.

Model: `LogTimes` is a block range index. It knows, for each block of ids, the lowest and the highest time of its rows,
and learns them slice by slice, from the newest ids down. `span` returns the ids from the first to the last that may
have a row of a period. It learns as much as that needs: everything above the period, and below it as far as the clock
may have been set back (`MOST_BACK`), which samples of the rest confirm. If that takes longer than its caller waits, the
span is not `certain`: a binary search, which takes the times for sorted, stands in for what is not known.

Invariants: an id outside of a certain span had no row of that period when the span was made. Ids among which rows may
still be committed (`UNSETTLED`) are read again. A log whose ids have started again lower is learned anew. Memory is
bounded by `MAX_BLOCKS`: with more ids, blocks become larger. The times are those of the column, in local time where it
has no zone, so that a change of the zone changes nothing here.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from msgspec import Struct

from correlator.model.rows import Int64, Micros
from correlator.sources.db.session import Range, Session, Time, row_of, rows_of
from correlator.sources.db.slices import Budget, Slices
from correlator.sources.db.zones import Zone

BLOCK = 4_096
"""Ids in one block, at first."""

MAX_BLOCKS = 4_096
"""Most blocks that are known. With more, two become one."""

UNSETTLED = 50_000
"""Ids below the newest among which rows may still be committed."""

FRESH = 1.0
"""Seconds for which the newest ids are not read again."""

DAY: Micros = 86_400_000_000
"""Microseconds around a time, of any zone, within which its clock is changed once at most."""

MOST_BACK = 2 * DAY
"""Microseconds by which a clock is set back at most, for as few rows as no sample of the log would show."""

AGAIN = 10.0
"""Seconds for which they are not, for each second that reading them took: else nothing else would ever be read."""

SAMPLES = 64
"""Rows below what is known whose times are read before the rest counts as older."""

# -- the column


async def last_id(session: Session, below: int | None = None) -> int:
    """The highest id of log_events (below this one); 0 if there is none."""
    where = "" if below is None else f" WHERE id < {int(below)}"
    (found,) = await row_of(session, tuple[Int64 | None], f"SELECT MAX(id) FROM log_events{where}")
    return found or 0


async def nth_id(session: Session, beside: int, n: int, *, down: bool) -> int | None:
    """The n-th id of log_events below `beside`, or above it; None if there are fewer. It reads no rows."""
    where = f"id < {int(beside)} ORDER BY id DESC" if down else f"id > {int(beside)} ORDER BY id"
    sql = f"SELECT id FROM log_events WHERE {where} LIMIT 1 OFFSET {int(n) - 1}"
    found = await rows_of(session, tuple[Int64], sql)
    return found[0][0] if found else None


_ANY = (-math.inf, math.inf)


class LogClock(Struct, frozen=True):
    """The clock of the column `ts`. Its times are integers in microseconds, in local time where it has no zone.

    `micros`: the SQL expression of such a time, with {} in place of the column. `zone`: that of the clock; None: UTC.
    """

    micros: str
    zone: Zone | None

    def offsets(self, at: Micros) -> list[Micros]:
        """By how much the clock may be ahead of UTC at about this time."""
        if self.zone is None:
            return [0]
        return [near - utc for near in (at - DAY, at, at + DAY) for utc in self.zone.readings(near)]

    def period(self, since: Micros | None, until: Micros | None) -> tuple[float, float]:
        """The lowest and the highest time that a row from `since` on and before `until` may have."""
        low = -math.inf if since is None else since + min(self.offsets(since))
        high = math.inf if until is None else until - 1 + max(self.offsets(until))
        return low, high

    async def time_of(self, session: Session, event_id: int) -> Micros | None:
        """The time of a row; None if there is none."""
        sql = f"SELECT {self._ts} FROM log_events WHERE id = {int(event_id)}"
        found = await rows_of(session, tuple[Time | None], sql)
        return found[0][0] if found else None

    async def times_of_blocks(
        self, session: Session, first: int, last: int, size: int
    ) -> list[tuple[int, float, float]]:
        """(first id, lowest time, highest time) of the blocks of `size` ids between two ids, as far as they have rows.

        A row without a time may have any.
        """
        low, high = self.micros.format("MIN(ts)"), self.micros.format("MAX(ts)")
        where = f"id BETWEEN {int(first)} AND {int(last)} GROUP BY id - id % {size}"
        sql = f"SELECT MIN(id), {low}, {high}, COUNT(*), COUNT(ts) FROM log_events WHERE {where}"
        blocks = await rows_of(session, tuple[Int64, Time | None, Time | None, Int64, Int64], sql)
        return [
            (
                i - i % size,
                *((lowest, highest) if timed == rows and lowest is not None and highest is not None else _ANY),
            )
            for i, lowest, highest, rows, timed in blocks
        ]

    async def highest_sampled(self, session: Session, below: int, count: int) -> float:
        """The highest time of some `count` rows, evenly over the ids below `below`."""
        first = await nth_id(session, 0, 1, down=False) or 1
        one = f"SELECT * FROM (SELECT {self._ts} AS at FROM log_events WHERE id >= {{}} ORDER BY id LIMIT 1) AS some"
        places = range(first, below, max(1, (below - first) // count))
        if not places:
            return -math.inf
        found = await rows_of(session, tuple[Time | None], " UNION ALL ".join(map(one.format, places)))
        return max((at for (at,) in found if at is not None), default=-math.inf)

    async def first_from(self, session: Session, first: int, last: int, low: float) -> int | None:
        """The lowest of some ids whose row has a time from `low` on."""
        where = f"id BETWEEN {int(first)} AND {int(last)} AND {self._ts} >= {int(low)}"
        sql = f"SELECT id FROM log_events WHERE {where} ORDER BY id LIMIT 1"
        found = await rows_of(session, tuple[Int64], sql)
        return found[0][0] if found else None

    async def last_before(self, session: Session, high: int, at: float) -> int:
        """An id up to `high` such that, if times are sorted by id, those up to it are before `at`, and no others.

        A binary search over the primary key.
        """
        low = 0
        while low < high:
            middle = (low + high) // 2
            where = f"id > {middle} AND ts IS NOT NULL ORDER BY id LIMIT 1"
            sql = f"SELECT id, {self._ts} FROM log_events WHERE {where}"
            found = await rows_of(session, tuple[Int64, Time | None], sql)
            if found and found[0][0] > low and (found[0][1] or 0) < at:
                low = found[0][0]
            else:
                high = middle
        return low

    @property
    def _ts(self) -> str:
        return self.micros.format("ts")


LogQuestion: TypeAlias = Callable[[LogClock, Session], Awaitable[Any]]
"""A question about the times of a log."""

AskLog: TypeAlias = Callable[[LogQuestion], Awaitable[Any]]
"""How it reaches the database."""


# -- the index


class IdSpan(Struct, frozen=True):
    """The ids from `first` to `last` (None: to the newest, whichever that is) may have a row of a period.

    `certain`: no other id has one. `low`, `high`: the period, in the times of the column. `known_from`: the lowest id
    from which on all times are known. `known`: the share of the ids from there on.
    """

    first: int
    last: int | None
    certain: bool
    low: float
    high: float
    known_from: int
    known: float


class LogTimes:
    """The times of one log. For one event loop; a call that fails or is cancelled leaves what was learned.

    Args:
        block: Ids in one block, at first.
        unsettled: Ids below the newest that are read again.
        fresh: Seconds for which they are not.
        again: Seconds for which they are not, for each second that reading them took.
        most_back: Microseconds by which the clock is set back at most.
        max_blocks: Most blocks that are known. With more, two become one.
    """

    def __init__(
        self,
        block: int = BLOCK,
        unsettled: int = UNSETTLED,
        fresh: float = FRESH,
        again: float = AGAIN,
        most_back: Micros = MOST_BACK,
        max_blocks: int = MAX_BLOCKS,
    ) -> None:
        self._first_size = block
        self._unsettled = unsettled
        self._fresh = fresh
        self._again = again
        self._most_back = most_back
        self._max_blocks = max_blocks
        self._slices = Slices(first=4 * block, least=block, most=16 * block)
        self._refreshed_at = -math.inf
        self._took = 0.0
        """Seconds that reading the unsettled ids has taken since then."""
        self._clear()

    def _clear(self) -> None:
        self._head = 0
        self._size = self._first_size
        self._witness: tuple[int, Micros | None] | None = None
        """A row by which a log whose ids have started again lower is recognized."""
        self._clear_times(0)

    def _clear_times(self, head: int) -> None:
        self._blocks: dict[int, tuple[float, float]] = {}
        """The lowest and the highest time of the rows of each block, by its first id."""
        self._order: list[int] = []
        """The first ids of the blocks, sorted."""
        self._from, self._to = head + 1, head
        """The ids whose times are known; none if the first is above the last."""
        self._is_whole = False
        """True if no row has an id below `_from`."""
        self._sampled: tuple[int, float] | None = None
        """An id, and the highest time of the samples below it."""

    async def span(self, ask: AskLog, since: Micros | None, until: Micros | None, within: float) -> IdSpan:
        """Return the ids that may have a row from `since` on and before `until`; None: of any time.

        Learn for at most about `within` seconds. Raises `SourceUnavailable`.
        """
        if since is None and until is None:
            return IdSpan(1, None, True, -math.inf, math.inf, 1, 1.0)
        budget = Budget(within)
        await ask(self._refresh)
        while not (certain := await ask(partial(self._learn, since, until))):
            if not budget.allows():
                break
        span: IdSpan = await ask(partial(self._span, since, until, certain))
        return span

    def last_below(self, before: int, span: IdSpan) -> int:
        """Return the last id below `before` that may have a row of the period of `span`; 0 if there is none."""
        return self._down(before - 1, span.low, span.high)

    # -- questions

    async def _refresh(self, clock: LogClock, session: Session) -> None:
        """Note the newest id, and forget the times among which rows may have been committed since."""
        if time.monotonic() - self._refreshed_at < max(self._fresh, self._again * self._took):
            return
        head = await last_id(session)
        if head < self._head or not await self._is_same_log(clock, session):
            self._clear()
        settled = await last_id(session, max(1, head - self._unsettled) + 1) or head
        self._witness = settled, await clock.time_of(session, settled)
        self._to = min(self._to, self._head - self._unsettled)
        if self._to < self._from:
            self._clear_times(head)
        self._head, self._refreshed_at, self._took = head, time.monotonic(), 0.0

    async def _is_same_log(self, clock: LogClock, session: Session) -> bool:
        return self._witness is None or await clock.time_of(session, self._witness[0]) == self._witness[1]

    async def _learn(self, since: Micros | None, until: Micros | None, clock: LogClock, session: Session) -> bool:
        """Return True if enough is known for this period. Otherwise learn one slice."""
        low, high = clock.period(since, until)
        if await self._suffices(low, high, clock, session):
            return True
        if self._to < self._head:
            last = await nth_id(session, self._to, self._slices.size, down=False)
            last = min(last or self._head, self._head)
            await self._read(self._to + 1, last, clock, session)
            self._to = last
        else:
            first = await nth_id(session, self._from, self._slices.size, down=True)
            await self._read(first or 1, self._from - 1, clock, session)
            self._from = first or 1
            self._is_whole = first is None
        return False

    async def _read(self, first: int, last: int, clock: LogClock, session: Session) -> None:
        began = time.monotonic()
        with self._slices.timed():
            found = await clock.times_of_blocks(session, first, last, self._size)
        if last > self._head - self._unsettled:
            self._took += time.monotonic() - began
        for start, low, high in found:
            before = self._blocks.get(start, (math.inf, -math.inf))
            self._blocks[start] = min(low, before[0]), max(high, before[1])
        while len(self._blocks) > self._max_blocks:
            self._size *= 2
            halves, self._blocks = self._blocks, {}
            for start, (low, high) in halves.items():
                before = self._blocks.get(whole := start - start % self._size, (math.inf, -math.inf))
                self._blocks[whole] = min(low, before[0]), max(high, before[1])
        self._order = sorted(self._blocks)

    async def _suffices(self, low: float, high: float, clock: LogClock, session: Session) -> bool:
        """Whether the times of enough ids are known to say which others have none between `low` and `high`."""
        if self._to < self._head:
            return False
        if self._is_whole:
            return True
        if low == -math.inf:  # all that is below the last id of this time belongs to the span
            return any(block[0] <= high for block in self._blocks.values())
        oldest = self._order[: bisect_right(self._order, self._from + self._unsettled)]
        limit = low - self._most_back
        if self._to - self._from < self._unsettled or any(self._blocks[start][1] >= limit for start in oldest):
            return False
        if self._sampled is None or self._sampled[0] != self._from:
            self._sampled = self._from, await clock.highest_sampled(session, self._from, SAMPLES)
        return self._sampled[1] < limit

    async def _span(
        self, since: Micros | None, until: Micros | None, certain: bool, clock: LogClock, session: Session
    ) -> IdSpan:
        low, high = clock.period(since, until)
        first, last = 1, None
        if since is not None:
            first = self._up(low)
            first = await clock.first_from(session, first, first + self._size - 1, low) or first
            first = await last_id(session, first) + 1  # rows in front of it may wait for their commit
            if not certain:
                first = min(first, 1 + await clock.last_before(session, self._head, low))
        is_known = self._to >= self._head
        if until is not None and is_known and (reached := self._down(self._head, -math.inf, high)) < self._head:
            last = reached
        known_from = 1 if self._is_whole else self._from
        known = (self._head - known_from + 1) / max(1, self._head) if is_known else 0.0
        return IdSpan(first, last, certain, low, high, known_from, known)

    # -- what is known

    def _up(self, low: float) -> int:
        """The first id that may have a row from `low` on."""
        for start in self._order:
            if self._blocks[start][1] >= low:
                return min(max(start, self._from), self._to + 1)
        return self._to + 1

    def _down(self, last: int, low: float, high: float) -> int:
        """The last id up to `last` that may have a row between `low` and `high`; 0 if there is none."""
        if last > self._to or last < self._from:
            return last
        for start in reversed(self._order[: bisect_left(self._order, last + 1)]):
            block = self._blocks[start]
            if block[0] <= high and block[1] >= low:
                return min(last, start + self._size - 1)
        return 0 if self._is_whole else self._from - 1


# -- the hour that comes twice


ROWS_AT_ONCE = 5_000
"""Rows in one query, some 10 ms. An hour of 100 rows a second takes a second, once for all pages of a `Queries`."""

SETTLED = 300_000_000
"""Microseconds of the second hour after which all later rows belong to it."""


class RepeatedHours:
    """Which of its two readings a local time of `log_events` has, in an hour that comes twice.

    Ids grow with time, except for the seconds that rows wait for their commit. So all rows of the hour are followed in
    the order of their ids, as the tail follows those that it catches up with: each is read as of the first time that is
    not before the row in front of it (`Zone.utc`). Rows of one page do not suffice: an hour may pass between two of
    them. It knows the ids at which the reading changes, of the hour that was last asked about. One question at a time.

    A log whose ids start again lower needs a new object, as `Questions` makes one once a minute.
    """

    def __init__(self) -> None:
        self._hour: Range | None = None
        self._read_to = 0
        self._last: Micros = 0
        """The time of the row with the id `_read_to`, in UTC."""
        self._turns: list[int] = []
        """The ids at which the reading changes: from the first to the second, and back for rows that came late."""
        self._settled = False

    async def second(self, session: Session, clock: LogClock, hour: Range, ids: Sequence[int]) -> set[int]:
        """Those of `ids`, ascending, whose local time in `hour` has the second reading."""
        if clock.zone is None:
            return set()
        if hour != self._hour:
            self._read_to = await clock.last_before(session, ids[-1], hour[0])
            self._hour, self._last, self._turns, self._settled = hour, 0, [], False
        while not self._settled and self._read_to < ids[-1]:
            where = f"id > {self._read_to} ORDER BY id LIMIT {ROWS_AT_ONCE}"
            sql = f"SELECT id, {clock.micros.format('ts')} FROM log_events WHERE {where}"
            rows = await rows_of(session, tuple[Int64, Time | None], sql)
            self._follow(clock.zone, hour, [(i, local) for i, local in rows if local is not None])
            if not rows or rows[-1][0] <= self._read_to:
                break
            self._read_to = rows[-1][0]
        return {event_id for event_id in ids if bisect_right(self._turns, event_id) % 2}

    def _follow(self, zone: Zone, hour: Range, rows: Sequence[tuple[int, Micros]]) -> None:
        for event_id, local in rows:
            self._last = zone.utc(local, since=self._last)
            first, second = zone.readings(local)
            if (self._last != first) is not bool(len(self._turns) % 2):
                self._turns.append(event_id)
            if self._last > second + (hour[0] - local) + SETTLED:
                self._settled = True
                return
