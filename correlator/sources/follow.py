"""The follower: it keeps the tail and the reconciliation running, through every failure of the database.

The problem: the database restarts, loses its newest rows, changes its schema or its clock, or stops answering. The
daemon has to continue where it was, without missing a row or publishing one twice.

The model: one connection is a group of parts (`SourcePart`), each with sessions of its own: new rows of the log, rows
that are committed late, the jobs and their steps, and failover_jobs. One more session reads the schema every
few seconds. A first start puts the head at the end of the log and loads the tables; then new rows are followed
while the log's past is read on a session of its own, and on another one, once the daemon is ready, the earlier runs
that forecasts learn from. A failed query of a table ends only its part, which begins again after a backoff, and is
reported as the state of that table. Any other failure, and a change of the schema, ends the whole group and closes all
sessions; after a backoff the next connection begins.

Invariants: the position (`Tail`, `Reconcile`, `Legacy`, `History`) outlives connections; a session is never used again
after a failure; at a first start the tables are loaded after the head has been set, so that they cover everything that
the log's past says of their jobs. What could not be read is read again as a whole before its table counts as well: a
table after its schema has changed or its queries have failed, and the rows of the log that were read without a column
that they had before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from correlator.errors import Away, OtherDatabase, SchemaError, SourceError, SourceUnavailable
from correlator.jobs.sizes import Sizes
from correlator.ops import metrics
from correlator.pipeline.source_status import SourcePart
from correlator.sources import Feed
from correlator.sources.db import identity
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import (
    INDISPENSABLE,
    NEEDED,
    OLDER_GENERATION,
    Database,
    MonitoredSession,
    Schema,
    Session,
    closing,
)
from correlator.sources.doorbell import Doorbell
from correlator.sources.tables.history import History
from correlator.sources.tables.legacy import Legacy
from correlator.sources.tables.reconcile import Reconcile
from correlator.sources.tail import LogReset, Tail
from correlator.tasks import Backoff, TaskGroup, set_within

log = logging.getLogger(__name__)


WAITED = frozenset({Away.LOCKED, Away.SLOW, Away.NO_ANSWER})
"""Reasons of failed queries that missed nothing: the next one returns what the failed one would have."""

ANSWERED = frozenset({Away.FAILED, Away.LOCKED, Away.MISSING_GRANTS, Away.NO_CONNECTION, Away.SLOW, Away.UNREADABLE})
"""Reasons of failed queries to which the database has answered with an error."""

LOADS = {
    SourcePart.JOBS: (SourcePart.JOBS.table, SourcePart.STEPS.table),
    SourcePart.LEGACY: (SourcePart.LEGACY.table,),
}
"""The tables of the parts that are read as a whole."""

SAMPLE_EVERY, FIRST_SAMPLE_EVERY = 600.0, 10.0
"""Seconds until the database's sample is taken again, as old jobs are deleted; the same while it has no job."""

READY_EVERY = 0.05
"""Seconds between checks whether the daemon is ready."""


@dataclass(slots=True)
class Follower:
    """Follows one database.

    `history`: seconds of log that a first start reads.
    """

    database: Database
    tail: Tail
    reconcile: Reconcile
    history: float = 86_400.0
    patience: float = 60.0
    """Seconds without a finished query after which the source counts as stuck."""
    legacy: Legacy | None = field(default_factory=Legacy)
    """The follower of failover_jobs; None ignores that table."""
    backoff: Backoff = field(default_factory=Backoff)
    retry: Callable[[], Backoff] = Backoff
    """Makes the delays between failed reads of one part, while the others go on."""
    earlier: History = field(default_factory=History)
    doorbell: Doorbell | None = None
    limits: Sizes = field(default_factory=Sizes)
    check_every: float = 5.0
    """Seconds between checks of the schema, which may change during a connection."""
    check_lost_every: float = 1.0
    """The same while something that was read before is missing."""
    give_up_after: float = 600.0
    """Seconds after which a lost column that does not exist any more is no longer missed: the appliance has changed."""
    collect_returned: float = 5.0
    """Seconds for which other jobs may come back before the log is read again for all of them."""
    wait_for_columns: float = 60.0
    """Seconds that new rows wait for a column of the log that was read before. Then they are read without it."""
    _schema: Schema | None = None
    _readable: set[str] = field(default_factory=lambda: set(NEEDED))
    """Tables and columns that this run has read, and those that every appliance has. If one is missing, it was lost."""
    _loaded: set[SourcePart] = field(default_factory=set)
    """The parts that this run has read as a whole, with the columns that their tables have. A checkpoint alone may be
    out of date."""
    _legacy_is_past: bool = False
    """True from a first start on until failover_jobs has been read: nothing in it is news."""
    _lost_since: dict[str, float] = field(default_factory=dict)
    """Since when each lost table or column is lost, or was last asked for, in monotonic seconds."""
    _columns_lost_at: float | None = None
    """Since when columns of the log are lost, in monotonic seconds."""
    _check_now: asyncio.Event = field(default_factory=asyncio.Event)
    _expected: tuple[str, ...] = ()
    """A sample of the database that the cluster's checkpoint is of, until this run has compared it."""

    def expect(self, sample: tuple[str, ...]) -> None:
        """Follow no other database than that of this sample. Call it before `run`, which raises `OtherDatabase`."""
        self._expected = sample

    async def run(self, feed: Feed) -> None:
        with feed.live.heartbeat("source", self.patience) as beat:
            async with TaskGroup() as tasks:
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
            began = time.monotonic()
            try:
                await self._connection(feed, beat)
            except* SchemaChanged:
                log.info("the schema has changed: reading it again")
            except* (SourceUnavailable, SchemaError) as away:
                error = _first(away)
                assert isinstance(error, SourceError)
                _report(error, feed)
            except* LogReset as reset:
                log.warning("%s: finding the position in the log again", _first(reset))
                metrics.LOG_RESETS.inc()
                self.tail.started = False
            if feed.status.has_answered_since(began) and not feed.status.has_few_connections:
                self.backoff.reset()
            await asyncio.sleep(self.backoff.next())

    async def _connection(self, feed: Feed, beat: Callable[[], None]) -> None:
        async with self._session(beat) as session:
            queries = await self._read_schema(session, feed)
            if self.reconcile.steps_paused.is_set():
                self.reconcile.resume_steps()
                self._loaded.discard(SourcePart.JOBS)
            if not self.tail.started:
                # Before the tables are read: they then cover everything that the log's past says of their jobs.
                async with self._session(beat) as rows:
                    since = await queries.now(rows) - int(self.history * 1_000_000)
                    await self.tail.begin(queries, rows, since)
                if self.tail.past is not None:
                    feed.status.past_begins()
                self._legacy_is_past = not feed.status.tables_loaded.is_set()
                self._loaded.clear()
            if not feed.status.tables_loaded.is_set() or not self._loaded:
                await self._load_first(queries, feed, beat)
            feed.status.loaded()
            async with TaskGroup() as tasks:

                def follow(part: SourcePart, run: Callable[[Queries, Feed], Awaitable[None]]) -> None:
                    tasks.create_task(self._retried(part, partial(run, queries, feed), feed), name=part.name)

                follow(SourcePart.LOG, self._log)
                follow(SourcePart.LATE_ROWS, self._late_rows)
                follow(SourcePart.JOBS, self._jobs)
                follow(SourcePart.STEPS, self._steps)
                if self.legacy is not None and self.legacy.is_there(queries):
                    follow(SourcePart.LEGACY, partial(self._legacy, self.legacy))
                    tasks.create_task(self.legacy.search(self.database, queries, feed), name="owners")
                else:
                    self._loaded.discard(SourcePart.LEGACY)
                tasks.create_task(self._past(queries, feed), name="past")
                tasks.create_task(self._log_of_returned_jobs(queries, feed), name="returned jobs")
                tasks.create_task(self._earlier_runs(queries, feed), name="history")
                tasks.create_task(self.tail.watch_for_reset(self.database, session), name="resets")
                tasks.create_task(self._watch_schema(queries, session, feed), name="schema")
                tasks.create_task(self._recognize_later(queries, beat), name="identity")
                tasks.create_task(self._watch_replication(session, feed), name="replication")

    @contextlib.asynccontextmanager
    async def _session(self, beat: Callable[[], None], *, dirty: bool = False) -> AsyncIterator[Session]:
        async with closing(self.database.open(dirty=dirty)) as session:
            beat()
            yield MonitoredSession(session, beat)

    async def _retried(self, part: SourcePart, run: Callable[[], Awaitable[None]], feed: Feed) -> None:
        """Run a part until the connection ends, again after each failed query of a table."""
        backoff = self.retry()
        while True:
            try:
                await run()
            except SourceUnavailable as error:
                if error.table is None:
                    raise
                if not feed.status.is_failing(part):
                    backoff.reset()
                self._part_failed(part, error, feed)
            await asyncio.sleep(backoff.next())

    def _part_failed(self, part: SourcePart, error: SourceUnavailable, feed: Feed) -> None:
        feed.status.part_failed(part, error)
        if error.reason not in WAITED:
            self._loaded.discard(part)
            self._check_now.set()

    # -- the parts

    async def _load_first(self, queries: Queries, feed: Feed, beat: Callable[[], None]) -> None:
        """Load the tables before the log is followed, as at each start. One that fails stops no other.

        Raises `SourceUnavailable` if no jobs are known: then there is nothing to follow the log with.
        """
        for part, load in ((SourcePart.JOBS, self._load_jobs), (SourcePart.LEGACY, self._load_legacy)):
            try:
                async with self._session(beat) as session:
                    await load(queries, session, feed)
            except SourceUnavailable as error:
                if error.table == SourcePart.STEPS.table:
                    self._pause_steps(error, feed)
                    await self._load_first(queries, feed, beat)  # without them
                    return
                if error.table is None or (part is SourcePart.JOBS and not feed.status.tables_loaded.is_set()):
                    raise
                self._part_failed(part, error, feed)

    async def _log(self, queries: Queries, feed: Feed) -> None:
        """Follow new rows. While a column is lost, they wait for it first."""
        if await self._columns_are_lost():
            self.tail.read_without_columns()
        with feed.live.heartbeat("tail", self.patience) as beat:
            async with self._session(beat) as rows:
                await self.tail.follow(queries, rows, feed, self.reconcile.note)

    async def _columns_are_lost(self) -> bool:
        """True if columns of the log are lost, and still are after the longest wait. Once back, the connection ends."""
        if self._columns_lost_at is None:
            return False
        await asyncio.sleep(self._columns_lost_at + self.wait_for_columns - time.monotonic())
        return True

    async def _late_rows(self, queries: Queries, feed: Feed) -> None:
        await self._columns_are_lost()
        with feed.live.heartbeat("gaps", self.patience) as beat:
            async with self._session(beat) as rows, self._session(beat, dirty=True) as dirty:
                await self.tail.watch(queries, rows, dirty, feed, self.reconcile.note, beat)

    async def _jobs(self, queries: Queries, feed: Feed) -> None:
        """Follow the jobs and their steps. Once a query of the steps has failed, the jobs are followed without them."""
        with feed.live.heartbeat("reconcile", self.patience) as beat:
            async with self._session(beat) as session:
                try:
                    if SourcePart.JOBS not in self._loaded:
                        await self._load_jobs(queries, session, feed)
                    await self.reconcile.follow(queries, session, feed)
                except SourceUnavailable as error:
                    if error.table != SourcePart.STEPS.table:
                        raise
                    self._pause_steps(error, feed)

    def _pause_steps(self, error: SourceUnavailable, feed: Feed) -> None:
        self.reconcile.pause_steps()
        self._part_failed(SourcePart.STEPS, error, feed)

    async def _load_jobs(self, queries: Queries, session: Session, feed: Feed) -> None:
        await self._recognize(queries, session)
        await self.reconcile.load(queries, session, feed)
        self._loaded.add(SourcePart.JOBS)
        if not self.reconcile.steps_paused.is_set():
            feed.status.read_again(SourcePart.STEPS)

    async def _steps(self, queries: Queries, feed: Feed) -> None:
        """Once the steps have failed, read everything again with its steps, on a session of its own."""
        await self.reconcile.steps_paused.wait()
        with feed.live.heartbeat("steps", self.patience) as beat:
            async with self._session(beat) as session:
                await self.reconcile.load_steps(queries, session, feed)
        feed.status.read_again(SourcePart.STEPS)

    async def _legacy(self, legacy: Legacy, queries: Queries, feed: Feed) -> None:
        with feed.live.heartbeat("legacy", self.patience) as beat:
            async with self._session(beat) as session:
                if SourcePart.LEGACY not in self._loaded:
                    await self._load_legacy(queries, session, feed)
                await legacy.follow(queries, session, feed, beat)

    async def _load_legacy(self, queries: Queries, session: Session, feed: Feed) -> None:
        if self.legacy is not None and self.legacy.is_there(queries):
            await self.legacy.load(queries, session, feed, past=self._legacy_is_past)
            self._legacy_is_past = False
            self._loaded.add(SourcePart.LEGACY)
            feed.status.read_again(SourcePart.LEGACY)

    async def _past(self, queries: Queries, feed: Feed) -> None:
        """Read the log's past on a session of its own."""

        def position() -> int | None:
            if (past := self.tail.past) is None:
                return None
            feed.status.past_progress(past.at - past.before, past.last - past.before)
            return past.at

        await self._columns_are_lost()

        async def read(session: Session) -> None:
            with feed.live.heartbeat("past", self.patience) as beat:
                await self.tail.read_past(queries, MonitoredSession(session, beat), feed, self.reconcile.note, beat)

        await self._read_beside(read, position, feed.status.past_failed)

    async def _log_of_returned_jobs(self, queries: Queries, feed: Feed) -> None:
        """Read the log again for jobs that came back of which nobody remembers what it said."""
        reconcile = self.reconcile
        with feed.live.heartbeat("returned", self.patience) as beat:

            async def read(session: Session) -> None:
                monitored = MonitoredSession(session, beat)
                since = await queries.now(monitored) - int(self.history * 1_000_000)
                reconcile.log_needed.clear()
                since = max(since, reconcile.log_from or 0)
                await self.tail.read_again_from(since, queries, monitored, feed, reconcile.note, beat)
                if not reconcile.log_needed.is_set():  # Else others have come back, whose rows were passed meanwhile.
                    reconcile.log_from = None

            while True:
                beat()
                await set_within(reconcile.log_needed, 1.0)
                if reconcile.log_from is not None:
                    await asyncio.sleep(self.collect_returned)
                    await self._read_beside(read, lambda: reconcile.log_from, feed.status.past_failed)

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
        failed: Callable[[SourceUnavailable], None],
    ) -> None:
        """Call `read` until `position` is None. A failed read is retried on a new session, and ends no other one."""
        backoff, read_to = self.retry(), -1
        while (at := position()) is not None:
            if at > read_to:
                backoff.reset()
            read_to = at
            try:
                async with closing(self.database.open()) as session:
                    await read(session)
            except SourceUnavailable as error:
                failed(error)
                await asyncio.sleep(backoff.next())

    async def _read_schema(self, session: Session, feed: Feed) -> Queries:
        schema = await self.database.schema(session)
        if not schema.has("log_events", *INDISPENSABLE):
            raise SchemaError(
                "log_events cannot be read: it, or its columns id, message and ts, are missing or not granted"
                " (GRANT SELECT on the four tables)"
            )
        missing, changed = schema.missing(), schema != self._schema
        if missing and (self._schema is None or missing != self._schema.missing()):
            log.warning("the database lacks %s: following the tables and columns that exist", ", ".join(missing))
        if self._schema is not None:  # What was away may have changed meanwhile, however soon it is back.
            before, after = self._schema.columns, schema.columns
            self._loaded -= {part for part, of in LOADS.items() if any(before.get(t) != after.get(t) for t in of)}
        self._schema = schema
        lost = [name for name in missing if name in self._readable - OLDER_GENERATION]
        self._readable |= schema.readable()
        self._lost_since = {name: self._lost_since.get(name, time.monotonic()) for name in lost}
        self._note_columns_of_the_log([name for name in lost if name.startswith("log_events.")])
        feed.status.schema(tracking=schema.has("job_tracking", "id", "status"), lost=lost, changed=changed)
        feed.status.connections(await self.database.connections(session))
        zone = await self.database.zone(session)
        return Queries(self.database.dialect, schema, zone, feed.status.malformed, self.limits, frozenset(lost))

    def _note_columns_of_the_log(self, lost: list[str]) -> None:
        if not lost:
            self._columns_lost_at = None
            self.tail.read_again()
        elif self._columns_lost_at is None:
            self._columns_lost_at = time.monotonic()
            log.warning("rows of the log wait %g s for %s", self.wait_for_columns, ", ".join(lost))

    async def _recognize(self, queries: Queries, session: Session) -> None:
        """Take the sample for the checkpoint. Raises: `OtherDatabase`."""
        if not queries.schema.has("job_tracking", "id"):
            return
        if await identity.is_other(session, self.database.dialect, self._expected):
            raise OtherDatabase
        self._expected = ()
        self.tail.sample = await identity.sample(session)

    async def _recognize_later(self, queries: Queries, beat: Callable[[], None]) -> None:
        """Take the sample again from time to time."""
        while True:
            await asyncio.sleep(SAMPLE_EVERY if self.tail.sample else FIRST_SAMPLE_EVERY)
            with contextlib.suppress(SourceUnavailable):
                async with self._session(beat) as session:
                    await self._recognize(queries, session)

    async def _watch_replication(self, session: Session, feed: Feed) -> None:
        """Report how far a replica is behind.

        One whose replication is stopped may have become the primary: then rows are written to it.
        """
        stopped: tuple[float, int] | None = None
        while True:
            found, now, head = await self.database.replication(session), time.monotonic(), self.tail.cursor().head
            if found is None or found.running:
                stopped = None
                feed.status.replica(found.behind if found is not None else None)
            elif stopped is None:
                stopped = now, head
            else:
                if now - stopped[0] < 2 * self.check_every:  # what was applied last may only just have been read
                    stopped = stopped[0], head
                written = head > stopped[1]
                feed.status.replica(None if written else now - stopped[0], stopped=not written)
            await asyncio.sleep(self.check_every)

    async def _watch_schema(self, queries: Queries, session: Session, feed: Feed) -> None:
        """Raises `SchemaChanged` within seconds after a change, and at once if a query has failed because of it."""
        while True:
            await set_within(self._check_now, self.check_lost_every if queries.lost else self.check_every)
            self._check_now.clear()
            await self._give_up_columns(queries)
            if await self.database.schema(session) != queries.schema:
                raise SchemaChanged
            if feed.status.has_few_connections:
                await self._count_connections(feed)

    async def _count_connections(self, feed: Feed) -> None:
        """Ask on a session of its own: one that is open keeps the limit that it began with."""
        with contextlib.suppress(SourceUnavailable):
            async with closing(self.database.open()) as session:
                feed.status.connections(await self.database.connections(session))

    async def _give_up_columns(self, queries: Queries) -> None:
        """Follow a table without columns that were dropped long ago. Raises `SchemaChanged` if there are any.

        One that is not granted any more is missed for ever: that is a mistake.
        """
        now = time.monotonic()
        for name, since in self._lost_since.items():
            table, _, column = name.partition(".")
            if not column or name in NEEDED or now - since < self.give_up_after or not queries.schema.has(table):
                continue
            self._lost_since[name] = now
            if await self._is_dropped(table, column):
                log.warning("%s was dropped %g s ago: the table is followed without it", name, now - since)
                self._readable.discard(name)
                self._loaded.clear()
                raise SchemaChanged

    async def _is_dropped(self, table: str, column: str) -> bool:
        """True if a column does not exist, though its table can be read: an account without the right learns less."""
        async with closing(self.database.open()) as session:
            try:
                await session.query(f"SELECT {column} FROM {table} WHERE 1 = 0")
            except SourceUnavailable as error:
                return error.reason is Away.FAILED
        return False


class SchemaChanged(Exception):
    """Tables or columns have come, gone or changed: the queries have to be made again."""


def _report(error: SourceError, feed: Feed) -> None:
    if isinstance(error, SourceUnavailable) and error.table is not None:
        feed.status.part_failed(next(part for part in SourcePart if part.table == error.table), error)
        feed.status.judge()
    else:
        answers = isinstance(error, SchemaError) or (isinstance(error, SourceUnavailable) and error.reason in ANSWERED)
        feed.status.failed(error, answers=answers)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
