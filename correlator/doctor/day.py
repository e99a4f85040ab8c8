"""A day of the log and of the tables, read in ranges of the primary key and under a bound, however large they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from correlator.config.schema import Config
from correlator.doctor.usage import Log, Tables
from correlator.errors import SourceUnavailable
from correlator.jobs.model.rows import JobRecord, LegacyRecord, Micros
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session, chunks
from correlator.sources.search import owners
from correlator.sources.search.lookup import Lookup

DAY = 86_400

MAX_ROWS = 100_000
ROWS_AT_ONCE = 2_000
MAX_JOBS = 4_000
MAX_LEGACY = 50_000
READ_WITHIN = 8.0
"""Seconds for reading rows, so that the doctor does not slow down a busy database."""

MAX_LOOKED_UP = 10
LOOK_UP_WITHIN = 4.0

METADATA_SPAN = 6 * 3_600
"""Seconds of job_tracking.started_at in one search of metadata."""


async def now(queries: Queries, session: Session) -> int:
    """Return the time of the database's clock in Unix seconds."""
    said = datetime.fromisoformat(await queries.clock(session, 0))
    return int(said.replace(tzinfo=UTC).timestamp())


async def read_log(
    config: Config, queries: Queries, session: Session, now: int, clock: Callable[[], float] = time.monotonic
) -> Log:
    """Read the newest rows of the last day, from the end backwards. `now`: Unix seconds of the database's clock."""
    log = Log(config.jobs.external_id_keys)
    until = clock() + READ_WITHIN
    first = await queries.first_since(session, (now - DAY) * 1_000_000)
    if begun := await queries.rows_from(session, first, 1):  # the first id may be much higher
        first = begun[0].id
    last = await queries.last_id(session)
    floor = max(first, last - MAX_ROWS + 1)
    log.whole = floor == first
    while last >= floor:
        begin = max(floor, last - ROWS_AT_ONCE + 1)
        log.add(row for row in await queries.rows_from(session, begin, ROWS_AT_ONCE) if row.id <= last)
        last = begin - 1
        if clock() > until:
            log.whole = log.whole and last < floor
            break
    return log


async def read_tables(queries: Queries, session: Session, now: int) -> Tables:
    """Read the jobs of the last two days, and the steps and rows of failover_jobs of the last day."""
    schema, mark = queries.schema, queries.dialect.placeholder
    records: list[JobRecord] = []
    if schema.has("job_tracking", "id", "started_at"):
        where = f"started_at >= {mark} ORDER BY started_at DESC LIMIT {MAX_JOBS}"
        records = await queries.jobs_where(session, where, (queries.timestamp(now - 2 * DAY),))
    since = (now - DAY) * 1_000_000
    jobs = tuple(r for r in records if (r.started_at or 0) >= since)
    starts = {job.job_id: job.started_at for job in jobs}
    steps = await queries.steps_of(session, starts) if schema.has("job_steps", "id", "job_id") else {}
    legacy: tuple[LegacyRecord, ...] = ()
    if schema.has("failover_jobs", "id", "job_id"):
        legacy = tuple(await _legacy(queries, session, since))
    older = tuple(r for r in records if (r.started_at or 0) < since)
    return Tables(jobs, older, steps, legacy, whole=bool(older) or len(records) < MAX_JOBS)


async def _legacy(queries: Queries, session: Session, since: Micros) -> list[LegacyRecord]:
    """Read the rows of failover_jobs created since `since`, in the order of ids; the newest `MAX_LEGACY` at most."""
    found: list[LegacyRecord] = []
    below = await queries.last_legacy_id(session) + 1
    while len(found) < MAX_LEGACY:
        rows = await queries.legacy_where(session, f"id < {below} ORDER BY id DESC LIMIT {ROWS_AT_ONCE}")
        young = [r for r in rows if (r.created_at or r.started_at or 0) >= since]
        found += young
        if len(rows) < ROWS_AT_ONCE or not young:
            break
        below = rows[-1].id
    return found[::-1]


async def unowned(
    config: Config, queries: Queries, session: Session, now: int, names: list[str]
) -> tuple[list[str], int]:
    """Return the IDs of failover_jobs that no JobLog job has, queried in batches as the daemon does.

    The number counts the IDs that may be in metadata, which took too long to search.
    """
    if not queries.schema.has("job_tracking", "id"):
        return [], len(names)
    owned = await owners.by_index(queries, session, names)
    rest = [name for name in names if name not in owned]
    try:
        owned = await owners.by_log(queries, session, rest)
        rest = [name for name in rest if name not in owned]
        if owners.has_metadata(queries):
            since, until = now - 2 * DAY, time.monotonic() + LOOK_UP_WITHIN
            while rest and since < now + DAY:
                if time.monotonic() > until:
                    return [], len(rest)
                end = since + METADATA_SPAN
                keys = config.jobs.external_id_keys
                owned = await owners.in_metadata(queries, session, rest, keys, since, end)
                rest = [name for name in rest if name not in owned]
                since = end
    except SourceUnavailable:
        return [], len(rest)
    return rest, 0


async def look_up(config: Config, queries: Queries, session: Session, names: list[str]) -> tuple[list[str], int]:
    """Return which of `names` the daemon's lookup does not find either, and how many were not looked up."""
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
        except SourceUnavailable:  # the search of metadata takes too long on some appliances
            break
        asked += 1
        if not found:
            nowhere.append(name)
    return nowhere, len(names) - asked


async def unknown(queries: Queries, session: Session, job_ids: list[str]) -> list[str]:
    """Return those of `job_ids` that neither job_tracking nor failover_jobs has."""
    known: set[str] = set()
    for table, column in (("job_tracking", "id"), ("failover_jobs", "job_id")):
        if queries.schema.has(table, column):
            for part in chunks(job_ids):
                where = f"{column} IN ({queries.dialect.marks(part)})"
                rows = await session.query(f"SELECT {column} FROM {table} WHERE {where}", part)
                known.update(row[0] for row in rows)
    return [job_id for job_id in job_ids if job_id not in known]
