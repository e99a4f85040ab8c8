"""Heartbeats of tasks: a task whose last beat is older than its limit is stuck.

An unreachable peer is no reason to miss a beat: a task that waits for a peer has a deadline, and beats after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

STUCK_AFTER = 30.0
"""Seconds without a beat after which a task that waits for no peer is stuck."""


class Heartbeats:
    """The heartbeats of one process. `clock` returns monotonic seconds. Event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heartbeats: set[_Heartbeat] = set()

    @contextlib.contextmanager
    def heartbeat(self, name: str, within: float) -> Iterator[Callable[[], None]]:
        """Register a task for as long as the block lasts. The task calls the yielded function to beat.

        `within`: the most seconds between two beats. Several tasks may have one name.
        """
        heartbeat = _Heartbeat(name, within, self._clock)
        self._heartbeats.add(heartbeat)
        try:
            yield heartbeat.beat
        finally:
            self._heartbeats.discard(heartbeat)

    def excuse(self, seconds: float) -> None:
        """Extend every limit once by `seconds`, because the whole process was stopped for that long."""
        for heartbeat in self._heartbeats:
            heartbeat.last += seconds

    def stuck(self) -> dict[str, float]:
        """Return the names of the stuck tasks, with the seconds since their last beat."""
        now = self._clock()
        silent = sorted(
            (now - heartbeat.last, heartbeat.name)
            for heartbeat in self._heartbeats
            if now - heartbeat.last > heartbeat.within
        )
        return {name: seconds for seconds, name in silent}


class _Heartbeat:
    __slots__ = ("_clock", "last", "name", "within")

    def __init__(self, name: str, within: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.within = within
        self._clock = clock
        self.last = clock()

    def beat(self) -> None:
        self.last = self._clock()
