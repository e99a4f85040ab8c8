"""Timers that fall together: waking is most of what an idle daemon costs, and one wake-up serves all that are due.

What is done every so often is done at multiples of its period by the monotonic clock. What computes for a while has an
offset of its own, so that no two of them stop the event loop one after the other.
"""

from __future__ import annotations

EXPIRE, SAVE, FORECASTS = 0.25, 0.5, 0.75
"""Offsets, in seconds: multiples of the default of `database.idle_poll_interval`, at which the tail wakes anyway."""

ROUNDED = 0.001
"""Seconds by which a timer may be early: what it starts is not done twice then."""


def until(every: float, now: float, offset: float = 0.0) -> float:
    """Return the seconds from `now` to the next multiple of `every`, plus `offset`. Less than `ROUNDED` is none."""
    rest = every - (now - offset) % every
    return rest if rest >= ROUNDED else rest + every
