"""The lookup of external IDs in the database, for jobs that are not in memory: ID → the jobs whose rows carry it.

Indexed columns are queried first. Metadata has no index, so it is searched slice by slice, from the newest job
backwards: the first match is the newest job. A constructed ID ends in the Unix second in which it was made, and no job
that began more than a day before carries it: there the search ends if it has found anything.

A search of a large table takes longer than a request may. It stops after `search_within`, raises `Away.UNFINISHED`, and
the next request for the same ID continues where it stopped. What it found, or that it found nothing, is remembered for
`SEARCH_AGAIN_AFTER`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Protocol, TypeVar

from msgspec import Struct

from correlator.errors import Away, SourceUnavailable
from correlator.jobs import joblog
from correlator.jobs.bounded import BoundedDict
from correlator.jobs.model.rows import JobRecord
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session
from correlator.sources.search import searches
from correlator.sources.search.questions import Question
from correlator.sources.search.searches import Place
from correlator.sources.search.slices import Budget, Slices

T = TypeVar("T")


class Ask(Protocol):
    """How a question reaches the database, e.g. `questions.Questions.ask`."""

    async def __call__(self, question: Question[T], /) -> T: ...


SEARCH_AGAIN_AFTER = 30.0
"""Seconds for which the result of a search is remembered."""

MAX_REMEMBERED = 10_000
"""Searches whose state is remembered."""

MAX_FOUND = 100
"""Most jobs with one ID that are found, the newest first; `also` names no others."""

NEAR = 86_400
"""Seconds by which a job may have begun before the Unix second in its constructed ID: clocks differ."""

_SECOND = re.compile(r"(\d{10})$")


class Search(Struct):
    """The progress of the search for one ID. `found`: newest first; `before`: where it continues."""

    found: list[str]
    before: Place | None = None
    done_at: float | None = None


class Lookup:
    """Finds jobs by external ID.

    `id_keys`: the keys under which metadata holds them. `search_within`: seconds of queries that one request may spend.
    """

    def __init__(self, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS, search_within: float = 2.0) -> None:
        self._within = search_within
        self._keys = tuple(id_keys)
        self._searches: BoundedDict[str, Search] = BoundedDict(MAX_REMEMBERED)
        self._slices = Slices(first=1_000, least=200, most=20_000)

    async def by_external_id(self, queries: Queries, session: Session, name: str) -> list[str]:
        """As `find`, over a session of the caller, until the search has ended. Raises `SourceUnavailable`."""

        async def ask(question: Question[T], /) -> T:
            return await question(queries, session)

        while True:
            try:
                return await self.find(ask, name)
            except SourceUnavailable as error:
                if error.reason is not Away.UNFINISHED:
                    raise

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
        return bool(search.found) and second is not None and place[0] < (int(second[1]) - NEAR) * 1_000_000

    async def _carrying(self, queries: Queries, session: Session, ids: Sequence[str], name: str) -> list[str]:
        """Those of `ids` that have exactly this ID; the collation of the database ignores case."""
        records = await queries.jobs_by_id(session, ids)
        return [i for i in ids if i in records and self._carries(records[i], name)]

    def _carries(self, record: JobRecord, name: str) -> bool:
        return name in joblog.external_ids(record.external_job_id, record.metadata, self._keys)
