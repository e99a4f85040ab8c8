"""What the database is like: which generation of the schema, and which time it keeps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.settings import Config
from correlator.sources.database import INDISPENSABLE, Database, Schema, Session
from correlator.sources.queries import Queries
from correlator.sources.zones import Zone
from correlator.values import SqliteUrl

SCHEMA, ZONE, CLOCK = "database.schema", "database.timezone", "database.clock"

OLDER_GENERATION = frozenset({"log_events.external_job_id", "job_tracking.context_id", "job_tracking.job_category"})
"""What an appliance lacks that rolled its schema change back: one of two that are in the field."""

SKEW_NOTED, SKEW_WRONG = 2.0, 60.0
"""Seconds by which two clocks may differ."""

QUARTER = 900
"""Offsets of zones are whole quarters of an hour."""

NEAR = 60.0
"""Seconds within which a job's first step begins after the job, where an offset is told by it."""

JOBS_COMPARED = 50


def judge_schema(schema: Schema, *, legacy: bool) -> Check:
    lacks = [name for name in schema.missing() if legacy or not name.startswith("failover_jobs")]
    if not schema.has("log_events", *INDISPENSABLE):
        return failure(
            SCHEMA,
            "log_events, or its id, message or ts, is not there, or SELECT on it is not granted",
            ["there is nothing to follow"],
            ["SHOW TABLES;", "SHOW CREATE TABLE log_events;"],
        )
    if not lacks:
        return ok(SCHEMA, "current, all columns are there")
    if set(lacks) <= OLDER_GENERATION:
        return ok(SCHEMA, "the older generation, which the correlator knows", [f"without {some(lacks)}"])
    return warning(
        SCHEMA,
        f"not there, or not granted: {some(lacks)}",
        ["the correlator works with what is there; what these would tell is missing"],
        [f"SHOW CREATE TABLE {table};" for table in sorted({name.split(".")[0] for name in lacks})],
    )


async def time_zone(config: Config, database: Database, queries: Queries, session: Session) -> Check:
    zone = await database.zone(session)
    offset: int | None = None
    if not isinstance(config.database.url, SqliteUrl):
        rows = await session.query(
            "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', @@global.time_zone))"
        )
        offset = round(int(rows[0][0] or 0) / QUARTER) * QUARTER
    return judge_zone(config.database.timezone, zone, offset, await _errors(queries, session), time.time())


async def _errors(queries: Queries, session: Session) -> list[float]:
    """Of recent jobs, how long after the job its first step began: a zone that is wrong shows as hours.

    The job's time is a TIMESTAMP, which knows its zone, and the step's a DATETIME, which needs ours.
    """
    if not queries.schema.has("job_tracking", "id", "started_at") or not queries.schema.has("job_steps", "started_at"):
        return []
    if queries.schema.is_local("job_tracking", "started_at") or not queries.schema.is_local("job_steps", "started_at"):
        return []
    jobs = await queries.jobs_where(
        session, f"started_at IS NOT NULL ORDER BY started_at DESC LIMIT {JOBS_COMPARED}", ()
    )
    steps = await queries.steps_of(session, [job.job_id for job in jobs])
    errors = []
    for job in jobs:
        begun = [step.started_at for step in steps.get(job.job_id, ()) if step.started_at is not None]
        if begun and job.started_at is not None:
            errors.append((min(begun) - job.started_at) / 1_000_000)
    return errors


def judge_zone(configured: str, zone: Zone, offset: int | None, errors: Sequence[float], now: float) -> Check:
    """`offset`: the server's, in seconds east of UTC; `errors`: see `_errors`; `now`: seconds since 1970."""
    used = _offset(zone, now)
    words = f"{'auto: ' if configured == 'auto' else ''}{zone.name} (UTC{_hours(used)})"
    if wrong := _wrong_by(errors):
        return failure(
            ZONE,
            f"{words} is wrong by {abs(wrong) / 3600:g} h: DATETIME columns are at UTC{_hours(used + wrong)}",
            [f"told by {len(errors)} recent jobs, whose first steps seem to begin {_hours(wrong)} h after the job"],
            [
                'timezone = "the appliance\'s zone, e.g. Europe/Berlin" under [database] in the configuration',
                "timedatectl",
            ],
        )
    proven = [f"{len(errors)} recent jobs agree"] if errors else []
    if offset is not None and offset != used:
        lines = [f"the server's own zone is UTC{_hours(offset)} now", *proven]
        if errors:
            return ok(ZONE, words, lines)
        return warning(
            ZONE,
            f"{words}, but the server is at UTC{_hours(offset)}, and no job tells which is right",
            mend=["SELECT @@global.time_zone, @@system_time_zone;", "timedatectl"],
        )
    if configured == "auto" and zone.name.startswith("UTC") and offset:
        lines = ["the server's offset of now is taken, without rules for daylight saving; it is looked up every 5 s"]
        return ok(ZONE, words, [*lines, *proven])
    return ok(ZONE, words, proven)


def _wrong_by(errors: Sequence[float]) -> int:
    """The offset that most of the jobs show; 0 where they show none."""
    near = Counter(round(e / QUARTER) * QUARTER for e in errors if -5.0 <= e - round(e / QUARTER) * QUARTER <= NEAR)
    if not near:
        return 0
    offset, count = near.most_common(1)[0]
    return offset if count * 2 > len(errors) else 0


async def clock(config: Config, session: Session) -> Check:
    if isinstance(config.database.url, SqliteUrl):
        return ok(CLOCK, "this host's")
    began, wall = time.monotonic(), time.time()
    rows = await session.query("SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS CHAR)")
    took = time.monotonic() - began
    return judge_clock(float(rows[0][0]) - (wall + took / 2), took)


def judge_clock(ahead: float, took: float) -> Check:
    """`ahead`: seconds by which the server's clock is ahead; `took`: seconds of the question, half of them unsure."""
    words = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host"
    mend = ["timedatectl set-ntp true", "timedatectl timesync-status", "SELECT UTC_TIMESTAMP(6);"]
    off = abs(ahead) - took / 2
    if off >= SKEW_WRONG:
        return failure(CLOCK, f"the server's clock is {words}", ["either of the two hosts has the wrong time"], mend)
    if off >= SKEW_NOTED:
        lines = ["delays that are measured, and what counts as stalled, are off by as much"]
        return warning(CLOCK, f"the server's clock is {words}", lines, mend)
    return ok(CLOCK, f"within {max(0.1, abs(ahead)):.1f} s of the server's")


def _offset(zone: Zone, now: float) -> int:
    """Seconds east of UTC at `now`."""
    local = int(now * 1_000_000)
    for _ in range(2):  # local time is what a zone takes, and UTC is what there is
        local = int(now * 1_000_000) + (local - zone.utc(local))
    return (local - int(now * 1_000_000)) // 1_000_000


def _hours(seconds: float) -> str:
    sign = "-" if seconds < 0 else "+"
    minutes = round(abs(seconds) / 60)
    return f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
