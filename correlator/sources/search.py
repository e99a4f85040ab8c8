"""How requests search the database: short questions, one after the other, until the time of the request is over.

The problem: requests arrive while the server is down, slow or overloaded, and rows differ by a factor of 10,000 in
size: 20,000 of 300 bytes take 30 ms, of 1 MB ten seconds. These rules keep the wait of each request short, however many
there are:

* A question is a short query over one session. A caller that needs more asks several, and those of other requests run
  in between, in order of arrival (`Questions`).
* It reads as much of a table as the server scans in about `AIM` seconds (`Slices`).
* One failure fails all waiting questions: they would only meet the same timeout, one after the other. For `REST`
  seconds after it, new questions fail immediately as well.
* At most `MAX_WAITING` questions wait; one more is refused.

`Lookup` finds the jobs that carry an external ID: by the indexed columns first, then in metadata, from the newest job
backwards. A constructed ID ends in the Unix second in which it was made, and no job that began more than a day before
carries it: there the search ends if it has found anything. A search that takes longer than a request may stops with
`Away.UNFINISHED`, and the next request for the same ID continues where it stopped.

`owned` asks the other way around: which rows of failover_jobs have an ID that a JobLog job carries.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.errors import Away, SourceUnavailable
from correlator.jobs import joblog
from correlator.jobs.sizes import Sizes
from correlator.model.rows import LegacyRecord
from correlator.sources.db import searches
from correlator.sources.db.queries import Queries
from correlator.sources.db.searches import Place
from correlator.sources.db.session import Database, Session
from correlator.sources.db.slices import Budget, Slices

T = TypeVar("T")

DatabaseQuestion: TypeAlias = Callable[[Queries, Session], Awaitable[T]]

MAX_WAITING = 100
"""Most questions that wait."""

REST = 1.0
"""Seconds after a failure for which questions fail immediately."""

AGAIN_WITHIN = 1.0
"""Seconds within which a failed question is retried over a new session: the server may have closed the old one."""

SHARED = frozenset(
    {
        *(Away.UNREACHABLE, Away.NO_CONNECTION, Away.LOGIN_REFUSED, Away.NO_ANSWER),
        *(Away.UNSAFE_LOGIN, Away.NOT_MARIADB),
    }
)
"""Failures that every question would meet. A query that the server refuses concerns its own question alone."""

REOPEN_EVERY = 60.0
"""Seconds after which the session is reopened and the schema and the zone are read again."""

REOPEN_LACKING = 2.0
"""The same while there is no job_steps: it may only be away."""

SEARCH_AGAIN_AFTER = 30.0
"""Seconds for which the result of a search is remembered."""

MAX_REMEMBERED = 10_000
"""Searches whose state is remembered."""

MAX_FOUND = 100
"""Most jobs with one ID that are found, the newest first; `also` names no others."""

_SECOND = re.compile(r"(\d{10})$")


class Ask(Protocol):
    """How a question reaches the database, e.g. `questions.Questions.ask`."""

    async def __call__(self, question: DatabaseQuestion[T], /) -> T: ...


def directly(queries: Queries, session: Session) -> Ask:
    """Ask over a session of the caller."""

    async def ask(question: DatabaseQuestion[T], /) -> T:
        return await question(queries, session)

    return ask


class Questions:
    """One session to `database`, opened when it is needed. Used from one event loop; safe to cancel at any point."""

    def __init__(
        self,
        database: Database,
        limits: Sizes | None = None,
        refusal: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._database = database
        self._limits = limits
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._session: Session | None = None
        self._queries: Queries | None = None
        self._reopen_at = 0.0
        self._failures = 0
        self._failed_at = float("-inf")
        self._failure: SourceUnavailable | None = None
        self._refusal = refusal
        """Returns why no question may be sent now; None: they may be."""

    async def ask(self, question: DatabaseQuestion[T]) -> T:
        """The answer to `question`.

        Raises:
            SourceUnavailable: There is a refusal, or the database cannot answer, or did not answer another question
                within the last `REST` seconds; with `Away.BUSY` if too many questions wait.
        """
        if (why := self._refusal()) is not None:
            raise SourceUnavailable(why)
        if self._failure is not None and time.monotonic() - self._failed_at < REST:
            raise _same(self._failure)
        if self._waiting >= MAX_WAITING:
            raise SourceUnavailable(f"{MAX_WAITING} questions wait for the database", Away.BUSY)
        failures = self._failures
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            if self._failure is not None and self._failures != failures:
                raise _same(self._failure)
            return await self._ask(question)
        finally:
            self._lock.release()

    async def _ask(self, question: DatabaseQuestion[T]) -> T:
        kept, began = self._session is not None, time.monotonic()
        while True:
            try:
                queries, session = await self._connect()
                answer = await question(queries, session)
            except SourceUnavailable as error:
                await self._disconnect()
                if not kept or time.monotonic() - began > AGAIN_WITHIN:
                    if error.reason in SHARED:
                        self._failures += 1
                        self._failure, self._failed_at = error, time.monotonic()
                    raise
                kept = False
            except BaseException:
                await self._disconnect()
                raise
            else:
                self._failure = None
                return answer

    async def close(self) -> None:
        await self._disconnect()

    async def _connect(self) -> tuple[Queries, Session]:
        if self._session is None or self._queries is None or time.monotonic() >= self._reopen_at:
            await self._disconnect()
            session = await self._database.open()
            try:
                schema = await self._database.schema(session)
                zone = await self._database.zone(session)
            except BaseException:
                await session.close()
                raise
            self._session, self._queries = session, Queries(self._database.dialect, schema, zone, limits=self._limits)
            self._reopen_at = time.monotonic() + (REOPEN_EVERY if schema.has("job_steps") else REOPEN_LACKING)
        return self._queries, self._session

    async def _disconnect(self) -> None:
        session, self._session, self._queries = self._session, None, None
        if session is not None:
            await session.close()


def _same(error: SourceUnavailable) -> SourceUnavailable:
    """A new exception for another request: one that is raised twice collects the tracebacks of both."""
    return SourceUnavailable(str(error), error.reason)


class Search(Struct):
    """The progress of the search for one ID. `found`: newest first; `before`: where it continues."""

    found: list[str]
    before: Place | None = None
    done_at: float | None = None


class Lookup:
    """Finds jobs by external ID.

    `id_keys`: the keys under which metadata holds them. `search_within`: seconds of queries that one request may spend.
    `slices`: see `DatabaseArchive`. `max_remembered`: searches whose state is remembered.
    """

    def __init__(
        self,
        id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS,
        search_within: float = 2.0,
        slices: Callable[[int, int, int], Slices] = Slices,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        self._within = search_within
        self._keys = tuple(id_keys)
        self._searches: BoundedDict[str, Search] = BoundedDict(max_remembered)
        self._slices = slices(1_000, 200, 20_000)

    async def find(self, ask: Ask, name: str) -> list[str]:
        """The jobs that carry `name`: by the indexed column, by the log's column, then by metadata; not ordered.

        Raises:
            SourceUnavailable: The database failed; with `Away.UNFINISHED` if nothing was found yet and a further call
                continues the search.
        """
        found = dict.fromkeys(await ask(lambda q, s: self._by_columns(q, s, name)))
        try:
            found |= dict.fromkeys(await self._search(ask, name))
        except SourceUnavailable as error:
            if error.reason is not Away.UNFINISHED or not found:
                raise
        return list(found)

    async def _by_columns(self, queries: Queries, session: Session, name: str) -> list[str]:
        found: list[str] = []
        if queries.schema.has("job_tracking", "external_job_id"):
            found = await searches.with_column(queries, session, "external_job_id", name, MAX_FOUND)
        return found + await queries.jobs_logged_as(session, name)

    async def _search(self, ask: Ask, name: str) -> list[str]:
        search = self._searches.get(name)
        if search is None or (search.done_at is not None and time.monotonic() - search.done_at >= SEARCH_AGAIN_AFTER):
            search = self._searches[name] = Search([])
        self._searches.move_to_end(name)
        budget = Budget(self._within)
        while search.done_at is None and budget.allows():
            await ask(lambda q, s: self._step(q, s, name, search))
        if search.done_at is None and not search.found:
            detail = f"the search for {name!r} has not ended within {self._within:g} s: the next request continues it"
            raise SourceUnavailable(detail, Away.UNFINISHED)
        return search.found

    async def _step(self, queries: Queries, session: Session, name: str, search: Search) -> None:
        """Search one slice of job_tracking."""
        if not queries.schema.has("job_tracking", "metadata"):
            search.done_at = time.monotonic()
            return
        ended = not queries.schema.has("job_tracking", "started_at")
        if not ended:
            with self._slices.timed():
                down_to = await searches.nth_job(queries, session, search.before, self._slices.size)
                places = await searches.mentioning(
                    queries, session, name, self._keys, search.before, down_to, MAX_FOUND
                )
            search.found += await self._carrying(queries, session, [p[1] for p in places], name)
            search.before = down_to = places[-1] if len(places) >= MAX_FOUND else down_to
            ended = down_to is None or len(search.found) >= MAX_FOUND or self._is_too_old(down_to, name, search)
        if ended:
            if not search.found:
                ids = await searches.mentioning_unordered(queries, session, name, self._keys, MAX_FOUND)
                search.found += await self._carrying(queries, session, ids, name)
            search.done_at = time.monotonic()

    def _is_too_old(self, place: Place, name: str, search: Search) -> bool:
        second = _SECOND.search(name)
        return bool(search.found) and second is not None and place[0] < (int(second[1]) - searches.NEAR) * 1_000_000

    async def _carrying(self, queries: Queries, session: Session, ids: Sequence[str], name: str) -> list[str]:
        """Those of `ids` that have exactly this ID; the collation of the database ignores case."""
        records = await queries.jobs_by_id(session, ids)
        found = [records[i] for i in ids if i in records]
        return [r.job_id for r in found if name in joblog.external_ids(r.external_job_id, r.metadata, self._keys)]


async def owned(
    ask: Ask, rows: Mapping[str, LegacyRecord], id_keys: Sequence[str], span: int = searches.NEAR, *, rest: bool = False
) -> set[str]:
    """Those of `rows`, by job ID, that a JobLog job owns: by the log, then by metadata near the age of each row.

    Search by index first (`searches.owned_by_index`). `span`: seconds of started_at in one question. `rest`: wait after
    each as long as it took, so that the search uses at most half of one core of the server.

    Raises:
        SourceUnavailable: The database failed.
    """
    found = await ask(partial(searches.owned_by_log, names=sorted(rows)))
    ages = [searches.owner_began_near(row) for job_id, row in rows.items() if job_id not in found]
    for first, until in searches.spans_near(age for age in ages if age is not None):
        for since in range(first, until, span):
            if not (names := sorted(rows.keys() - found)):
                return found
            began = time.monotonic()
            end = min(until, since + span)
            found |= await ask(partial(searches.owned_in_metadata, names=names, keys=id_keys, since=since, until=end))
            if rest:
                await asyncio.sleep(time.monotonic() - began)
    return found
