"""An external ID → the jobs whose rows carry it, in the database: for what memory does not know.

Columns are asked by their index. Metadata has none: where the ID carries a Unix second, as constructed ones do, the
jobs of that day are searched first; the whole table only now and then for one ID.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Sequence

from correlator.jobs import joblog
from correlator.jobs.model import JobRecord
from correlator.sources.database import Session
from correlator.sources.queries import Queries, as_stored

SEARCH_AGAIN_AFTER = 30.0
"""Seconds before an ID that no metadata holds is searched for again: that reads the whole table."""

MAX_REMEMBERED = 10_000
NEAR = 86_400
"""Seconds around the Unix second in a constructed ID within which its job began."""

_SECOND = re.compile(r"(\d{10})$")


class Lookup:
    """`id_keys`: where metadata holds external IDs. Raises what the session raises."""

    def __init__(self, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS) -> None:
        self._keys = tuple(id_keys)
        self._nowhere: OrderedDict[str, float] = OrderedDict()

    async def by_external_id(self, queries: Queries, session: Session, name: str) -> list[str]:
        """The column, the column of the log, then metadata: where the ID carries a second, around that second first."""
        found: dict[str, None] = {}
        if queries.schema.has("job_tracking", "external_job_id"):
            for record in await queries.jobs_with(session, "external_job_id", name):
                if record.external_job_id == name:
                    found[record.job_id] = None
        for job_id in await queries.jobs_logged_as(session, name):
            found[job_id] = None
        for record in await self._in_metadata(queries, session, name):
            found[record.job_id] = None
        return list(found)

    async def _in_metadata(self, queries: Queries, session: Session, name: str) -> list[JobRecord]:
        if not queries.schema.has("job_tracking", "metadata"):
            return []
        mark = queries.dialect.placeholder
        where, args = f"INSTR(metadata, {mark}) > 0", (as_stored(name),)
        if (second := _SECOND.search(name)) and queries.schema.has("job_tracking", "started_at"):
            span = tuple(queries.timestamp(int(second[1]) + d) for d in (-NEAR, NEAR))
            near = f"started_at BETWEEN {mark} AND {mark} AND {where}"
            found = await queries.jobs_where(session, near, (*span, *args))
            if found := [r for r in found if self._carries(r, name)]:
                return found
        if time.monotonic() - self._nowhere.get(name, -SEARCH_AGAIN_AFTER) < SEARCH_AGAIN_AFTER:
            return []
        found = [r for r in await queries.jobs_where(session, where, args) if self._carries(r, name)]
        if not found:
            self._nowhere[name] = time.monotonic()
            self._nowhere.move_to_end(name)
            while len(self._nowhere) > MAX_REMEMBERED:
                self._nowhere.popitem(last=False)
        return found

    def _carries(self, record: JobRecord, name: str) -> bool:
        return name in joblog.external_ids(record.external_job_id, record.metadata, self._keys)
