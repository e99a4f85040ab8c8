"""What the database knows beyond memory, on request: jobs by any ID, older pages.

Satisfies `correlator.hub.Archive`. One session of its own, one question at a time, so that many readers asking for
old jobs never slow the tail down.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import orjson

from correlator.hub import Found, JobQuery
from correlator.jobs import fold, joblog
from correlator.jobs.model import Job, JobRecord, Micros, Reading, Resolved
from correlator.sources.database import Database, Session
from correlator.sources.queries import Queries, read_readings

SEARCH_AGAIN_AFTER = 30.0
"""Seconds before an ID that no metadata holds is searched for again: that reads the whole table."""

MAX_REMEMBERED = 10_000
NEAR = 86_400
"""Seconds around the Unix second in a constructed ID within which its job began."""

_SECOND = re.compile(r"(\d{10})$")


class DatabaseArchive:
    """`legacy`: whether failover_jobs is followed. `id_keys`: where metadata holds external IDs."""

    def __init__(
        self, database: Database, *, id_keys: Sequence[str] = joblog.EXTERNAL_ID_KEYS, legacy: bool = True
    ) -> None:
        self._database = database
        self._keys = tuple(id_keys)
        self._legacy = legacy
        self._lock = asyncio.Lock()
        self._session: Session | None = None
        self._queries: Queries | None = None
        self._looked_up = 0.0
        self._nowhere: OrderedDict[str, float] = OrderedDict()

    async def find(self, name: str, look: Callable[[], int]) -> Found | None:
        if not name or len(name) > joblog.MAX_ID or "\0" in name:
            return None
        async with self._lock:
            queries, session = await self._connect()
            try:
                return await self._find(queries, session, name, look)
            except BaseException:
                await self._disconnect()
                raise

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, look: Callable[[], int]
    ) -> list[Reading]:
        async with self._lock:
            queries, session = await self._connect()
            if not queries.schema.has("job_tracking", "id", "started_at"):
                return []
            try:
                ids = await queries.page(session, query, before, limit)
                return await read_readings(queries, session, look(), ids)
            except BaseException:
                await self._disconnect()
                raise

    async def close(self) -> None:
        await self._disconnect()

    async def _find(self, queries: Queries, session: Session, name: str, look: Callable[[], int]) -> Found | None:
        tick = look()
        if queries.schema.has("job_tracking", "id"):
            if name in await queries.jobs_by_id(session, [name]):
                return await self._newest(queries, session, tick, [name], "uuid")
            if ids := await self._by_external_id(queries, session, name):
                return await self._newest(queries, session, tick, ids, "external_id")
            if queries.schema.has("job_tracking", "context_id"):
                found = await self._jobs(queries, session, "context_id", name)
                if ids := [r.job_id for r in found if r.context_id == name]:
                    return await self._newest(queries, session, tick, ids, "context_id")
        if self._legacy and queries.schema.has("failover_jobs", "id", "job_id", "status"):
            mark = queries.dialect.placeholder
            for record in await queries.legacy_where(session, f"job_id = {mark}", (name,)):
                if record.job_id == name:
                    return Found(Resolved(name, "legacy"), legacy=record)
        return None

    async def _newest(self, queries: Queries, session: Session, tick: int, ids: Sequence[str], by: str) -> Found | None:
        readings = {r.job_id: r for r in await read_readings(queries, session, tick, list(ids)) if r.record is not None}
        views = [fold.view(fold.fold(Job(r.job_id), r), self._keys) for r in readings.values()]
        views.sort(key=lambda v: v.age_key, reverse=True)
        if not views:
            return None
        also = tuple(v.job_id for v in views[1:])
        return Found(Resolved(views[0].job_id, by, also), reading=readings[views[0].job_id])  # type: ignore[arg-type]

    async def _by_external_id(self, queries: Queries, session: Session, name: str) -> list[str]:
        """The column, the column of the log, then metadata: where the ID carries a second, around that second first."""
        found: dict[str, None] = {}
        if queries.schema.has("job_tracking", "external_job_id"):
            for record in await self._jobs(queries, session, "external_job_id", name):
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
        where, args = f"INSTR(metadata, {mark}) > 0", (_as_stored(name),)
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

    async def _jobs(self, queries: Queries, session: Session, column: str, value: str) -> list[JobRecord]:
        return await queries.jobs_where(session, f"{column} = {queries.dialect.placeholder}", (value,))

    async def _connect(self) -> tuple[Queries, Session]:
        if self._session is None or self._queries is None or time.monotonic() - self._looked_up > 60.0:
            await self._disconnect()
            session = await self._database.open()
            try:
                schema = await self._database.schema(session)
                zone = await self._database.zone(session)
            except BaseException:
                await session.close()
                raise
            self._session, self._queries = session, Queries(self._database.dialect, schema, zone)
            self._looked_up = time.monotonic()
        return self._queries, self._session

    async def _disconnect(self) -> None:
        session, self._session, self._queries = self._session, None, None
        if session is not None:
            await session.close()


def _as_stored(name: str) -> str:
    """`name` as it stands inside JSON text written by Go's encoder."""
    text = orjson.dumps(name)[1:-1].decode()
    for plain, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028")):
        text = text.replace(plain, escaped)
    return text.replace("\u2029", "\\u2029")
