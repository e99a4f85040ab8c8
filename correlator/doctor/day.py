"""A day of the log and of the tables, read in ranges of the primary key and under a bound, however large they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from correlator.doctor.usage import Log, Tables
from correlator.errors import SourceUnavailable
from correlator.jobs.model import JobRecord, LegacyRecord
from correlator.settings import Config
from correlator.sources.database import Session
from correlator.sources.lookup import Lookup
from correlator.sources.queries import Queries, chunks

DAY = 86_400

MAX_ROWS = 100_000
IN_ONE = 2_000
MAX_JOBS = 4_000
MAX_LEGACY = 2_000
READ_WITHIN = 8.0
"""Seconds for the rows: a look must not be what makes a busy database slow."""

MAX_LOOKED_UP = 10
LOOK_UP_WITHIN = 4.0


async def now(queries: Queries, session: Session) -> int:
    """Unix seconds, by the database's clock."""
    said = datetime.fromisoformat(await queries.clock(session, 0))
    return int(said.replace(tzinfo=UTC).timestamp())


async def read_log(
    config: Config, queries: Queries, session: Session, now: int, clock: Callable[[], float] = time.monotonic
) -> Log:
    """The newest rows of the last day, from the end backwards. `now`: Unix seconds by the database's clock."""
    log = Log(config.jobs.external_id_keys)
    until = clock() + READ_WITHIN
    first = await queries.first_since(session, (now - DAY) * 1_000_000)
    if begun := await queries.rows_from(session, first, 1):  # ids may begin far above
        first = begun[0].id
    last = await queries.last_id(session)
    floor = max(first, last - MAX_ROWS + 1)
    log.whole = floor == first
    while last >= floor:
        begin = max(floor, last - IN_ONE + 1)
        log.hear(row for row in await queries.rows_from(session, begin, IN_ONE) if row.id <= last)
        last = begin - 1
        if clock() > until:
            log.whole = log.whole and last < floor
            break
    return log


async def read_tables(queries: Queries, session: Session, now: int) -> Tables:
    """Jobs that began in the last two days, the steps of those of the last, and rows of failover_jobs of the last."""
    schema, mark = queries.schema, queries.dialect.placeholder
    records: list[JobRecord] = []
    if schema.has("job_tracking", "id", "started_at"):
        where = f"started_at >= {mark} ORDER BY started_at DESC LIMIT {MAX_JOBS}"
        records = await queries.jobs_where(session, where, (queries.timestamp(now - 2 * DAY),))
    since = (now - DAY) * 1_000_000
    jobs = tuple(r for r in records if (r.started_at or 0) >= since)
    steps = await queries.steps_of(session, [j.job_id for j in jobs]) if schema.has("job_steps", "id", "job_id") else {}
    legacy: tuple[LegacyRecord, ...] = ()
    if schema.has("failover_jobs", "id", "job_id"):
        newest = (await session.query("SELECT MAX(id) FROM failover_jobs"))[0][0] or 0
        rows = await queries.legacy_where(session, f"id > {int(newest) - MAX_LEGACY} ORDER BY id")
        legacy = tuple(r for r in rows if (r.created_at or r.started_at or 0) >= since)
    older = tuple(r for r in records if (r.started_at or 0) < since)
    return Tables(jobs, older, steps, legacy, whole=bool(older) or len(records) < MAX_JOBS)


async def look_up(config: Config, queries: Queries, session: Session, names: list[str]) -> tuple[list[str], int]:
    """Which of `names` the database does not know either, asked as the daemon asks it; and how many were not asked."""
    if not queries.schema.has("job_tracking", "id"):
        return [], len(names)
    lookup = Lookup(config.jobs.external_id_keys)
    until = time.monotonic() + LOOK_UP_WITHIN
    nowhere: list[str] = []
    asked = 0
    for name in names[:MAX_LOOKED_UP]:
        if time.monotonic() > until:
            break
        try:
            found = await lookup.by_external_id(queries, session, name)
        except SourceUnavailable:  # it searches metadata, which takes too long on some appliances
            break
        asked += 1
        if not found:
            nowhere.append(name)
    return nowhere, len(names) - asked


async def unknown(queries: Queries, session: Session, job_ids: list[str]) -> list[str]:
    """Which of `job_ids` neither job_tracking nor failover_jobs has."""
    known: set[str] = set()
    for table, column in (("job_tracking", "id"), ("failover_jobs", "job_id")):
        if queries.schema.has(table, column):
            for part in chunks(job_ids):
                marks = ", ".join([queries.dialect.placeholder] * len(part))
                rows = await session.query(f"SELECT {column} FROM {table} WHERE {column} IN ({marks})", part)
                known.update(row[0] for row in rows)
    return [job_id for job_id in job_ids if job_id not in known]
