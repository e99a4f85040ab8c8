"""Whether a receiver is too slow: it answers, and what waits for it waits for too long."""

from __future__ import annotations

import math
from enum import Enum

LATE_AFTER = 10.0
ON_TIME_BELOW = 5.0
"""Seconds. What waits for longer than the first is late, until nothing waits for longer than the second."""

TENFOLD = 10


class Notice(Enum):
    """What is worth a line in the log."""

    BEGINS = "begins"
    WORSE = "worse"
    """The age, or the number of those that were dropped, is ten times what the last line said."""
    ENDS = "ends"


class Lateness:
    """The judgement on one receiver. Nothing here reads a clock.

    `after`, `below`: see `LATE_AFTER`. Between the two it stays as it is, so that it does not flicker.
    """

    def __init__(self, after: float = LATE_AFTER, below: float = ON_TIME_BELOW) -> None:
        self._after, self._below = after, below
        self.is_late = False
        self._noted_age = 0.0
        self._noted_dropped = 0

    def judge(self, age: float, dropped: int = 0, *, accepting_for: float = math.inf) -> Notice | None:
        """Judge by the seconds that the oldest has waited, and by how many were dropped since the start.

        `accepting_for`: seconds since the receiver accepts something. After an outage it has `after` for the backlog.
        """
        if self.is_late and age < self._below:
            self.is_late = False
            return Notice.ENDS
        if not self.is_late and (age <= self._after or accepting_for < self._after):
            self._noted_dropped = dropped
            return None
        is_new, self.is_late = not self.is_late, True
        is_worse = age >= TENFOLD * self._noted_age or (
            dropped > self._noted_dropped and dropped >= TENFOLD * self._noted_dropped
        )
        if not is_new and not is_worse:
            return None
        self._noted_age, self._noted_dropped = age, dropped
        return Notice.BEGINS if is_new else Notice.WORSE
