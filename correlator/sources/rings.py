"""When the tail looks, as far as the doorbell has a say in it: at once when it rings, and soon again after that.

It rings a moment before rows are visible, and does not say how many there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

AGAIN_AFTER = (0.001, 0.002, 0.004)
"""Seconds after which what was rung for is looked for again; after the last of them it is left to the poll."""


@dataclass(slots=True)
class Rings:
    """What was rung for and has not been found. Without a doorbell it rings never, and a rest is a sleep."""

    owed: int = 0
    """Statements, less one for each look since that found rows: these may be of any of them."""
    _tries: int = 0
    _rung: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self, statements: int) -> None:
        """So many have changed the log: what they wrote is there, or will be in a moment."""
        self.owed += statements
        self._tries = 0
        self._rung.set()

    def found(self) -> None:
        """A look has found rows."""
        self.owed = max(0, self.owed - 1)

    def forget(self) -> None:
        """All that is there will be read anyway."""
        self.owed = 0

    async def rest(self, seconds: float) -> None:
        """Sleep until the next look: when it rings, when it is time to look again, or after `seconds`."""
        if self.owed and self._tries < len(AGAIN_AFTER):
            seconds = min(seconds, AGAIN_AFTER[self._tries])
            self._tries += 1
        else:
            self.owed = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._rung.wait()
        self._rung.clear()
