"""Which tasks make progress. Each says so as it goes round; one that has been silent for longer than it may is stuck.

A peer that is away is no reason to be silent: whoever waits for one has a deadline, and goes round after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

STUCK_AFTER = 30.0
"""Seconds of silence that are too long for a task that waits for nobody."""


class Liveness:
    """`clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._parts: set[_Part] = set()

    @contextlib.contextmanager
    def part(self, name: str, within: float) -> Iterator[Callable[[], None]]:
        """A task, for as long as the block lasts. It says that it goes on by calling what is yielded.

        `within`: seconds that it may be silent. Several parts may have one name.
        """
        part = _Part(name, within, self._clock)
        self._parts.add(part)
        try:
            yield part.beat
        finally:
            self._parts.discard(part)

    def excuse(self, seconds: float) -> None:
        """All of us were stopped for so long: nobody could say anything."""
        for part in self._parts:
            part.heard += seconds

    def stuck(self) -> dict[str, float]:
        """The parts that make no progress, with the seconds for which they have been silent."""
        now = self._clock()
        silent = sorted((now - part.heard, part.name) for part in self._parts if now - part.heard > part.within)
        return {name: seconds for seconds, name in silent}


class _Part:
    __slots__ = ("_clock", "heard", "name", "within")

    def __init__(self, name: str, within: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.within = within
        self._clock = clock
        self.heard = clock()

    def beat(self) -> None:
        self.heard = self._clock()
