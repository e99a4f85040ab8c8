"""The appliance's clock: its DATETIME columns hold local time and no zone.

A zone turns such a time, read as if it were UTC, into UTC. In the hour that a DST change repeats, the first is meant.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from zoneinfo import ZoneInfo

from correlator.jobs.model import Micros

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - local time is what this file is about
_QUARTER = 900_000_000
"""Offsets change at quarter hours at the most, so that one is looked up per quarter."""

_MAX_KEPT = 4096


class Zone:
    """Local time → UTC. `offset` gives the seconds east of UTC at a naive local time."""

    def __init__(self, name: str, offset: Callable[[datetime.datetime], float]) -> None:
        self.name = name
        self._offset = offset
        self._known: dict[int, Micros] = {}

    def utc(self, local: Micros) -> Micros:
        """`local`: microseconds since 1970 as the wall clock showed them."""
        quarter = local // _QUARTER
        offset = self._known.get(quarter)
        if offset is None:
            if len(self._known) >= _MAX_KEPT:
                self._known.clear()
            try:
                when = _EPOCH + datetime.timedelta(microseconds=quarter * _QUARTER)
                offset = int(self._offset(when) * 1_000_000)
            except (OverflowError, ValueError, OSError):
                offset = 0  # a year that no calendar has
            self._known[quarter] = offset
        return local - offset

    def __repr__(self) -> str:
        return f"Zone({self.name})"


def named(name: str) -> Zone:
    """An IANA zone. Raises `zoneinfo.ZoneInfoNotFoundError` for a name that is none."""
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
