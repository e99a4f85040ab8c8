"""The follower: it keeps the tail and the reconciliation running, through every failure of the database.

The problem: the database restarts, loses its newest rows, changes its schema or its clock, or stops answering. The
daemon has to continue where it was, without missing a row or publishing one twice.

The model: one connection is a group of tasks over three sessions: READ COMMITTED for the log, READ UNCOMMITTED for the
probes, READ COMMITTED for the tables. It reads the schema and the zone; at a first start it puts the head at the end of
the log and loads the tables; then it follows new rows while the log's past is read on a session of its own, and on
another one, once the daemon is ready, the earlier runs that forecasts learn from. These two are replaced if a read
fails. The first failure of any other task ends the whole group and closes all sessions. After a backoff the next
connection begins.

Invariants: the position (`Tail`, `Reconcile`, `History`) outlives connections; a session is never used again after a
failure; the tables are loaded after the head has been set, so that they cover everything that the log's past says of
their jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from correlator.backoff import Backoff
from correlator.errors import SchemaError, SourceError, SourceUnavailable
from correlator.jobs.sizes import Sizes
from correlator.ops import metrics
from correlator.sources import Feed
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import INDISPENSABLE, NEEDED, OLDER_GENERATION, Database, MonitoredSession, Session
from correlator.sources.doorbell.doorbell import Doorbell
from correlator.sources.log.reset_markers import LogReset
from correlator.sources.log.tail import Tail
from correlator.sources.tables.history import History
from correlator.sources.tables.reconcile import Reconcile

log = logging.getLogger(__name__)


RETRY = (0.2, 2.0, 5.0)
"""Shortest delay in seconds, factor and longest delay between attempts (`Backoff`)."""

READY_EVERY = 0.05
"""Seconds between checks whether the daemon is ready."""


@dataclass(slots=True)
class Follower:
    """Follows one database. Satisfies `correlator.sources.Source`.

    `history`: seconds of log that a first start reads.
    """

    database: Database
    tail: Tail
    reconcile: Reconcile
    history: float = 86_400.0
    patience: float = 60.0
    """Seconds without a finished query after which the source counts as stuck."""
    backoff: Backoff = field(default_factory=lambda: Backoff(*RETRY))
    earlier: History = field(default_factory=History)
    doorbell: Doorbell | None = None
    limits: Sizes = field(default_factory=Sizes)
    zone_every: float = 5.0
    schema_every: float = 60.0
    """Seconds between checks of the server's UTC offset, and of the schema: both may change during a connection."""
    _missing: list[str] | None = None
    _readable: set[str] = field(default_factory=lambda: set(NEEDED))
    """Tables and columns that this run has read, and those that every appliance has. If one is missing, it was lost."""
    _tables_loaded: bool = False
    """True once the tables have been loaded in this run. A checkpoint alone may be out of date."""

    async def run(self, feed: Feed) -> None:
        with feed.live.heartbeat("source", self.patience) as beat:
            async with asyncio.TaskGroup() as tasks:
                if self.doorbell is not None:
                    tasks.create_task(self.doorbell.run(self._on_doorbell), name="doorbell")
                await self._run(feed, beat)

    def _on_doorbell(self, changed: Mapping[str, int]) -> None:
        if statements := changed.get("log_events"):
            self.tail.doorbell_retry.notify(statements)
        if len(changed) > (statements is not None):
            self.reconcile.on_doorbell()

    async def _run(self, feed: Feed, beat: Callable[[], None]) -> None:
        while True:
            beat()
            try:
                await self._connection(feed, beat)
            except* (SourceUnavailable, SchemaError) as away:
                error = _first(away)
                public = error.public if isinstance(error, SourceError) else None
                feed.status.failed(str(error), public)
            except* LogReset as reset:
                log.warning("%s: finding the position in the log again", _first(reset))
                metrics.LOG_RESETS.inc()
                self.tail.started = False
            await asyncio.sleep(self.backoff.next())

    async def _connection(self, feed: Feed, beat: Callable[[], None]) -> None:
        async with contextlib.AsyncExitStack() as stack:

            async def session(*, dirty: bool = False) -> Session:
                opened = await self.database.open(dirty=dirty)
                stack.push_async_callback(opened.close)
                beat()
                return MonitoredSession(opened, beat)

            rows, dirty, tables = await session(), await session(dirty=True), await session()
            queries = await self._read_schema(tables, feed)
            if not self.tail.started:
                # Before the tables are read: they then cover everything that the log's past says of their jobs.
                await self.tail.begin(queries, rows, int((time.time() - self.history) * 1_000_000))
                if self.tail.past is not None:
                    feed.status.past_begins()
                self._tables_loaded = False
            if not self._tables_loaded:
                await self.reconcile.load(queries, tables, feed)
                self._tables_loaded = True
            feed.status.loaded()
            feed.status.answered()
            self.backoff.reset()
            note = self.reconcile.note
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.tail.follow(queries, rows, feed, note), name="tail")
                tasks.create_task(self.tail.watch(queries, rows, dirty, feed, note), name="gaps")
                tasks.create_task(self._past(queries, feed, beat), name="past")
                tasks.create_task(self._earlier_runs(queries, feed), name="history")
                tasks.create_task(self.tail.watch_for_reset(self.database, dirty), name="resets")
                tasks.create_task(self.reconcile.follow(queries, tables, feed), name="reconcile")
                tasks.create_task(self.reconcile.search(self.database, queries, feed), name="owners")
                tasks.create_task(self._watch_schema(queries, tables), name="schema")

    async def _past(self, queries: Queries, feed: Feed, beat: Callable[[], None]) -> None:
        """Read the log's past on a session of its own."""

        def position() -> int | None:
            if (past := self.tail.past) is None:
                return None
            feed.status.past_progress(past.at - past.before, past.last - past.before)
            return past.at

        async def read(session: Session) -> None:
            await self.tail.read_past(queries, MonitoredSession(session, beat), feed, self.reconcile.note)

        await self._read_beside(read, position, feed.status.past_failed)

    async def _earlier_runs(self, queries: Queries, feed: Feed) -> None:
        """Once the daemon is ready, read the runs that forecasts learn from, on a session of its own."""
        with feed.live.heartbeat("history", self.patience) as beat:

            async def read(session: Session) -> None:
                turn = partial(self.tail.wait_while_busy, beat)
                await self.earlier.read(queries, MonitoredSession(session, beat), feed, turn)

            def position() -> int | None:
                return self.earlier.position if feed.history_wanted() else None

            while feed.status.loading:
                beat()
                await asyncio.sleep(READY_EVERY)
            await self._read_beside(read, position, feed.status.history_failed)

    async def _read_beside(
        self,
        read: Callable[[Session], Awaitable[None]],
        position: Callable[[], int | None],
        failed: Callable[[str], None],
    ) -> None:
        """Call `read` until `position` is None. A failed read is retried on a new session, and ends no other one."""
        backoff, read_to = Backoff(*RETRY), -1
        while (at := position()) is not None:
            if at > read_to:
                backoff.reset()
            read_to = at
            try:
                session = await self.database.open()
                try:
                    await read(session)
                finally:
                    await session.close()
            except SourceUnavailable as error:
                failed(str(error))
                await asyncio.sleep(backoff.next())

    async def _read_schema(self, session: Session, feed: Feed) -> Queries:
        schema = await self.database.schema(session)
        if not schema.has("log_events", *INDISPENSABLE):
            raise SchemaError(
                "log_events cannot be read: it, or its columns id, message and ts, are missing or not granted"
                " (GRANT SELECT on the four tables)"
            )
        missing = schema.missing()
        if missing != self._missing:
            self._missing = missing
            if missing:
                log.warning("the database lacks %s: following the tables and columns that exist", ", ".join(missing))
        lost = [name for name in missing if name in self._readable - OLDER_GENERATION]
        self._readable |= schema.readable()
        feed.status.schema(tracking=schema.has("job_tracking", "id", "status"), lost=lost)
        return Queries(
            self.database.dialect, schema, await self.database.zone(session), feed.status.malformed, self.limits
        )

    async def _watch_schema(self, queries: Queries, session: Session) -> None:
        checked_at = time.monotonic()
        while True:
            await asyncio.sleep(self.zone_every)
            queries.zone = await self.database.zone(session)
            if time.monotonic() - checked_at < self.schema_every:
                continue
            checked_at = time.monotonic()
            if await self.database.schema(session) != queries.schema:
                raise SourceUnavailable("the schema has changed: reading it again")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
