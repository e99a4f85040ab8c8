"""How much of a table one query reads, and for how long one request may ask."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

AIM = 0.05
"""Seconds that one query should take."""


class Slices:
    """The size of the next slice, in rows or ids: fourfold after a quick query, a quarter after a slow one."""

    def __init__(self, first: int, least: int, most: int) -> None:
        self.size = first
        self._least, self._most = least, most

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure the queries of one slice of the current size, also if they fail."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.record(time.monotonic() - began)

    def shrink(self, size: int) -> None:
        """Make the next slice no larger than `size`, as little as that was enough."""
        self.size = max(self._least, min(size, self.size))

    def record(self, seconds: float) -> None:
        """Adapt the size to a slice that took `seconds`."""
        if seconds < AIM / 2:
            self.size = min(self._most, self.size * 4)
        elif seconds > AIM * 4:
            self.size = max(self._least, self.size // 4)


class Budget:
    """Seconds of queries for one request. The first slice is always allowed, so that every request makes progress."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._begun = False

    def allows(self) -> bool:
        """True if another slice may be read."""
        allowed = not self._begun or time.monotonic() < self._until
        self._begun = True
        return allowed
