"""The demo's time: the present, which a rate can hurry, and a past that is told in no time.

Always: `sleep` moves `now` forward; seconds are a plan's seconds, whatever they last on the wall.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

Part = Callable[["Clock"], Awaitable[None]]


class Clock(Protocol):
    """What a played plan knows of time."""

    def now(self) -> datetime:
        """Return the time, aware."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the plan pass."""
        ...

    async def together(self, parts: Iterable[Part]) -> None:
        """Play the parts side by side, from now until the last one ends."""
        ...


class LiveClock:
    """The present. A plan's second lasts 1/rate real seconds."""

    def __init__(self, rate: float) -> None:
        """`rate` above 1 hurries. Raises ValueError if it is not above 0."""
        if not rate > 0:
            raise ValueError(f"rate: expected a number above 0, not {rate}")
        self._rate = rate

    def now(self) -> datetime:
        """Return the real time."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Sleep for real."""
        await asyncio.sleep(seconds / self._rate)

    async def together(self, parts: Iterable[Part]) -> None:
        """Play each part in a task."""
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(_play(part, self))


class PastClock:
    """A past that passes as fast as it can be written down; parts follow each other, yet happen side by side."""

    def __init__(self, at: datetime) -> None:
        """Start at `at`."""
        self._at = at

    def now(self) -> datetime:
        """Return where the story is."""
        return self._at

    async def sleep(self, seconds: float) -> None:
        """Move on."""
        self._at += timedelta(seconds=seconds)

    async def together(self, parts: Iterable[Part]) -> None:
        """Play each part from now; go on after the longest."""
        clocks = []
        for part in parts:
            clock = PastClock(self._at)
            await part(clock)
            clocks.append(clock)
        self._at = max((clock.now() for clock in clocks), default=self._at)


async def _play(part: Part, clock: Clock) -> None:
    await part(clock)
