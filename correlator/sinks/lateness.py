"""When a broker or a receiver is too slow: it answers, but what is pending for it waits too long. Pure."""

from __future__ import annotations

from enum import Enum

LATE_AFTER = 10.0
ON_TIME_BELOW = 5.0
"""Seconds. What waits for longer than the first is late, until nothing waits for longer than the second."""

TENFOLD = 10


class Notice(Enum):
    """What is worth a line in the log."""

    LATE = "late"
    """From now on, or the age or the number of those that were dropped is ten times what the last line said."""
    ENDS = "ends"


class Lateness:
    """The judgement on one receiver. Times are arguments, in seconds.

    `after`, `below`: see `LATE_AFTER`. Between the two it stays as it is, so that it does not flicker.
    """

    def __init__(self, after: float = LATE_AFTER, below: float = ON_TIME_BELOW) -> None:
        self._after, self._below = after, below
        self.is_late = False
        self._accepting_since: float | None = None
        """Time since which the receiver accepts everything. None: the last attempt failed, or there was none."""
        self._noted_age = 0.0
        self._noted_dropped = 0

    def accepts(self, now: float) -> None:
        """The receiver has accepted something at `now`."""
        if self._accepting_since is None:
            self._accepting_since = now

    def fails(self) -> None:
        """The receiver accepts nothing: it is judged again once it does."""
        self._accepting_since = None

    def judge(self, now: float, age: float, dropped: int = 0) -> Notice | None:
        """Judge by the seconds that the oldest has waited, and by how many were dropped since the start.

        After an outage the receiver has `after` for the backlog.
        """
        if self._accepting_since is None:
            return None
        if self.is_late and age < self._below:
            self.is_late = False
            return Notice.ENDS
        if not self.is_late and (age <= self._after or now - self._accepting_since < self._after):
            self._noted_dropped = dropped
            return None
        is_worse = age >= TENFOLD * self._noted_age or (
            dropped > self._noted_dropped and dropped >= TENFOLD * self._noted_dropped
        )
        if self.is_late and not is_worse:
            return None
        self.is_late, self._noted_age, self._noted_dropped = True, age, dropped
        return Notice.LATE
