"""The follower of failover_jobs, the legacy tracker: it finds the rows that are jobs of their own.

The problem: the appliance writes a row of failover_jobs beside many JobLog jobs, under the job's UUID or under an ID
that it constructed, and does not always bring it up to date: a failover that failed years ago may still say `pending`.
Such a row adds nothing: job_tracking is authoritative. Only a row whose ID no JobLog job has is a legacy job.

The model: every poll reads new and changed rows, by conditions that the server evaluates, so that unchanged rows are
not sent; all unfinished rows are read again within `ROUND`, in which the deletion of any other row in memory is found
too. A row that is new to the index is applied as undecided,
and an undecided row is not published. Its owner is searched by index immediately, for many rows in one query; the log
and the metadata are searched on a session of their own (`search`), in ranges of started_at near the row's age.

It has sessions of its own, so that nothing else waits for a query of failover_jobs.

Invariants: no slow query runs on the session of the polls. A row is decided, and published if no job owns it, when
that search has ended, and at most `DECIDE_WITHIN` after it was read. Polls use at most one part in `REST` of the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from correlator.bounded import chunks
from correlator.errors import SourceUnavailable
from correlator.jobs import joblog
from correlator.jobs.joblog import LEGACY_ACTIVE, LEGACY_ENDED
from correlator.model.rows import Int64, LegacyRecord
from correlator.pipeline.source_status import SourcePart
from correlator.sources import Feed
from correlator.sources.db import searches
from correlator.sources.db.queries import Queries, with_lost
from correlator.sources.db.session import IN_ONE, Database, Session, closing, row_of, rows_of
from correlator.sources.search import directly, owned
from correlator.sources.tables.reconcile import LATE_COMMIT
from correlator.tasks import until_next

log = logging.getLogger(__name__)

PAGE_BYTES = 4 << 20
"""Most bytes that one query for many rows returns, by the limits of their texts; a single row may exceed it."""

TAIL = 200
"""Ids below the highest one in which a poll still searches for new rows: they may be committed late."""

ROUND = 300.0
"""Seconds within which every unfinished row is read again, `IN_ONE` rows per poll, and deleted rows are found."""

MARK_EVERY = 10.0
"""Seconds between two questions for the time of the database. Until then, what has changed is read more than once."""

IDS = 5_000
"""Integer ids in one statement that returns few of their rows."""

REST = 20
"""After a poll that took t seconds, the next begins at least REST × t after its begin."""

DECIDE_WITHIN = 60.0
"""Seconds for the search for a row's owner. After that the row is published as a legacy job, until one is found."""

SPAN = 86_400
"""Seconds of started_at in one query of a search. A failed query halves it, down to `MIN_SPAN`."""

MIN_SPAN = 60

RETRY = 1.0
"""Seconds between a failed search and its next attempt."""


@dataclass(slots=True)
class Legacy:
    """The position in failover_jobs, and the tasks that read it.

    Args:
        retention: Seconds back for which ended rows are loaded.
        id_keys: The keys under which metadata holds external IDs.
        interval: Seconds between two polls; more if one takes long.
        max_jobs: Jobs that memory holds: of the ended rows, only the newest are loaded.
        max_searched: Most rows whose owners are searched for at a time. Further ones wait until they are read again.
    """

    retention: float = 86_400.0
    id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS
    interval: float = 1.0
    max_jobs: int = 20_000
    max_searched: int = 10_000
    _mark: str | None = None
    """The database's time from which the next poll reads. It outlives connections: rows also change between two."""
    _next_mark: float = 0.0
    """When the next mark is taken, in monotonic seconds."""
    _last_id: int = 0
    _page: int | None = None
    """The id at which the round through all unfinished rows continues; None between two rounds."""
    _next: float = 0.0
    _next_round: float = 0.0
    _searched: dict[str, tuple[LegacyRecord, float]] = field(default_factory=dict)
    """Rows whose owners are being searched for, with the monotonic time by which they have to be decided."""
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _span: int = SPAN

    @staticmethod
    def is_there(queries: Queries) -> bool:
        """True if failover_jobs exists with the required columns."""
        return queries.schema.has("failover_jobs", "id", "job_id", "status")

    async def load(self, queries: Queries, session: Session, feed: Feed, *, past: bool = False) -> None:
        """Read all unfinished rows, the newest ended ones within the retention, and those that the feed has.

        `past`: none is news.
        """
        last = await queries.last_legacy_id(session)
        first, most, read = 0, _at_once(queries), set[int]()
        while True:
            page = f"status NOT IN {LEGACY_ENDED} AND id > {first} ORDER BY id LIMIT {most}"
            rows = await queries.legacy_where(session, page)
            read |= {r.id for r in rows}
            await self._apply(queries, session, feed, rows, again=True, past=past)
            if len(rows) < most:
                break
            first = rows[-1].id
        if queries.schema.has("failover_jobs", "created_at"):
            read |= await self._load_ended(queries, session, feed, last, past=past)
        await self._read_again(queries, session, feed, [r for r in feed.known.legacy_rows() if r.id not in read])
        self._last_id, self._next_round = max(self._last_id, last), time.monotonic() + ROUND

    async def _load_ended(self, queries: Queries, session: Session, feed: Feed, last: int, *, past: bool) -> set[int]:
        """Read the newest ended rows within the retention, the newest first. Returns their ids."""
        recent = f"status IN {LEGACY_ENDED} AND created_at >= {queries.dialect.placeholder}"
        since, read, began = await queries.clock(session, self.retention), set[int](), 0
        while (most := min(_at_once(queries), self.max_jobs - len(read))) > 0:
            page = f"{recent} AND id <= {last} ORDER BY id DESC LIMIT {most}"
            rows = await queries.legacy_where(session, page, [since])
            await self._apply(queries, session, feed, rows, again=True, past=past)
            read |= {r.id for r in rows}
            if len(rows) < most:
                return read
            last, began = rows[-1].id - 1, rows[-1].started_at or rows[-1].created_at or 0
        feed.left_out(began)
        return read

    async def follow(self, queries: Queries, session: Session, feed: Feed, beat: Callable[[], None]) -> None:
        """Poll until cancelled. Raises `SourceUnavailable`; the next call continues at the last successful poll.

        Calls `beat` while it rests, which is long after a slow poll.
        """
        if self._mark is None:
            self._mark = await queries.clock(session, LATE_COMMIT)
        while True:
            following = None
            if time.monotonic() >= self._next_mark:
                following = await queries.clock(session, LATE_COMMIT)
            await self.poll(queries, session, feed, self._mark)
            if following is not None:
                self._mark, self._next_mark = following, time.monotonic() + MARK_EVERY
            feed.status.part_answered(SourcePart.LEGACY)
            while (left := self._next - time.monotonic()) > self.interval:
                beat()
                await asyncio.sleep(min(left, self.interval))
            now = time.monotonic()
            await asyncio.sleep(max(until_next(self.interval, now), self._next - now))

    async def poll(self, queries: Queries, session: Session, feed: Feed, mark: str) -> None:
        """Read new rows, rows that have changed since `mark` by the database's clock, and a part of the others."""
        now = began = time.monotonic()
        unsettled = {r.id: r for r in feed.known.unsettled_legacy()}
        rows = {r.id: r for r in await self._changed(queries, session, unsettled.values(), mark)}
        deletable = unsettled
        if now >= self._next_round:
            self._page, self._next_round = 0, now + ROUND
            deletable = {r.id: r for r in feed.known.legacy_rows()}
        if self._page is not None:
            page = f"status IN {LEGACY_ACTIVE} AND id > {self._page} ORDER BY id LIMIT {_at_once(queries)}"
            found = await queries.legacy_where(session, page)
            rows |= {r.id: r for r in found}
            self._page = found[-1].id if len(found) == _at_once(queries) else None
        gone = await self._gone(session, deletable)
        await self._apply(queries, session, feed, rows.values(), [deletable[i].job_id for i in gone])
        # Their owner no longer has their ID.
        lost = [r for i, r in unsettled.items() if not r.apart and i not in rows and r.job_id not in self._searched]
        await self._apply(queries, session, feed, lost)
        self._last_id = max([self._last_id, *rows])
        self._next = began + REST * (time.monotonic() - began)

    async def _changed(
        self, queries: Queries, session: Session, unsettled: Iterable[LegacyRecord], mark: str
    ) -> list[LegacyRecord]:
        """New rows, and those that differ from `unsettled`."""
        place = queries.dialect.placeholder
        recent = f"id > {self._last_id - TAIL}"
        if queries.schema.has("failover_jobs", "updated_at"):
            touched, args = f"updated_at >= {place}", [mark]
            recent += f" AND (id > {self._last_id} OR {touched})"
            either = recent, [mark, mark], f"status IN {LEGACY_ACTIVE} AND {touched}"
            # Mostly there is none, and an answer without rows still has all columns: the ids alone cost a third.
            rows = await queries.legacy_where(session, *either) if await queries.legacy_ids(session, *either) else []
        else:
            touched, args = "1 = 0", []
            rows = await queries.legacy_where(session, recent)
        by_status: dict[str, list[int]] = {}
        for record in unsettled:
            by_status.setdefault(record.status, []).append(record.id)
        for status, ids in by_status.items():
            for part in chunks(sorted(ids), IDS):
                where = f"id IN ({','.join(map(str, part))}) AND (status <> {place} OR {touched})"
                rows += await queries.legacy_where(session, where, [status, *args])
        return rows

    @staticmethod
    async def _gone(session: Session, ids: Collection[int]) -> set[int]:
        """Those of `ids` that have been deleted from failover_jobs."""
        gone: set[int] = set()
        for part in chunks(sorted(ids), IDS):
            where = f"FROM failover_jobs WHERE id IN ({','.join(map(str, part))})"
            (count,) = await row_of(session, tuple[Int64], f"SELECT COUNT(*) {where}")
            if count < len(part):
                gone |= set(part) - {r[0] for r in await rows_of(session, tuple[Int64], f"SELECT id {where}")}
        return gone

    async def _read_again(self, queries: Queries, session: Session, feed: Feed, known: Sequence[LegacyRecord]) -> None:
        for part in chunks(known, _at_once(queries)):
            rows = await queries.legacy_where(session, f"id IN ({','.join(str(r.id) for r in part)})")
            there = {r.id for r in rows}
            await self._apply(queries, session, feed, rows, [r.job_id for r in part if r.id not in there], again=True)

    async def _apply(
        self,
        queries: Queries,
        session: Session,
        feed: Feed,
        rows: Collection[LegacyRecord],
        gone: Sequence[str] = (),
        *,
        again: bool = False,
        past: bool = False,
    ) -> None:
        """Apply `rows`, and find the owners of undecided ones; with `again` (after a start), of all."""
        if lost := queries.lost_of("failover_jobs"):
            rows = [with_lost(r, feed.known.legacy(r.job_id) or r, lost) for r in rows]
        known = feed.known
        asked = {
            r.job_id: r
            for r in rows
            if (again and known.is_unsettled(r.job_id)) or (r.job_id not in self._searched and known.is_undecided(r))
        }
        indexed = await searches.owned_by_index(queries, session, asked) if asked else set()
        feed.legacy(rows, gone, past=past)
        rest = asked.keys() - indexed
        searchable = queries.schema.has("job_tracking", "id")
        feed.decide_legacy(indexed, () if searchable else rest)
        until = time.monotonic() + DECIDE_WITHIN
        for job_id in sorted(rest) if searchable else ():
            if len(self._searched) < self.max_searched:
                self._searched[job_id] = (asked[job_id], until)
                self._wanted.set()

    # -- the search, on a session of its own

    async def search(self, database: Database, queries: Queries, feed: Feed) -> None:
        """Search the log and the metadata for owners until cancelled. A failed search is retried and raises nothing."""
        while True:
            await self._wanted.wait()
            try:
                async with closing(database.open()) as session:
                    await self._search(queries, session, feed)
            except SourceUnavailable as error:
                log.info(
                    "the owners of %d rows of failover_jobs cannot be searched for (%s): trying again in %g s",
                    len(self._searched),
                    error,
                    RETRY,
                )
                self._span = max(MIN_SPAN, self._span // 2)
                now = time.monotonic()
                # They stay in the search, and are merged with an owner that it finds later.
                feed.decide_legacy((), [i for i, (_, until) in self._searched.items() if until <= now])
                await asyncio.sleep(RETRY)

    async def _search(self, queries: Queries, session: Session, feed: Feed) -> None:
        while self._searched:
            part = dict(
                sorted(self._searched.items(), key=lambda item: searches.owner_began_near(item[1][0]) or 0)[:IN_ONE]
            )
            rows = {job_id: record for job_id, (record, _) in part.items()}
            found = await owned(directly(queries, session), rows, self.id_keys, self._span, rest=True)
            feed.decide_legacy(found, part.keys() - found)
            for job_id in part:
                del self._searched[job_id]
            self._span = min(SPAN, self._span * 2)
        self._wanted.clear()


def _at_once(queries: Queries) -> int:
    """Most rows of one query, so that it returns at most `PAGE_BYTES`."""
    return max(1, min(IN_ONE, PAGE_BYTES // (queries.limits.metadata + queries.limits.error)))
