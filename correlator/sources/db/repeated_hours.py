"""Which of its two readings a local time of `log_events` has, in the hour that the end of daylight saving time repeats.

A row does not say it, but ids grow with time, except for the seconds that rows wait for their commit. So all rows of
the hour are followed in the order of their ids, as the tail follows those that it catches up with: each is read as of
the first time that is not before the row in front of it (`Zone.utc`). Rows of one page do not suffice: an hour may pass
between two of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from correlator.model.rows import Micros
from correlator.sources.db.session import Range, Session
from correlator.sources.db.zones import Zone

ROWS_AT_ONCE = 5_000
"""Rows in one query, some 10 ms. An hour of 100 rows a second takes a second, once for all pages of a `Queries`."""

SETTLED = 300_000_000
"""Microseconds of the second hour after which all later rows belong to it."""


class RepeatedHours:
    """The ids at which the reading changes, of the hour that was last asked about. One question at a time.

    `ts`: the expression of the local time. A log whose ids start again lower needs a new object, as `Questions` makes
    one once a minute.
    """

    def __init__(self, ts: str) -> None:
        self._ts = ts
        self._hour: Range | None = None
        self._read_to = 0
        self._last: Micros = 0
        """The time of the row with the id `_read_to`, in UTC."""
        self._turns: list[int] = []
        """The ids at which the reading changes: from the first to the second, and back for rows that came late."""
        self._settled = False

    async def second(self, session: Session, zone: Zone, hour: Range, ids: Sequence[int]) -> set[int]:
        """Those of `ids`, ascending, whose local time in `hour` has the second reading."""
        if hour != self._hour:
            self._read_to = await self._before(session, hour[0], ids[-1])
            self._hour, self._last, self._turns, self._settled = hour, 0, [], False
        while not self._settled and self._read_to < ids[-1]:
            where = f"id > {self._read_to} ORDER BY id LIMIT {ROWS_AT_ONCE}"
            rows = await session.query(f"SELECT id, {self._ts} FROM log_events WHERE {where}")
            self._follow(zone, hour, [(int(i), int(local)) for i, local in rows if local is not None])
            if not rows:
                break
            self._read_to = int(rows[-1][0])
        return {event_id for event_id in ids if bisect_right(self._turns, event_id) % 2}

    async def _before(self, session: Session, begin: Micros, high: int) -> int:
        """An id before the first row of the hour. A binary search: times before the hour are lower, others are not."""
        low = 0
        while low < high:
            middle = (low + high) // 2
            where = f"id > {middle} AND ts IS NOT NULL ORDER BY id LIMIT 1"
            found = await session.query(f"SELECT id, {self._ts} FROM log_events WHERE {where}")
            if found and int(found[0][1] or 0) < begin:
                low = int(found[0][0])
            else:
                high = middle
        return low

    def _follow(self, zone: Zone, hour: Range, rows: Sequence[tuple[int, Micros]]) -> None:
        for event_id, local in rows:
            self._last = zone.utc(local, since=self._last)
            first, second = zone.readings(local)
            if (self._last != first) is not bool(len(self._turns) % 2):
                self._turns.append(event_id)
            if self._last > second + (hour[0] - local) + SETTLED:
                self._settled = True
                return
