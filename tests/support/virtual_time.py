"""Virtual time: an hour of timers and deadlines passes in milliseconds, so a test can prove that nothing happens."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only in `run`, from timer to timer, without waiting. It does no I/O."""

    def __init__(self) -> None:
        self.now = self._until = 1000.0
        self.wakes = 0
        """How often it has waited for a timer that came: what an idle program costs."""
        super().__init__(_NoFiles(self._idle))

    def time(self) -> float:
        return self.now

    def run(self, seconds: float = 0.0) -> None:
        """Run everything that is due within the next `seconds`."""
        self._until = self.now + seconds
        self.run_forever()

    def cancel_all(self) -> None:
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.run()

    def _idle(self, timeout: float | None) -> None:
        if timeout is not None and self.now + timeout <= self._until:
            self.now += timeout
            self.wakes += 1
        else:
            self.now = self._until
            self.stop()


class _NoFiles(selectors.SelectSelector):
    """Watches no files: a loop that would wait for one is idle."""

    def __init__(self, idle: Callable[[float | None], None]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._idle(timeout)
        return []
