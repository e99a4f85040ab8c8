"""Checks of the database's schema, time zone and clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from correlator.config.schema import Config
from correlator.config.values import SqliteUrl
from correlator.doctor.check import Check, failure, ok, some, warning
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import INDISPENSABLE, OLDER_GENERATION, Database, Schema, Session
from correlator.sources.db.zones import Zone

SCHEMA, ZONE, CLOCK = "database.schema", "database.timezone", "database.clock"

SKEW_NOTED, SKEW_WRONG = 2.0, 60.0
"""Seconds by which two clocks may differ."""

QUARTER = 900
"""Seconds. Offsets of time zones are multiples of a quarter of an hour."""

NEAR = 60.0
"""Seconds after the start of a job within which its first step must start to indicate an offset."""

JOBS_COMPARED = 50


def judge_schema(schema: Schema, *, legacy: bool) -> Check:
    lacks = [name for name in schema.missing() if legacy or not name.startswith("failover_jobs")]
    if not schema.has("log_events", *INDISPENSABLE):
        return failure(
            SCHEMA,
            "log_events, or its id, message or ts, does not exist, or SELECT on it is not granted",
            ["Without it the daemon has nothing to follow."],
            ["SHOW TABLES;", "SHOW CREATE TABLE log_events;"],
        )
    if not lacks:
        return ok(SCHEMA, "current: all columns exist")
    if set(lacks) <= OLDER_GENERATION:
        return ok(SCHEMA, "the older generation, which the correlator supports", [f"without {some(lacks)}"])
    return warning(
        SCHEMA,
        f"missing, or not granted: {some(lacks)}",
        ["The correlator works without them; what they contain is missing in its documents."],
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
    errors = await _errors(queries, session)
    return judge_zone(config.database.timezone, zone, offset, errors, time.time(), host=_zone_of_host())


async def _errors(queries: Queries, session: Session) -> list[float]:
    """Return, for recent jobs, the seconds from a job's start to its first step's; a wrong zone shows as hours.

    The job's time is a TIMESTAMP, which is absolute; the step's is a DATETIME, which is read in the configured zone.
    """
    if not queries.schema.has("job_tracking", "id", "started_at") or not queries.schema.has("job_steps", "started_at"):
        return []
    if queries.schema.is_local("job_tracking", "started_at") or not queries.schema.is_local("job_steps", "started_at"):
        return []
    jobs = await queries.jobs_where(
        session, f"started_at IS NOT NULL ORDER BY started_at DESC LIMIT {JOBS_COMPARED}", ()
    )
    steps = await queries.steps_of(session, {job.job_id: job.started_at for job in jobs})
    errors = []
    for job in jobs:
        begun = [step.started_at for step in steps.get(job.job_id, ()) if step.started_at is not None]
        if begun and job.started_at is not None:
            errors.append((min(begun) - job.started_at) / 1_000_000)
    return errors


def judge_zone(
    configured: str, zone: Zone, offset: int | None, errors: Sequence[float], now: float, *, host: str = ""
) -> Check:
    """Judge the zone. `offset`: the server's, in seconds east of UTC; `errors`: see `_errors`; `now`: Unix seconds.

    `host`: the name of this host's zone. It is proposed where it fits, because it has rules for daylight saving time.
    """
    used = _offset(zone, now)
    words = f"{'auto: ' if configured == 'auto' else ''}{zone.name} (UTC{_hours(used)})"
    if wrong := _wrong_by(errors):
        return failure(
            ZONE,
            f"{words} is wrong by {abs(wrong) / 3600:g} h: DATETIME columns are at UTC{_hours(used + wrong)}",
            [
                f"Shown by {len(errors)} recent jobs, whose first steps seem to start {_hours(wrong)} h after the job.",
                "If the zone has daylight saving time, set its name, e.g. Europe/Berlin.",
            ],
            _zone_of(used + wrong, host, now),
        )
    proven = [f"{len(errors)} recent jobs agree"] if errors else []
    if offset is not None and offset != used:
        lines = [f"The server's own zone is at UTC{_hours(offset)} now.", *proven]
        if errors:
            return ok(ZONE, words, lines)
        return warning(
            ZONE,
            f"{words}, but the server is at UTC{_hours(offset)}, and no job shows which is right",
            fix=["SELECT @@global.time_zone, @@system_time_zone;", "timedatectl"],
        )
    if configured == "auto" and zone.name.startswith("UTC") and offset:
        lines = ["The server's current offset is used, without daylight saving rules. It is read every 5 s."]
        return ok(ZONE, words, [*lines, *proven])
    return ok(ZONE, words, proven)


def _zone_of(offset: int, host: str, now: float) -> list[str]:
    """Return the setting of a zone `offset` seconds east of UTC; Etc/GMT-2 is two hours east."""
    if host and datetime.fromtimestamp(now, ZoneInfo(host)).utcoffset() == timedelta(seconds=offset):
        return [f'database.timezone = "{host}"']
    if offset % 3600:
        return ["timedatectl list-timezones"]
    return [f'database.timezone = "{f"Etc/GMT{-offset // 3600:+d}" if offset else "UTC"}"']


def _zone_of_host() -> str:
    """Return the name of the zone that /etc/localtime links to; "" if it has none."""
    name = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")[2]
    return name if name in available_timezones() else ""


def _wrong_by(errors: Sequence[float]) -> int:
    """Return the offset in seconds that most of the jobs show, or 0."""
    near = Counter(round(e / QUARTER) * QUARTER for e in errors if -5.0 <= e - round(e / QUARTER) * QUARTER <= NEAR)
    if not near:
        return 0
    offset, count = near.most_common(1)[0]
    return offset if count * 2 > len(errors) else 0


async def clock(config: Config, session: Session) -> Check:
    if isinstance(config.database.url, SqliteUrl):
        return ok(CLOCK, "the clock of this host")
    began, wall = time.monotonic(), time.time()
    rows = await session.query("SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS CHAR)")
    took = time.monotonic() - began
    return judge_clock(float(rows[0][0]) - (wall + took / 2), took)


def judge_clock(ahead: float, took: float) -> Check:
    """Judge the clock. `ahead`: seconds that the server's clock is ahead, known to ±`took`/2 seconds."""
    words = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host"
    fix = ["timedatectl set-ntp true", "timedatectl timesync-status", "SELECT UTC_TIMESTAMP(6);"]
    off = abs(ahead) - took / 2
    if off >= SKEW_WRONG:
        return failure(CLOCK, f"the server's clock is {words}", ["One of the two hosts has the wrong time."], fix)
    if off >= SKEW_NOTED:
        lines = ["The daemon uses the server's clock. Times in its journal are by this host's."]
        return warning(CLOCK, f"the server's clock is {words}", lines, fix)
    return ok(CLOCK, f"within {max(0.1, abs(ahead)):.1f} s of the server's")


def _offset(zone: Zone, now: float) -> int:
    """Seconds east of UTC at `now`."""
    local = int(now * 1_000_000)
    for _ in range(2):  # a zone converts local time, and only UTC is known
        local = int(now * 1_000_000) + (local - zone.utc(local))
    return (local - int(now * 1_000_000)) // 1_000_000


def _hours(seconds: float) -> str:
    sign = "-" if seconds < 0 else "+"
    minutes = round(abs(seconds) / 60)
    return f"{sign}{minutes // 60:02d}:{minutes % 60:02d}"
