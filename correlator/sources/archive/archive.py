"""The archive: jobs by any ID, older pages and log lines from the database, for what is not in memory.

It satisfies `correlator.pipeline.queries.Archive`. It has two sessions of its own, one for jobs and one for log
lines, so that requests delay neither the tail nor each other. The work of each request is bounded: a page may be
short, and then contains the place where the next one begins. A page has JobLog jobs, and the rows of `failover_jobs`
that none of those owns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from correlator.bounded import BoundedDict
from correlator.errors import Away, SourceUnavailable
from correlator.jobs import fold, joblog
from correlator.jobs.directory import OwnIds
from correlator.jobs.sizes import Sizes
from correlator.model.document import MAX_ID
from correlator.model.facts import Job, Reading
from correlator.model.published import PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import LegacyRecord, Micros
from correlator.pipeline.queries import ArchivePage, FindLines, Found, JobQuery, LinesFound, LinesPage, LogLines
from correlator.sources.archive import lines
from correlator.sources.archive.lines import Heads, LinePlace, MatchingLines
from correlator.sources.db import searches
from correlator.sources.db.log_times import LogQuestion, LogTimes
from correlator.sources.db.queries import Queries, read_readings
from correlator.sources.db.searches import Place
from correlator.sources.db.session import Database, Session
from correlator.sources.db.slices import Budget, Slices
from correlator.sources.search import MAX_FOUND, Ask, Lookup, Questions, owned
from correlator.tasks import SharedTasks

AT_ONCE = 100
"""Rows that one step reads."""

SEARCH_AGAIN_AFTER = 300.0
"""Seconds for which it is remembered whether a row has an owner. A new row is followed, and so in memory."""

MAX_REMEMBERED = 10_000
"""Rows of which that is remembered."""

PAGE_BYTES = 4 << 20
"""Most bytes of metadata and error texts that are read for one page; a single job may exceed it."""

PLACES = 500
"""Most jobs that one slice returns: more than a page, as most of them may be in memory."""


class DatabaseArchive:
    """Answers requests from the database. Every query raises `SourceUnavailable`.

    Args:
        database: The server.
        id_keys: The keys under which metadata holds external IDs.
        legacy: True if failover_jobs is followed.
        limits: Most bytes that are read of metadata and errors.
        page_within: Seconds of queries for one page of log lines.
        jobs_within: Seconds of queries for one call of `page`, whose caller asks for more until it has waited enough.
        search_within: Seconds of queries that one request may spend on the search for an ID.
        times_within: Seconds that one request may spend on learning where in the log its times are.
        times: Where in the log times are.
        slices: Makes the sizes of slices of first, at least and at most so many rows.
        refusal: Returns why the database is not asked now: `SourceUnavailable` with this text is raised instead.
    """

    def __init__(
        self,
        database: Database,
        *,
        id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS,
        legacy: bool = True,
        limits: Sizes | None = None,
        page_within: float = 0.5,
        jobs_within: float = 0.1,
        search_within: float = 2.0,
        times_within: float = 2.0,
        times: LogTimes | None = None,
        slices: Callable[[int, int, int], Slices] = Slices,
        refusal: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._page_within = page_within
        self._jobs_within = jobs_within
        self._keys = tuple(id_keys)
        self._legacy = legacy
        self._jobs, self._log = Questions(database, limits, refusal), Questions(database, limits, refusal)
        self._legacy_pages = LegacyPages(self._keys)
        self._lookup = Lookup(self._keys, search_within, slices)
        self._finding: SharedTasks[Found | None] = SharedTasks()
        self._job_slices = slices(1_000, 200, 20_000)
        self._log_slices = slices(1_000, 500, 50_000)
        self._text_slices = slices(5_000, 100, 50_000)
        self._searching = asyncio.Lock()
        self._times_within = times_within
        self._times = times or LogTimes()
        self._heads = Heads()

    async def find(self, name: str, advance_clock: Callable[[], int]) -> Found | None:
        """The newest job with the ID `name`. Requests for one ID share a search, which ends with the last of them."""
        if not name or len(name) > MAX_ID or "\0" in name:
            return None
        return await self._finding.run(name, lambda: self._find(name, advance_clock))

    async def is_context(self, name: str) -> bool:
        """True if `name` is the context of a job in the database."""
        if not name or len(name) > MAX_ID or "\0" in name:
            return False
        return await self._jobs.ask(lambda q, s: searches.has_context(q, s, name))

    async def oldest(self) -> Micros | None:
        """When the oldest JobLog job started; None if there is none."""
        return await self._jobs.ask(lambda q, s: q.oldest_start(s))

    async def page(
        self,
        query: JobQuery,
        before: Place | None,
        limit: int,
        advance_clock: Callable[[], int],
        known: Callable[[str], bool] = lambda _: False,
    ) -> ArchivePage:
        """At most `limit` JobLog jobs and some `limit` legacy jobs, except those that are `known`."""
        readings: list[Reading] = []
        room = PAGE_BYTES
        budget = Budget(self._jobs_within)
        if query.until is not None:  # started_at has whole seconds
            end = (-(-query.until // 1_000_000) * 1_000_000, "")
            before = end if before is None else min(before, end)
        start = before
        while budget.allows():
            slice_of = partial(self._slice, advance_clock, query, before, room=room, known=known)
            some, before, used = await self._jobs.ask(partial(slice_of, limit=limit - len(readings)))
            readings += some
            room -= used
            if before is None or room <= 0 or len(readings) >= limit:
                break
        if not self._legacy or query.parent_job_id:
            return ArchivePage(readings, before)
        legacy, down_to = await self._legacy_pages.read(
            self._jobs.ask, query, start, before, limit, Budget(self._jobs_within), known
        )
        if down_to is not None and down_to != before:
            readings = [r for r in readings if _place(r) >= down_to]
        return ArchivePage(readings, down_to, legacy)

    async def _slice(
        self,
        advance_clock: Callable[[], int],
        query: JobQuery,
        before: Place | None,
        queries: Queries,
        session: Session,
        *,
        limit: int,
        room: int,
        known: Callable[[str], bool],
    ) -> tuple[list[Reading], Place | None, int]:
        """Read one slice of a page of jobs, of which `limit` jobs and `room` bytes still fit into the page.

        Returns the jobs, the place where the next slice begins, and the bytes of the jobs.
        """
        if not queries.schema.has("job_tracking", "id", "started_at"):
            return [], None, 0
        most, down_to = max(PLACES, limit), None
        with self._job_slices.timed():
            if not (narrow := await searches.is_narrow(queries, session, query)):
                down_to = await searches.nth_job(queries, session, before, self._job_slices.size)
            found = await searches.matching(queries, session, query, self._keys, before, down_to, most, sort=narrow)
        over = down_to is not None and query.since is not None and down_to[0] < query.since
        following = found[-1][0] if len(found) >= most else None if over else down_to
        ids, used = list[str](), 0
        for place, size in found:
            if known(place[1]):
                continue
            ids.append(place[1])
            used += size
            if used >= room or len(ids) >= limit:
                following = place
                break
        return await read_readings(queries, session, advance_clock(), ids), following, used

    async def lines(self, asked: LogLines) -> LinesPage:
        """At most `limit` lines; fewer if they are large or finding them takes too long."""
        matching = MatchingLines(asked.names, asked.limit, asked.query, self._keys)
        start = lines.decode_place(asked.after) if isinstance(asked.after, str) else asked.after
        names, since = asked.names, asked.query.since
        if isinstance(start, LinePlace) and names.ended is None:  # what follows is up to the newest row
            names, since = replace(names, started=0), None
        span = await lines.job_span(self._times, self._ask_log, names, since, self._times_within)
        budget = Budget(self._page_within)
        if asked.before is not None:
            return await lines.backward_page(self._log.ask, matching, self._log_slices, span, asked.before, budget)
        page = lines.ForwardPage(matching, self._log_slices, self._heads, span)
        return await page.read(self._log.ask, start, budget)

    async def find_lines(self, asked: FindLines) -> LinesFound:
        """Some `limit` lines, or those that were found in time."""
        query = asked.query
        span = await self._times.span(self._ask_log, query.since, query.until, self._times_within)
        page = lines.FoundPage(query, asked.limit, self._text_slices, self._times, span, self._keys)
        budget = Budget(self._page_within)
        return await page.read(self._log.ask, asked.places.get(""), budget, self._searching)

    async def _ask_log(self, question: LogQuestion) -> Any:
        return await self._log.ask(lambda queries, session: question(queries.log_clock, session))

    async def close(self) -> None:
        await self._jobs.close()
        await self._log.close()

    async def _find(self, name: str, advance_clock: Callable[[], int]) -> Found | None:
        if (job_id := await self._jobs.ask(lambda q, s: _own_id(q, s, name))) is not None:
            return await self._newest([job_id], "uuid", advance_clock)
        unfinished: SourceUnavailable | None = None
        try:
            if ids := await self._lookup.find(self._jobs.ask, name):
                return await self._newest(ids, "external_id", advance_clock)
        except SourceUnavailable as error:
            if error.reason is not Away.UNFINISHED:
                raise
            unfinished = error
        if ids := await self._jobs.ask(lambda q, s: _in_context(q, s, name)):
            return await self._newest(ids, "context_id", advance_clock)
        found = await self._jobs.ask(lambda q, s: _legacy(q, s, name)) if self._legacy else None
        if found is None and unfinished is not None:
            raise unfinished
        return found

    async def _newest(self, ids: Sequence[str], by: str, advance_clock: Callable[[], int]) -> Found | None:
        if len(ids) > MAX_FOUND:
            ids = await self._jobs.ask(lambda q, s: searches.newest(q, s, ids, MAX_FOUND))
        found = await self._jobs.ask(lambda q, s: read_readings(q, s, advance_clock(), ids))
        readings = {r.job_id: r for r in found if r.record is not None}
        views = [fold.view(fold.fold(Job(r.job_id), r), self._keys) for r in readings.values()]
        views.sort(key=lambda v: v.age_key, reverse=True)
        if not views:
            return None
        also = tuple(v.job_id for v in views[1:])
        return Found(Resolved(views[0].job_id, by, also), reading=readings[views[0].job_id])  # type: ignore[arg-type]


class LegacyPages:
    """Finds the legacy jobs of a page. `id_keys`: the keys under which metadata holds external IDs."""

    def __init__(self, id_keys: Sequence[str]) -> None:
        self._keys = tuple(id_keys)
        self._owned: BoundedDict[str, tuple[bool, float]] = BoundedDict(MAX_REMEMBERED)

    async def read(
        self,
        ask: Ask,
        query: JobQuery,
        before: Place | None,
        down_to: Place | None,
        limit: int,
        budget: Budget,
        known: Callable[[str], bool],
    ) -> tuple[list[LegacyRecord], Place | None]:
        """The legacy jobs that match between two places, newest first, but for those that are `known`; some `limit`.

        The second: the place down to which there are no others; None: the end of the list. Raises: `SourceUnavailable`.
        """
        found: list[LegacyRecord] = []
        matches = query.matcher()
        while True:
            places = await ask(
                partial(searches.legacy_places, since=query.since, before=before, down_to=down_to, limit=AT_ONCE)
            )
            wanted = [row_id for row_id, place in places if not known(place[1])]
            rows = await ask(partial(_rows, ids=wanted)) if wanted else {}
            some = [row for i in wanted if (row := rows.get(i)) is not None]
            some = [row for row in some if matches(PublishedJob(fold.legacy_view(row), 0, 0))]
            taken = await self._owned_of(ask, some)
            found += [row for row in some if row.job_id not in taken]
            if len(places) < AT_ONCE:
                return found, down_to
            before = places[-1][1]
            if len(found) >= limit or not budget.allows():
                return found, before

    async def _owned_of(self, ask: Ask, rows: Sequence[LegacyRecord]) -> set[str]:
        """The IDs of those rows that a JobLog job owns."""
        now = time.monotonic()
        known = {row.job_id: self._owned.get(row.job_id) for row in rows}
        asked = {
            row.job_id: row
            for row in rows
            if (state := known[row.job_id]) is None or now - state[1] >= SEARCH_AGAIN_AFTER
        }
        if asked:
            found = await ask(partial(searches.owned_by_index, names=list(asked)))
            found |= await owned(ask, {job_id: row for job_id, row in asked.items() if job_id not in found}, self._keys)
            for job_id in asked:
                self._owned[job_id] = (job_id in found, now)
        return {row.job_id for row in rows if self._owned.get(row.job_id, (False, now))[0]}


async def _rows(queries: Queries, session: Session, ids: Sequence[int]) -> Mapping[int, LegacyRecord]:
    return {row.id: row for row in await queries.legacy_where(session, f"id IN ({','.join(map(str, ids))})")}


def _place(reading: Reading) -> Place:
    record = reading.record
    return ((record.started_at if record is not None else None) or 0, reading.job_id)


async def _own_id(queries: Queries, session: Session, name: str) -> str | None:
    """The ID of the job whose ID is `name`, also in another case where the column's collation says so."""
    records = await queries.jobs_by_id(session, [name]) if queries.schema.has("job_tracking", "id") else {}
    found = OwnIds(records).of(name)
    return found if found in records else None


async def _in_context(queries: Queries, session: Session, name: str) -> list[str]:
    if not queries.schema.has("job_tracking", "context_id"):
        return []
    return await searches.with_column(queries, session, "context_id", name, MAX_FOUND)


async def _legacy(queries: Queries, session: Session, name: str) -> Found | None:
    if not queries.schema.has("failover_jobs", "id", "job_id", "status"):
        return None
    mark = queries.dialect.placeholder
    for record in await queries.legacy_where(session, f"job_id = {mark}", (name,)):
        if record.job_id == name:
            return Found(Resolved(name, "legacy", ()), legacy=record)
    return None
