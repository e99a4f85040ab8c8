"""Legacy jobs in a page of jobs: rows of `failover_jobs` that no JobLog job owns, in the order of the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct

from correlator.jobs import job_view
from correlator.jobs.bounded import BoundedDict
from correlator.jobs.model.rows import LegacyRecord
from correlator.jobs.model.views import PublishedJob
from correlator.pipeline.queries import JobQuery
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session
from correlator.sources.search import owners, searches
from correlator.sources.search.lookup import Ask
from correlator.sources.search.searches import Place
from correlator.sources.search.slices import Budget

AT_ONCE = 100
"""Rows that one step reads."""

SEARCH_AGAIN_AFTER = 300.0
"""Seconds for which it is remembered whether a row has an owner. A new row is followed, and so in memory."""

MAX_REMEMBERED = 10_000
"""Rows of which that is remembered."""


class LegacyPart(Struct, frozen=True):
    """Rows, newest first, and the place down to which there are no others; None: the end of the list."""

    rows: Sequence[LegacyRecord]
    down_to: Place | None


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
    ) -> LegacyPart:
        """The legacy jobs that match between two places, but for those that are `known`; some `limit` of them.

        Raises:
            SourceUnavailable: The database failed.
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
            some = [row for row in some if matches(PublishedJob(job_view.legacy_view(row), 0, 0))]
            owned = await self._owned_of(ask, some)
            found += [row for row in some if row.job_id not in owned]
            if len(places) < AT_ONCE:
                return LegacyPart(found, down_to)
            before = places[-1][1]
            if len(found) >= limit or not budget.allows():
                return LegacyPart(found, before)

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
            owned = await ask(partial(owners.by_index, names=list(asked)))
            owned |= await ask(partial(owners.by_log, names=sorted(asked.keys() - owned)))
            ages = [
                age for job_id, row in asked.items() if job_id not in owned and (age := owners.age(row)) is not None
            ]
            for first, until in owners.spans(ages):
                for since in range(first, until, owners.NEAR):
                    names, end = sorted(asked.keys() - owned), min(until, since + owners.NEAR)
                    owned |= await ask(partial(self._in_metadata, names=names, since=since, until=end))
            for job_id in asked:
                self._owned[job_id] = (job_id in owned, now)
        return {row.job_id for row in rows if self._owned.get(row.job_id, (False, now))[0]}

    async def _in_metadata(
        self, queries: Queries, session: Session, names: Sequence[str], since: int, until: int
    ) -> set[str]:
        if not owners.has_metadata(queries):
            return set()
        return await owners.in_metadata(queries, session, names, self._keys, since, until)


async def _rows(queries: Queries, session: Session, ids: Sequence[int]) -> Mapping[int, LegacyRecord]:
    return {row.id: row for row in await queries.legacy_where(session, f"id IN ({','.join(map(str, ids))})")}
