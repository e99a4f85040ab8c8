"""Keeps the checkpoint: what changed, once a second and at the end, written in a thread.

What is written is gathered in one step of the loop, so it was all true at one moment. A disk that does not take it is
a warning and a metric: what could not be written is written the next time, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any

from correlator import metrics
from correlator.checkpoint import Changes, Checkpoint, Unusable
from correlator.jobs.index import Index
from correlator.jobs.model import Cursor

log = logging.getLogger(__name__)

EVERY = 1.0
MALFORMED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Saver:
    """`cursor`: where the source would resume; `events`: what the broker has not acknowledged, by number."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        index: Index,
        cursor: Callable[[], Cursor],
        events: Callable[[], Mapping[int, tuple[str, bytes]]],
    ) -> None:
        self._checkpoint = checkpoint
        self._index = index
        self._cursor = cursor
        self._events = events
        self._error: str | None = None
        self._saved_at: float | None = None
        self._lock = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None

    def describe(self) -> dict[str, Any]:
        """For readiness."""
        age = None if self._saved_at is None else round(time.monotonic() - self._saved_at, 3)
        return {"ok": self._error is None, "age_seconds": age, "error": self._error}

    async def run(self) -> None:
        """Save once a second, from when there is something to go on with."""
        while True:
            await asyncio.sleep(EVERY)
            if not self._index.loading:
                await self.save()

    async def save(self) -> None:
        """Write what is true now. Never raises for the disk's sake."""
        async with self._lock:
            if self._writing is not None and not self._writing.done():
                await asyncio.wait({self._writing})  # who waited for it was cancelled, the thread was not
            changed = self._index.changed()
            changes = Changes(
                time.time(),
                self._cursor(),
                self._index.memory(),
                {i: self._index.kept(i) for i in changed},
                self._events(),
            )
            began = time.monotonic()
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._checkpoint.write, changes))
            try:
                await asyncio.shield(self._writing)
            except (sqlite3.Error, OSError) as error:
                self._failed(error, changed)
                return
            except BaseException:
                self._index.changed_again(changed)
                raise
            if self._error is not None:
                log.info("the checkpoint is written again")
            self._error, self._saved_at = None, time.monotonic()
            metrics.CHECKPOINT_SECONDS.observe(self._saved_at - began)

    def _failed(self, error: Exception, changed: list[str]) -> None:
        metrics.CHECKPOINT_FAILURES.inc()
        self._index.changed_again(changed)
        if self._error is None:
            log.warning("the checkpoint cannot be written: %s; a restart would go back to the last one", error)
        self._error = str(error)
        if isinstance(error, Unusable) or getattr(error, "sqlite_errorcode", 0) & 0xFF in MALFORMED:
            try:
                self._checkpoint.set_aside(str(error))
            except (sqlite3.Error, OSError) as again:
                self._error = str(again)
                return
            self._index.changed_again(self._index.everything())
