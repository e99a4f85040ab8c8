"""What the database knows beyond memory, on request: jobs by any ID, older pages.

Satisfies `correlator.hub.Archive`. One session of its own, one question at a time, so that many readers asking for
old jobs never slow the tail down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from correlator.errors import BadRequest, SourceUnavailable
from correlator.hub import Found, JobNames, JobQuery, LinesPage
from correlator.jobs import fold, joblog
from correlator.jobs.model import Job, Level, Micros, Reading, Resolved
from correlator.sources import lines
from correlator.sources.database import Database, Session
from correlator.sources.lookup import Lookup
from correlator.sources.queries import Queries, read_readings

T = TypeVar("T")

AGAIN_WITHIN = 1.0
"""Seconds after which a question that failed is not asked again: that was no dead session, but a slow server."""


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
        self._lookup = Lookup(self._keys)

    async def find(self, name: str, look: Callable[[], int]) -> Found | None:
        if not name or len(name) > joblog.MAX_ID or "\0" in name:
            return None
        return await self._ask(lambda queries, session: self._find(queries, session, name, look))

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, look: Callable[[], int]
    ) -> list[Reading]:
        async def read(queries: Queries, session: Session) -> list[Reading]:
            if not queries.schema.has("job_tracking", "id", "started_at"):
                return []
            ids = await queries.page(session, query, before, limit)
            return await read_readings(queries, session, look(), ids)

        return await self._ask(read)

    async def lines(self, names: JobNames, after: str | None, limit: int, level: Level) -> LinesPage:
        return await self._ask(lambda q, s: lines.read(q, s, names, after, limit, level, self._keys))

    async def _ask(self, question: Callable[[Queries, Session], Awaitable[T]]) -> T:
        """Ask, over the session that is kept; where that turns out to be dead, over a new one."""
        async with self._lock:
            kept, began = self._session is not None, time.monotonic()
            while True:
                queries, session = await self._connect()
                try:
                    return await question(queries, session)
                except BadRequest:
                    raise
                except SourceUnavailable:
                    await self._disconnect()
                    if not kept or time.monotonic() - began > AGAIN_WITHIN:
                        raise
                    kept = False
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
            if ids := await self._lookup.by_external_id(queries, session, name):
                return await self._newest(queries, session, tick, ids, "external_id")
            if queries.schema.has("job_tracking", "context_id"):
                found = await queries.jobs_with(session, "context_id", name)
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
