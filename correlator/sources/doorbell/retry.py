"""When the tail reads because of the doorbell: immediately, and again a few times within milliseconds.

A statement reaches the binary log a moment before its rows are visible, and the event does not count its rows. So a
read right after a wake-up may find nothing, or only a part.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

AGAIN_AFTER = (0.001, 0.002, 0.004)
"""Seconds between the retries for pending statements. After the last one the regular poll finds their rows."""


@dataclass(slots=True)
class DoorbellRetry:
    """Statements in the binary log whose rows have not been read. Without a doorbell, `wait` is a plain sleep.

    The doorbell calls `notify`, the tail everything else, both from one event loop.
    """

    pending: int = 0
    """Number of statements, less one for each read that found rows: those may belong to any of them."""
    _tries: int = 0
    _notified: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self, statements: int) -> None:
        """Wake the tail: `statements` have changed log_events. Their rows are visible now or in a moment."""
        self.pending += statements
        self._tries = 0
        self._notified.set()

    def rows_found(self) -> None:
        """Count a read that found rows."""
        self.pending = max(0, self.pending - 1)

    def clear(self) -> None:
        """Drop the pending statements: the tail reads everything that is there anyway."""
        self.pending = 0

    async def wait(self, seconds: float) -> None:
        """Sleep until the next read: until a wake-up, until the next retry, or for `seconds`."""
        if self.pending and self._tries < len(AGAIN_AFTER):
            seconds = min(seconds, AGAIN_AFTER[self._tries])
            self._tries += 1
        else:
            self.pending = 0
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._notified.set)
        try:
            await self._notified.wait()
        finally:
            timer.cancel()
        self._notified.clear()
