"""A database followed: three sessions, the tail, the holes, the tables; again and again, whatever happens to it.

Order of a connection: look up the schema and the zone; at a first start load the tables, then read the log from where
the history begins; then follow. Anything that fails closes all sessions and starts over, the position kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from correlator import metrics
from correlator.backoff import Backoff
from correlator.errors import SchemaError, SourceUnavailable
from correlator.sources import Feed
from correlator.sources.database import INDISPENSABLE, Database, Heard, Session
from correlator.sources.doorbell import Doorbell
from correlator.sources.queries import Queries
from correlator.sources.reconcile import Reconcile
from correlator.sources.tail import LogReset, Tail

log = logging.getLogger(__name__)

ZONE_EVERY = 5.0
SCHEMA_EVERY = 60.0
"""Seconds between looks at the server's offset, and at the schema: both may change under us."""


@dataclass(slots=True)
class Follower:
    """Satisfies `correlator.sources.Source`. `history`: seconds of log that a first start reads."""

    database: Database
    tail: Tail
    reconcile: Reconcile
    history: float = 86_400.0
    patience: float = 60.0
    """Seconds without the end of a query, whatever it was, that mean that this is stuck."""
    backoff: Backoff = field(default_factory=lambda: Backoff(0.2, 2.0, 5.0))
    doorbell: Doorbell | None = None
    _missing: list[str] | None = None
    _knows: bool = False
    """Whether the tables have been read in this run: what an earlier run knew may be old."""

    async def run(self, feed: Feed) -> None:
        with feed.part("source", self.patience) as beat:
            async with asyncio.TaskGroup() as tasks:
                if self.doorbell is not None:
                    tasks.create_task(self.doorbell.run(self._rung), name="doorbell")
                await self._run(feed, beat)

    def _rung(self, changed: Mapping[str, int]) -> None:
        if statements := changed.get("log_events"):
            self.tail.rings.ring(statements)
        if len(changed) > (statements is not None):
            self.reconcile.rung()

    async def _run(self, feed: Feed, beat: Callable[[], None]) -> None:
        while True:
            beat()
            try:
                await self._connection(feed, beat)
            except* (SourceUnavailable, SchemaError) as away:
                error = _first(away)
                feed.state(connected=False, error=str(error))
            except* LogReset as reset:
                log.warning("%s: reading the log again from where its history begins", _first(reset))
                metrics.LOG_RESETS.inc()
                self.tail.started = False
            await asyncio.sleep(self.backoff.next())

    async def _connection(self, feed: Feed, beat: Callable[[], None]) -> None:
        async with contextlib.AsyncExitStack() as stack:

            async def session(*, dirty: bool = False) -> Session:
                opened = await self.database.open(dirty=dirty)
                stack.push_async_callback(opened.close)
                beat()
                return Heard(opened, beat)

            rows, dirty, tables = await session(), await session(dirty=True), await session()
            queries = await self._look_up(tables, feed)
            if not self._knows or not self.tail.started:
                await self.reconcile.load(queries, tables, feed)
                self._knows = True
            if not self.tail.started:
                await self.tail.begin(queries, rows, int((time.time() - self.history) * 1_000_000))
            feed.state(connected=True)
            self.backoff.reset()
            note = self.reconcile.note
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.tail.follow(queries, rows, feed, note), name="tail")
                tasks.create_task(self.tail.watch(queries, rows, dirty, feed, note), name="gaps")
                tasks.create_task(self.tail.signs(self.database, dirty), name="signs")
                tasks.create_task(self.reconcile.follow(queries, tables, feed), name="reconcile")
                tasks.create_task(self._keep_looking(queries, tables), name="schema")

    async def _look_up(self, session: Session, feed: Feed) -> Queries:
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
                log.warning("the database lacks %s; following what is there", ", ".join(missing))
        feed.schema(tracking=schema.has("job_tracking", "id", "status"))
        return Queries(self.database.dialect, schema, await self.database.zone(session), feed.malformed)

    async def _keep_looking(self, queries: Queries, session: Session) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(ZONE_EVERY)
            queries.zone = await self.database.zone(session)
            if time.monotonic() - looked < SCHEMA_EVERY:
                continue
            looked = time.monotonic()
            if await self.database.schema(session) != queries.schema:
                raise SourceUnavailable("the tables have changed: looking them up again")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
