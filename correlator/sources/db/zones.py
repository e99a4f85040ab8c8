"""The appliance's clock: its DATETIME columns hold local time and no zone.

A zone converts such a time, read as if it were UTC, into UTC. In the hour that a DST change repeats, a local time has
two readings: the one nearer to a time that the caller passes is used, or the first that is not before such a time, or
the first if it passes none. `ServerZone` is for a zone that nobody has configured: `MariaDBDatabase.zone` asks the
server for its offset and has it observed, and it also knows the offsets of before the server's zone was changed.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from msgspec import Meta

from correlator.model.rows import Micros

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - local time is what this file is about
_QUARTER = 900_000_000
"""Microseconds of a quarter of an hour. Offsets change only between quarters, so one per quarter is cached."""

_EARLY = 60_000_000
"""Microseconds that a time may lie before the one that it follows: some columns have whole seconds."""

_LONGEST = 100
"""Quarters of an hour that can be repeated: more than a day, as where a date line moved."""

_MAX_KEPT = 4096

MAX_OFFSET = 64_800

Offset: TypeAlias = Annotated[int, Meta(ge=-MAX_OFFSET, le=MAX_OFFSET)]
"""Seconds east of UTC, as of a server: 18 hours at the most."""

_MAX_OFFSETS = 8
"""Changes of a server's zone that are remembered."""

_APART = 300_000_000
"""Microseconds by which the clocks of the server, of its writers and of this machine may differ. Two offsets differ by
at least three times as much."""


class Zone:
    """Local time → UTC. `offset` gives the seconds east of UTC at a naive local time, and respects its `fold`.

    `changes`: how often the zone has become another one.
    """

    changes = 0

    def __init__(self, name: str, offset: Callable[[datetime.datetime], float]) -> None:
        self.name = name
        self._offset = offset
        self._known: dict[int, tuple[Micros, Micros]] = {}
        """The offsets of the first and of the second reading by quarter; usually they are equal."""

    def utc(self, local: Micros, near: Micros | None = None, since: Micros | None = None) -> Micros:
        """The UTC time of `local`, microseconds since 1970 by the wall clock.

        `near`: a UTC time close to it. `since`: one that it is not before, but for `_EARLY`.
        """
        first, second = self._known.get(quarter := local // _QUARTER) or self._offsets_in(quarter)
        if first == second:
            return local - first
        first, second = local - first, local - second
        if near is not None and abs(second - near) < abs(first - near):
            return second
        if since is not None and first < since - _EARLY:
            return second
        return first

    def readings(self, local: Micros) -> tuple[Micros, Micros]:
        """Both readings of a local time, the earlier one first. They are the same but for an hour that is repeated."""
        first, second = self._known.get(quarter := local // _QUARTER) or self._offsets_in(quarter)
        return local - first, local - second

    def repeated(self, local: Micros) -> tuple[Micros, Micros] | None:
        """The local times that come twice, from the first up to the last around `local`; None if it comes once."""
        quarter = local // _QUARTER
        if not self._is_repeated(quarter):
            return None
        begin = next((q for q in range(quarter, quarter - _LONGEST, -1) if not self._is_repeated(q - 1)), quarter)
        end = next((q for q in range(quarter, quarter + _LONGEST) if not self._is_repeated(q + 1)), quarter)
        return begin * _QUARTER, (end + 1) * _QUARTER

    def _is_repeated(self, quarter: int) -> bool:
        first, second = self._known.get(quarter) or self._offsets_in(quarter)
        return first != second

    def _offsets_in(self, quarter: int) -> tuple[Micros, Micros]:
        if len(self._known) >= _MAX_KEPT:
            self._known.clear()
        try:
            when = _EPOCH + datetime.timedelta(microseconds=quarter * _QUARTER)
            first = int(self._offset(when) * 1_000_000)
            second = int(self._offset(when.replace(fold=1)) * 1_000_000)
        except (OverflowError, ValueError, OSError):
            first = second = 0  # a year that no calendar has
        # A time that a forward change skips has two offsets as well, but no clock ever showed it.
        self._known[quarter] = first, min(first, second)
        return self._known[quarter]

    def __repr__(self) -> str:
        return f"Zone({self.name})"


class _Held(NamedTuple):
    """A zone of the server. `since`: when another one was last seen before; `until`: when the next was seen."""

    zone: Zone
    since: float
    until: float


class ServerZone(Zone):
    """The zone of a server that tells its offset: `observe` it with each answer that has local times.

    No row says under which offset it was written. Of all readings, the one is taken that agrees best with when the
    server had which offset. So rows from before a change keep their time; and so do all rows if the writers did not
    follow a change that was undone soon after.

    Args:
        here: The server runs on this machine, whose zone has rules for daylight saving time.
        clock: This machine's time, in microseconds.
    """

    def __init__(self, *, here: bool, clock: Callable[[], Micros] = lambda: time.time_ns() // 1000) -> None:
        super().__init__("unknown", lambda _: 0)
        self._here = here
        self._clock = clock
        self._held: list[_Held] = []
        self._seen_at: float = -math.inf

    def observe(self, offset: Offset) -> None:
        """Note the offset that the server has now, in seconds east of UTC."""
        now = self._clock()
        zone = host() if self._here and offset == host_offset() else fixed(offset)
        if not self._held:
            self._held = [_Held(zone, -math.inf, math.inf)]
        elif zone.name != self.name:
            self._held[-1] = self._held[-1]._replace(until=now)
            self._held = [*self._held[1 - _MAX_OFFSETS :], _Held(zone, self._seen_at, math.inf)]
            self.changes += 1
        self.name, self._seen_at = zone.name, now

    def utc(self, local: Micros, near: Micros | None = None, since: Micros | None = None) -> Micros:
        if len(self._held) == 1:
            return self._held[0].zone.utc(local, near, since)
        found = self._all_readings(local)
        if near is not None:
            return min(found, key=lambda one: abs(one[1] - near))[1]
        earliest = since - _EARLY if since is not None else -math.inf
        return min(found, key=lambda one: (one[1] < earliest, *one))[1]

    def readings(self, local: Micros) -> tuple[Micros, Micros]:
        found = [at for _, at in self._all_readings(local)]
        return min(found), max(found)

    def repeated(self, local: Micros) -> tuple[Micros, Micros] | None:
        return self._held[-1].zone.repeated(local)

    def _all_readings(self, local: Micros) -> Iterator[tuple[float, Micros]]:
        """Each reading, and by how many microseconds it disagrees with when the server had its zone."""
        now = self._clock()
        for zone, since, until in self._held:
            for at in set(zone.readings(local)):
                yield max(0.0, since - _APART - at, at - min(until, now) - _APART), at


def named(name: str) -> Zone:
    """An IANA zone. Raises `zoneinfo.ZoneInfoNotFoundError` for an unknown name."""
    zone = ZoneInfo(name)

    def offset(when: datetime.datetime) -> float:
        found = when.replace(tzinfo=zone).utcoffset()
        return found.total_seconds() if found is not None else 0.0

    return Zone(name, offset)


def fixed(seconds: int) -> Zone:
    """A zone without rules, `seconds` east of UTC."""
    return Zone(f"UTC{seconds / 3600:+g}", lambda _: seconds)


def host() -> Zone:
    """This machine's zone, with its rules."""
    return Zone("host", lambda when: (when - _EPOCH).total_seconds() - when.timestamp())


def host_offset() -> int:
    """Seconds east of UTC, on this machine, now."""
    found = datetime.datetime.now().astimezone().utcoffset()
    return int(found.total_seconds()) if found is not None else 0
