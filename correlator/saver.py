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
from correlator.liveness import Liveness

log = logging.getLogger(__name__)

EVERY = 1.0
ALL_THE_SAME_EVERY = 10.0
"""Seconds between looks at whether something changed, and between writes of what did not."""

STUCK_AFTER = 300.0
"""Seconds without a step: a disk may take long, and a restart would not mend it."""

MALFORMED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Saver:
    """`cursor`: where the source would resume; `events`: what the broker has not acknowledged, by number."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        index: Index,
        cursor: Callable[[], Cursor],
        events: Callable[[], Mapping[int, tuple[str, bytes]]],
        live: Liveness | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._index = index
        self._cursor = cursor
        self._events = events
        self._live = live or Liveness()
        self._written: Changes | None = None
        self._error: str | None = None
        self._began = time.monotonic()
        self._saved_at: float | None = None
        self._lock = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None
        metrics.CHECKPOINT_AGE.set_function(lambda: time.monotonic() - (self._saved_at or self._began))

    def describe(self) -> dict[str, Any]:
        """For readiness."""
        age = None if self._saved_at is None else round(time.monotonic() - self._saved_at, 3)
        return {"ok": self._error is None, "age_seconds": age, "error": self._error}

    async def run(self) -> None:
        """Save once a second what has changed, from when there is something to go on with."""
        with self._live.part("checkpoint", STUCK_AFTER) as beat:
            while True:
                await asyncio.sleep(EVERY)
                if not self._index.loading:
                    await self.save(always=False)
                beat()

    async def save(self, *, always: bool = True) -> None:
        """Write what is true now. Never raises for the disk's sake. What is there already can wait, if not `always`."""
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
            if not always and self._is_there(changes):
                return
            began = time.monotonic()
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._checkpoint.write, changes))
            try:
                await asyncio.shield(self._writing)
            except (sqlite3.Error, OSError, UnicodeError) as error:
                self._failed(error, changed)
                return
            except BaseException:
                self._index.changed_again(changed)
                raise
            if self._error is not None:
                log.info("the checkpoint is written again")
            self._error, self._saved_at, self._written = None, time.monotonic(), changes
            metrics.CHECKPOINT_SECONDS.observe(self._saved_at - began)

    def _is_there(self, changes: Changes) -> bool:
        """Whether the file has all of it, and was written a short while ago."""
        there, at = self._written, self._saved_at
        return (
            there is not None
            and at is not None
            and time.monotonic() - at < ALL_THE_SAME_EVERY
            and not changes.jobs
            # Looks that found nothing change nothing: no fact has their tick.
            and (changes.cursor, changes.memory.owed, changes.events) == (there.cursor, there.memory.owed, there.events)
        )

    def _failed(self, error: Exception, changed: list[str]) -> None:
        metrics.CHECKPOINT_FAILURES.inc()
        self._written = None
        self._index.changed_again(changed)
        if self._error is None:
            log.warning("the checkpoint cannot be written: %s; a restart would go back to the last one", error)
        self._error = str(error)
        if isinstance(error, Unusable | UnicodeError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in MALFORMED:
            try:
                self._checkpoint.set_aside(str(error))
            except (sqlite3.Error, OSError) as again:
                self._error = str(again)
                return
            self._index.changed_again(self._index.everything())
