"""The appliance's clock: its DATETIME columns hold local time and no zone.

A zone converts such a time, read as if it were UTC, into UTC. In the hour that a DST change repeats, a local time has
two readings: the one nearer to a time that the caller passes is used, or the first that is not before such a time, or
the first if it passes none.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from zoneinfo import ZoneInfo

from correlator.jobs.model.rows import Micros

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - local time is what this file is about
_QUARTER = 900_000_000
"""Microseconds of a quarter of an hour. Offsets change only between quarters, so one per quarter is cached."""

_EARLY = 60_000_000
"""Microseconds that a time may lie before the one that it follows: some columns have whole seconds."""

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
        quarter = local // _QUARTER
        known = self._known.get(quarter)
        if known is None:
            known = self._offsets_in(quarter)
        first, second = known
        if first != second and near is not None and abs(local - second - near) < abs(local - first - near):
            return local - second
        if since is not None and local - first < since - _EARLY:
            return local - second
        return local - first

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
