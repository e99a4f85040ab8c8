"""Writes the checkpoint once a second, and at the end, in a worker thread; in a cluster, every 3 s to a stream as well.

The content of a write is gathered in one step of the event loop, so it is the state of one moment. A failed write is
logged and counted; its changes are part of the next write, and nothing waits for the disk. A write to the stream takes
as long as the link needs; what is saved meanwhile is the next one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from msgspec.structs import replace

from correlator.errors import CorrelatorError
from correlator.forecast.forecaster import MAX_OPERATIONS
from correlator.jobs.exports import Exports
from correlator.jobs.index import Index
from correlator.model.persisted import Cursor, PersistedEvent
from correlator.ops import metrics
from correlator.ops.event_loop import Heartbeats, timed
from correlator.state.checkpoint import AT_ONCE, Changes, StoredForecasts, Unusable
from correlator.state.checkpoint_file import Checkpoint
from correlator.tasks import SAVE_OFFSET, end_tasks, set_within, until_next

if TYPE_CHECKING:
    from correlator.state.checkpoint_stream import StreamCheckpoint

log = logging.getLogger(__name__)

EVERY = 1.0
UNCHANGED_EVERY = 10.0
"""Seconds between checks for changes, and between writes when nothing has changed."""

STREAM_EVERY = 3.0
"""Least seconds between two writes to the cluster: a job of which the log has new rows has another row in each."""

STREAM_RETRY = 10.0
"""Seconds until the next write to the cluster after a failed one, which writes everything."""

FINISH_WITHIN = 5.0
"""Seconds at the end for the last write to the cluster. Without it a standby goes on from the one before."""

BEGIN_WITHIN = 2.0
"""Seconds of a first start for the first write to the cluster, before which a standby would begin at the present."""

STUCK_AFTER = 300.0
"""Seconds without a heartbeat: a disk may be slow, and a restart would not fix it."""

MALFORMED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Events(Protocol):
    """The pending events: `sinks.event_log.EventLog`, which stands above this package."""

    def changed(self) -> Mapping[int, PersistedEvent | None]: ...

    def mark_all(self) -> None: ...


class Waiting(NamedTuple):
    """A write to the cluster. `as_of`: the time of its state. `everything`: it has every row."""

    changes: Changes
    as_of: float
    everything: bool


class Saver:
    """Saves the index, its forecasts, `cursor()` (position in the log) and the pending events.

    `exports`: those of ended jobs; None if they are not exported. `stream`: the checkpoint in the cluster, if there is
    one; `position()`: the position in the stream of documents there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        index: Index,
        forecasts: StoredForecasts,
        cursor: Callable[[], Cursor],
        events: Events,
        live: Heartbeats | None = None,
        exports: Exports | None = None,
        stream: StreamCheckpoint | None = None,
        position: Callable[[], bytes | None] = lambda: None,
        *,
        stream_retry: float = STREAM_RETRY,
        stream_every: float = STREAM_EVERY,
    ) -> None:
        self._checkpoint = checkpoint
        self._index = index
        self._forecasts = forecasts
        self._cursor = cursor
        self._events = events
        self._exports = exports
        self._stream = stream
        self._position = position
        self._stream_retry = stream_retry
        self._stream_every = stream_every
        self._finishing = asyncio.Event()
        """Set at the end: the last write to the cluster waits for nothing."""
        self._stream_began = -math.inf
        """When the last write to the cluster began."""
        self._stream_at = 0.0
        """When the next write to the cluster may begin."""
        self._stream_error: str | None = None
        self._stream_lacks = True
        """True if the cluster has not got all changes: its next write has to have every row."""
        self._waiting: Waiting | None = None
        """The next write to the cluster."""
        self._mirroring: asyncio.Task[None] | None = None
        self._mirrored_at: float | None = None
        self._live = live or Heartbeats()
        self._unwritten: Changes | None = None
        """What the file may lack, as its last write has failed or is under way: part of the next one."""
        self._written: Changes | None = None
        self._last_event = 0
        """The highest number of an event that the file has had."""
        self._error: str | None = None
        self._began = time.monotonic()
        self._saved_at: float | None = None
        self._lock = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None
        metrics.CHECKPOINT_AGE.set_function(lambda: time.monotonic() - (self._saved_at or self._began))

    def describe(self) -> dict[str, Any]:
        """Describe the checkpoint for /health/ready."""
        now = time.monotonic()
        age = None if self._saved_at is None else round(now - self._saved_at, 3)
        error = f"the checkpoint cannot be written: {self._error}" if self._error is not None else None
        if error is None and self._stream_error is not None:
            error = f"the checkpoint cannot be written to the cluster: {self._stream_error}"
        part = {"ok": error is None, "age_seconds": age, "error": error}
        if self._stream is not None:
            part["cluster_age_seconds"] = None if self._mirrored_at is None else round(now - self._mirrored_at, 3)
        return part

    async def run(self) -> None:
        """Save once a second, from the end of loading, until cancelled."""
        with self._live.heartbeat("checkpoint", STUCK_AFTER) as beat:
            while True:
                await asyncio.sleep(until_next(EVERY, time.monotonic(), SAVE_OFFSET))
                if not self._index.loading:
                    await self.save(always=False)
                beat()

    async def begin(self) -> None:
        """Save for the first time, also to the cluster if it takes that soon: a slow link does not delay readiness."""
        await self.save()
        if self._mirroring is not None:
            await asyncio.wait({self._mirroring}, timeout=BEGIN_WITHIN)

    async def finish(self, within: float = FINISH_WITHIN) -> None:
        """Save for the last time, unless nothing was loaded, and also to the cluster if it takes that in `within` s."""
        self._finishing.set()
        if not self._index.loading:
            await self.save()
        if self._mirroring is not None:
            await asyncio.wait({self._mirroring}, timeout=within)
            await end_tasks({self._mirroring})

    async def save(self, *, always: bool = True) -> None:
        """Write the current state. Disk errors do not raise. Unless `always`, skip an unchanged state for a while.

        What the cluster gets is written in the background: it may take minutes on a slow link.
        """
        async with self._lock:
            if self._writing is not None and self._unwritten is not None:
                await asyncio.wait({self._writing})  # A cancelled `save` leaves its thread running.
                if self._writing.exception() is None:
                    self._note_events(self._unwritten)
            mirrored = self._stream is not None and self._stream.writable and time.monotonic() >= self._stream_at
            if everything := mirrored and self._stream_lacks:
                self._mark_everything()
            as_of = time.monotonic()
            with timed("checkpoint"):
                changes = Changes(
                    time.time(),
                    self._cursor(),
                    self._index.state(),
                    {i: self._index.persisted(i) for i in self._index.changed_ids()},
                    self._events.changed(),
                    self._forecasts.changed(MAX_OPERATIONS if always else AT_ONCE),
                    self._exports.changed() if self._exports is not None else None,
                    self._position(),
                )
            if not always and self._is_saved(changes):
                return
            self._mirror(Waiting(changes, as_of, everything), write=mirrored)
            if self._unwritten is not None:
                changes = merged(self._unwritten, changes)
                events = {n: e for n, e in changes.events.items() if e is not None or n <= self._last_event}
                changes = replace(changes, events=events)
            self._unwritten = changes
            began = time.monotonic()
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._checkpoint.write, changes))
            try:
                await asyncio.shield(self._writing)
            except (sqlite3.Error, OSError, Unusable, UnicodeError) as error:
                self._failed(error)
                return
            if self._error is not None:
                log.info("the checkpoint is written again")
            self._note_events(changes)
            self._error, self._saved_at, self._written, self._unwritten = None, as_of, changes, None
            metrics.CHECKPOINT_SECONDS.observe(time.monotonic() - began)

    def _is_saved(self, changes: Changes) -> bool:
        """True if the file has this state and was written less than `UNCHANGED_EVERY` seconds ago."""
        written, at = self._written, self._saved_at
        return (
            written is not None
            and self._unwritten is None
            and at is not None
            and time.monotonic() - at < UNCHANGED_EVERY
            and not changes.jobs
            and not changes.events
            and not changes.forecasts
            and not (changes.exports is not None and changes.exports.jobs)
            # The logical time is not compared: a query without results advances it, and no fact refers to it.
            and (changes.cursor, changes.memory.pending_events) == (written.cursor, written.memory.pending_events)
        )

    def _failed(self, error: Exception) -> None:
        metrics.CHECKPOINT_FAILURES.inc()
        self._written = None
        if self._error is None:
            log.warning("the checkpoint cannot be written: %s; a restart would go back to the last one", error)
        self._error = str(error)
        if isinstance(error, Unusable | UnicodeError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in MALFORMED:
            self._unwritten = None
            self._mark_everything()  # Also if no new file can be created now: the next write may create it.
            try:
                self._checkpoint.set_aside(str(error))
            except (sqlite3.Error, OSError) as again:
                self._error = str(again)

    def _note_events(self, written: Changes) -> None:
        """Note what the file has: an event that it never had needs no removal, however long the disk is full."""
        self._last_event = max(self._last_event, max(written.events, default=0))

    def _mark_everything(self) -> None:
        self._index.mark_all_changed()
        self._events.mark_all()
        self._forecasts.mark_all()
        if self._exports is not None:
            self._exports.mark_all()

    # -- the checkpoint in the cluster

    def _mirror(self, saved: Waiting, *, write: bool) -> None:
        """Have `saved` written to the cluster too, with what waits for the write before it."""
        if self._stream is None:
            return
        if self._mirroring is not None and self._mirroring.done():
            self._mirroring.result()  # Raises what ended it.
            self._mirroring = None
        if not write and self._mirroring is None:
            self._stream_lacks = True
            return
        if self._waiting is not None:
            both = merged(self._waiting.changes, saved.changes)
            saved = Waiting(both, saved.as_of, saved.everything or self._waiting.everything)
        self._waiting, self._stream_lacks = saved, False
        if self._mirroring is None:
            self._mirroring = asyncio.create_task(self._write_to(self._stream), name="checkpoint in the cluster")

    async def _write_to(self, stream: StreamCheckpoint) -> None:
        """Write what waits, until nothing does. Errors of the cluster do not raise."""
        while self._waiting is not None:
            await set_within(self._finishing, self._stream_began + self._stream_every - time.monotonic())
            self._stream_began = time.monotonic()
            saved, self._waiting = self._waiting, None
            try:
                await stream.write(saved.changes, everything=saved.everything)
            except CorrelatorError as error:
                self._stream_at = time.monotonic() + self._stream_retry
                self._stream_lacks, self._waiting = True, None
                if self._stream_error is None:
                    log.warning("the checkpoint cannot be written to the cluster: %s", error)
                self._stream_error = str(error)
            else:
                if self._stream_error is not None:
                    log.info("the checkpoint is written to the cluster again")
                self._stream_error, self._mirrored_at = None, saved.as_of


def merged(older: Changes, newer: Changes) -> Changes:
    """Return both as one write."""
    exports = newer.exports
    if exports is not None and older.exports is not None:
        exports = replace(exports, jobs={**older.exports.jobs, **exports.jobs})
    return replace(
        newer,
        jobs={**older.jobs, **newer.jobs},
        events={**older.events, **newer.events},
        forecasts={**older.forecasts, **newer.forecasts},
        exports=exports,
    )
