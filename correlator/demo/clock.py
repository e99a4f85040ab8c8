"""The demo's time: real time at an adjustable rate, and simulated time in the past that takes no real time.

Invariants: `sleep` advances `now`. Seconds are seconds of the scenario, whatever their real duration is.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

Part = Callable[["Clock"], Coroutine[Any, Any, None]]


class Clock(Protocol):
    """The time that a scenario is played in."""

    def now(self) -> datetime:
        """Return the current time, with its zone."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` of the scenario pass."""
        ...

    async def together(self, parts: Iterable[Part]) -> None:
        """Play the parts concurrently, from now until the last one ends."""
        ...


class LiveClock:
    """Real time. One second of a scenario lasts 1/rate real seconds."""

    def __init__(self, rate: float) -> None:
        """A `rate` above 1 is faster than real time. Raises ValueError if it is not above 0."""
        if not rate > 0:
            raise ValueError(f"rate: expected a number above 0, not {rate}")
        self._rate = rate

    def now(self) -> datetime:
        """Return the real time."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Sleep for seconds/rate real seconds."""
        await asyncio.sleep(seconds / self._rate)

    async def together(self, parts: Iterable[Part]) -> None:
        """Play each part in a task."""
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part(self))


class PastClock:
    """Simulated time. Concurrent parts are played one after the other, each from the same start time."""

    def __init__(self, at: datetime) -> None:
        """Start at `at`."""
        self._at = at

    def now(self) -> datetime:
        """Return the simulated time."""
        return self._at

    async def sleep(self, seconds: float) -> None:
        """Advance the simulated time."""
        self._at += timedelta(seconds=seconds)

    async def together(self, parts: Iterable[Part]) -> None:
        """Play each part from now, and continue when the longest one has ended."""
        clocks = []
        for part in parts:
            clock = PastClock(self._at)
            await part(clock)
            clocks.append(clock)
        self._at = max((clock.now() for clock in clocks), default=self._at)
