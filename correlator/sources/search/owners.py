"""Queries that find which IDs of failover_jobs belong to JobLog jobs: many IDs per query, compared as exact text.

`by_index` and `by_log` use an index. Metadata has none: `in_metadata` reads the jobs that began in a range of
started_at, and needs a session that nothing else waits for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from correlator.jobs.model.rows import LegacyRecord
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session, chunks
from correlator.sources.search.searches import member

LOG_ROWS = 1_000
"""Most rows of the log that are read for one ID: an old job may have a million of them."""

NEAR = 86_400
"""Seconds around a row's creation, or the Unix second in its ID, within which a job that owns it began."""

LOG_NAMES = 50
"""IDs in one statement about the log."""

_SECOND = re.compile(r"(\d{10})$")


async def by_index(queries: Queries, session: Session, names: Iterable[str]) -> set[str]:
    """Those of `names` that are a job_tracking.id or a job_tracking.external_job_id."""
    wanted, found = set(names), set[str]()
    for column in ("id", "external_job_id"):
        if queries.schema.has("job_tracking", column):
            for part in chunks(sorted(wanted - found)):
                marks = queries.dialect.marks(part)
                sql = f"SELECT DISTINCT {column} FROM job_tracking WHERE {column} IN ({marks})"
                found |= {r[0] for r in await session.query(sql, part)}
    return found & wanted  # the database compares regardless of case


async def by_log(queries: Queries, session: Session, names: Iterable[str]) -> set[str]:
    """Those of `names` that rows of the log carry in external_job_id, together with a job."""
    wanted, found = set(names), set[str]()
    if queries.schema.has("log_events", "external_job_id", "job_id"):
        one = (
            "SELECT name FROM (SELECT external_job_id AS name, job_id FROM log_events"
            f" WHERE external_job_id = {queries.dialect.placeholder} LIMIT {LOG_ROWS}) AS first_rows"
            " WHERE job_id IS NOT NULL"
        )
        for part in chunks(sorted(wanted), LOG_NAMES):
            found |= {r[0] for r in await session.query(" UNION ".join([one] * len(part)), part)}
    return found & wanted


def has_metadata(queries: Queries) -> bool:
    """True if the schema allows `in_metadata`."""
    return queries.schema.has("job_tracking", "id", "metadata", "started_at")


async def in_metadata(
    queries: Queries, session: Session, names: Sequence[str], keys: Sequence[str], since: int, until: int
) -> set[str]:
    """Those of `names` that metadata holds under one of `keys`, of jobs begun in [since, until): Unix seconds."""
    mark = queries.dialect.placeholder
    values = [member(queries, key) for key in keys]
    found: set[str] = set()
    for part in chunks(names) if keys else ():
        marks = queries.dialect.marks(part)
        sql = (
            f"SELECT {', '.join(values)} FROM job_tracking"
            f" WHERE started_at >= {mark} AND started_at < {mark}"
            f" AND ({' OR '.join(f'{value} IN ({marks})' for value in values)})"
        )
        args = [queries.timestamp(since), queries.timestamp(until), *(list(part) * len(values))]
        for row in await session.query(sql, args):
            found.update(row)
    return found & set(names)


def age(record: LegacyRecord) -> int | None:
    """Unix second near which a job that owns the row began. A constructed ID ends with it. None if unknown."""
    if second := _SECOND.search(record.job_id):
        return int(second[1])
    at = record.created_at if record.created_at is not None else record.started_at
    return at // 1_000_000 if at is not None else None


def spans(ages: Iterable[int]) -> list[tuple[int, int]]:
    """The disjoint ranges of Unix seconds within `NEAR` of one of `ages`."""
    spans: list[tuple[int, int]] = []
    for at in sorted(ages):
        since, until = at - NEAR, at + NEAR + 1
        if spans and since <= spans[-1][1]:
            spans[-1] = (spans[-1][0], until)
        else:
            spans.append((since, until))
    return spans
