"""The appliance's clock: its DATETIME columns hold local time and no zone.

A zone converts such a time, read as if it were UTC, into UTC. In the hour that a DST change repeats, a local time has
two readings: the one nearer to a time that the caller passes is used, or the first that is not before such a time, or
the first if it passes none.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from zoneinfo import ZoneInfo

from correlator.model.rows import Micros

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - local time is what this file is about
_QUARTER = 900_000_000
"""Microseconds of a quarter of an hour. Offsets change only between quarters, so one per quarter is cached."""

_EARLY = 60_000_000
"""Microseconds that a time may lie before the one that it follows: some columns have whole seconds."""

_LONGEST = 100
"""Quarters of an hour that can be repeated: more than a day, as where a date line moved."""

_MAX_KEPT = 4096


class Zone:
    """Local time → UTC. `offset` gives the seconds east of UTC at a naive local time, and respects its `fold`."""

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
