"""Checks of how the appliance uses JobLog, from one day of rows and records.

GUI and appliance use a constructed ID; whether it leads to a job depends on what the appliance's programs write with
it. JobLog drops rows when its queue is full; lifecycle changes that are in the tables and not in the log are counted.
The day is read in ranges of the primary key and under a bound, however large log and tables are. What judges it
(`judge_*`) is pure.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote

from msgspec import Struct

from correlator.config.schema import Config
from correlator.doctor.daemon import DaemonFindings
from correlator.doctor.report import Check, ok, share, some, warning
from correlator.errors import SourceUnavailable
from correlator.forecast.forecaster import OperationKey
from correlator.forecast.points import MIN_RUNS
from correlator.jobs import joblog
from correlator.model.facts import ENDED, STATUS_OF, Entry
from correlator.model.rows import JobRecord, LegacyRecord, LogRow, Micros, StepRecord
from correlator.sources.db import searches
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Schema, Session
from correlator.sources.search import Lookup, directly, owned
from correlator.sources.tail import slices

ROWS, IDS, UNRESOLVED, LEGACY, DROPS, OPERATIONS = (
    "joblog.rows",
    "joblog.external_ids",
    "joblog.unresolved_ids",
    "joblog.legacy",
    "joblog.drops",
    "joblog.operations",
)

WITHIN = 60.0
"""Seconds for these checks."""

DAY = 86_400

MAX_ROWS = 100_000
ROWS_AT_ONCE = 2_000
MAX_JOBS = 4_000
MAX_LEGACY = 50_000
READ_WITHIN = 8.0
"""Seconds for reading rows, so that the doctor does not slow down a busy database."""

MAX_LOOKED_UP = 10
LOOK_UP_WITHIN = 4.0


async def inspect(config: Config, queries: Queries, session: Session, of_daemon: DaemonFindings) -> list[Check]:
    """Run the checks of one day of log and tables. `of_daemon`: what the running daemon has counted and knows."""
    now = await queries.now(session) // 1_000_000
    log = await read_log(config, queries, session, now)
    tables = await read_tables(queries, session, now)
    checks = [judge_rows(log, tables)]
    if not queries.schema.has("job_tracking", "id"):
        return checks
    nowhere, unsure = await look_up(config, queries, session, candidates(log, tables))
    without_job, undecided = await unowned(config, queries, session, unclaimed(log, tables))
    checks += [
        judge_ids(log, tables),
        judge_unresolved(log, tables, nowhere, unsure),
        judge_legacy(log, tables, without_job, undecided, legacy=config.jobs.legacy),
        judge_drops(log, tables, now * 1_000_000, of_daemon.corrections, unread=_unread(queries.schema)),
    ]
    if of_daemon.operations is not None:
        checks.append(judge_operations(tables, of_daemon.operations))
    return checks


def _unread(schema: Schema) -> list[str]:
    """Return the columns by which rows of the log name jobs and steps, as far as they are missing."""
    return [f"log_events.{name}" for name in ("attrs", "job_id", "step_id") if not schema.has("log_events", name)]


async def read_log(
    config: Config,
    queries: Queries,
    session: Session,
    now: int,
    *,
    max_rows: int = MAX_ROWS,
    at_once: int = ROWS_AT_ONCE,
) -> LogOfDay:
    """Read the newest rows of the last day, from the end backwards. `now`: Unix seconds of the database's clock.

    `max_rows`: how many, about; `at_once`: in one query.
    """
    log, last = LogOfDay(config.jobs.external_id_keys), await queries.last_id(session)
    since, until = (now - DAY) * 1_000_000, time.monotonic() + READ_WITHIN
    span = await queries.log_span(session, since)
    while log.rows < max_rows and time.monotonic() <= until:
        rows = await queries.light_rows_upto(session, last, at_once)
        async for part in slices(queries.rows_in, session, rows):
            log.add(row for row in part if row.ts >= since)
        if len(rows) < at_once or rows[-1].id <= span.first:
            log.whole = span.certain
            return log
        last = rows[-1].id - 1
    log.whole = False
    return log


async def read_tables(queries: Queries, session: Session, now: int) -> TablesOfDay:
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
    return TablesOfDay(jobs, older, steps, legacy, whole=bool(older) or len(records) < MAX_JOBS)


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
    config: Config, queries: Queries, session: Session, rows: Mapping[str, LegacyRecord]
) -> tuple[list[str], int]:
    """Return those of `rows`, by job ID, that no JobLog job has, searched for as the daemon does.

    The number counts the rows whose IDs may be in metadata, which took too long to search.
    """
    by_index = await searches.owned_by_index(queries, session, rows)
    rest = {name: row for name, row in rows.items() if name not in by_index}
    try:
        async with asyncio.timeout(LOOK_UP_WITHIN):
            found = await owned(directly(queries, session), rest, config.jobs.external_id_keys)
    except (SourceUnavailable, TimeoutError):
        return [], len(rest)
    return [name for name in rest if name not in found], 0


async def look_up(config: Config, queries: Queries, session: Session, names: list[str]) -> tuple[list[str], int]:
    """Return which of `names` the daemon's lookup does not find either, and how many were not looked up."""
    lookup = Lookup(config.jobs.external_id_keys, search_within=LOOK_UP_WITHIN)
    until = time.monotonic() + LOOK_UP_WITHIN
    nowhere: list[str] = []
    asked = 0
    for name in names[:MAX_LOOKED_UP]:
        if time.monotonic() > until:
            break
        try:
            found = await lookup.find(directly(queries, session), name)
        except SourceUnavailable:  # the search of metadata takes too long on some appliances
            break
        asked += 1
        if not found:
            nowhere.append(name)
    return nowhere, len(names) - asked


SETTLED = 60_000_000
"""Microseconds at both ends of the examined period that are ignored, as a row there may be late or outside."""

_LOG_EXTENT = "SELECT COUNT(*), MIN(id), MAX(id), MIN(ts), MAX(ts) FROM log_events;"

_LEGACY_ROWS = "SELECT job_id, status, source_vm_name, created_at FROM failover_jobs ORDER BY id DESC LIMIT 10;"

FOLLOWED_BY_GUI = "failover"
"""The type of jobs that a GUI follows by a constructed ID; jobs such as a scheduler's need none."""


class LogOfDay:
    """A summary of log rows. `add` may be called with rows in any order."""

    def __init__(self, id_keys: Sequence[str]) -> None:
        self.id_keys = tuple(id_keys)
        self.rows = 0
        self.without_job = 0
        self.oldest: Micros | None = None
        self.whole = True
        """Whether these are all rows of the day, or only the newest of them."""
        self.ids: dict[str, set[str]] = {}
        """External ID → the jobs that its rows name; empty if no row names one."""
        self.job_ends: set[str] = set()
        self.step_starts: set[int] = set()
        self.step_ends: set[int] = set()

    def add(self, rows: Iterable[LogRow]) -> None:
        for row in rows:
            entry, _ = joblog.read(row, 0, self.id_keys)
            self.rows += 1
            self.without_job += entry.job_id is None and entry.step_id is None and not entry.external_ids
            if row.ts and (self.oldest is None or row.ts < self.oldest):
                self.oldest = row.ts
            for name in entry.external_ids:
                self.ids.setdefault(name, set()).update({entry.job_id} if entry.job_id else ())
            self._lifecycle(entry)

    def _lifecycle(self, entry: Entry) -> None:
        kind = entry.kind
        if kind is None or (status := STATUS_OF.get(kind)) is None:
            return
        if kind.of_step and entry.step_id is not None:
            (self.step_ends if status.ended else self.step_starts).add(entry.step_id)
        elif status.ended and not kind.of_step and entry.job_id is not None:
            self.job_ends.add(entry.job_id)


class TablesOfDay(Struct, frozen=True):
    """Records of the same day. `older`: jobs of the day before, which rows may still name."""

    jobs: tuple[JobRecord, ...]
    older: tuple[JobRecord, ...] = ()
    steps: Mapping[str, Sequence[StepRecord]] = {}
    legacy: tuple[LegacyRecord, ...] = ()
    whole: bool = True
    """Whether these are all jobs of the day, or only the newest of them."""


def judge_rows(log: LogOfDay, tables: TablesOfDay) -> Check:
    examined = "all rows of 24 h" if log.whole else "the newest of 24 h"
    words = f"{share(log.without_job, log.rows)} rows belong to no job; examined: {log.rows} rows, {examined}"
    if not log.rows:
        fix = ["SELECT MAX(ts), NOW() FROM (SELECT ts FROM log_events ORDER BY id DESC LIMIT 1) AS newest;"]
        return warning(ROWS, "JobLog has written no row for 24 h", ["Is the appliance's program running?"], fix)
    if tables.jobs and log.without_job == log.rows:
        return warning(
            ROWS,
            words,
            [f"{len(tables.jobs)} jobs ran, and no row names one: the appliance does not log through the job's logger"],
        )
    return ok(ROWS, words)


def judge_ids(log: LogOfDay, tables: TablesOfDay) -> Check:
    """Check for jobs without an external ID, which a GUI cannot find."""
    named = {job_id for jobs in log.ids.values() for job_id in jobs}
    bare = [job for job in tables.jobs if job.job_id not in named and not _ids(job, log.id_keys)]
    types = Counter(job.job_type or "without type" for job in bare)
    all_types = Counter(job.job_type or "without type" for job in tables.jobs)
    detail = [f"{kind}: {share(count, all_types[kind])}" for kind, count in types.most_common()]
    examined = "jobs of 24 h" if tables.whole else "jobs, the newest of 24 h,"
    words = f"{share(len(bare), len(tables.jobs))} {examined} have no external ID"
    followed = [job.job_id for job in bare if job.job_type == FOLLOWED_BY_GUI]
    if not followed:
        return ok(IDS, words if tables.jobs else "no job in 24 h", detail)
    detail.append(f"a GUI cannot find these: {some(followed)}")
    return warning(IDS, words, detail, [f"SELECT metadata FROM job_tracking WHERE id = {_sql(followed[0])};"])


def candidates(log: LogOfDay, tables: TablesOfDay) -> list[str]:
    """Return external IDs of rows that lead to no job of `tables`; the database may have a job for them."""
    known = _known_ids(log, tables) | {row.job_id for row in tables.legacy}
    return sorted(name for name, jobs in log.ids.items() if not jobs and name not in known)


def judge_unresolved(log: LogOfDay, tables: TablesOfDay, nowhere: Sequence[str], unsure: int) -> Check:
    """Judge `nowhere`, the candidates that the database has no job for; `unsure` counts those not looked up."""
    if not nowhere and not unsure:
        found = f"all {len(log.ids)} external IDs of the rows lead to a job" if log.ids else "no row has an external ID"
        return ok(UNRESOLVED, found)
    detail = [f"e.g. {some(nowhere)}"] if nowhere else []
    if unsure:
        detail.append(f"{unsure} more are in none of the examined records, and were not looked up in the others.")
    under, fix = _other_keys(nowhere, log, tables)
    words = f"{share(len(nowhere) + unsure, len(log.ids))} external IDs lead nowhere"
    tap = [f"correlator tap --job {quote(name)}" for name in nowhere[:1]]
    return warning(UNRESOLVED, words, [*detail, *under], fix or tap)


def judge_legacy(
    log: LogOfDay, tables: TablesOfDay, unclaimed: Sequence[str], undecided: int = 0, *, legacy: bool
) -> Check:
    """Judge `unclaimed`, the IDs of failover_jobs that no JobLog job has; `undecided` counts those not looked up."""
    if not tables.legacy:
        return ok(LEGACY, "no new row of failover_jobs in 24 h")
    if undecided:
        words = f"{share(undecided, len(tables.legacy))} rows of failover_jobs of 24 h have no JobLog job by any index"
        return ok(LEGACY, words, ["Their IDs may be in metadata, which took too long to search."])
    if not unclaimed:
        return ok(LEGACY, f"each of the {len(tables.legacy)} rows of failover_jobs of 24 h has its JobLog job")
    words = f"{share(len(unclaimed), len(tables.legacy))} rows of failover_jobs of 24 h have no JobLog job"
    detail, fix = _other_keys(unclaimed, log, tables)
    if not fix and legacy:
        detail = [
            "They are published from failover_jobs, without steps, because no job has their IDs (docs/joblog.md)."
        ]
        fix = [_LEGACY_ROWS]
    elif not fix:
        detail, fix = ["With jobs.legacy they are published, without steps."], ["jobs.legacy = true"]
    return warning(LEGACY, words, [f"e.g. {some(unclaimed)}", *detail], fix)


def unclaimed(log: LogOfDay, tables: TablesOfDay) -> dict[str, LegacyRecord]:
    """Return the rows of failover_jobs, by job ID, that no job of the last two days has."""
    known = _known_ids(log, tables) | {job.job_id for job in (*tables.jobs, *tables.older)}
    known |= {name for name, jobs in log.ids.items() if jobs}
    return {row.job_id: row for row in tables.legacy if row.job_id not in known}


def judge_drops(
    log: LogOfDay,
    tables: TablesOfDay,
    now: Micros,
    counted: Mapping[str, float] | None,
    *,
    unread: Sequence[str] = (),
) -> Check:
    """Judge lifecycle rows missing in the log. `counted`: the daemon's own counters by kind, None if not available.

    `unread`: columns of the log that name jobs and steps, and cannot be read.
    """
    if unread:
        return ok(DROPS, f"not judged: {some(unread)} cannot be read")
    # A log that was read in part is complete from its oldest row that was read.
    since = SETTLED + (now - DAY * 1_000_000 if log.whole else log.oldest or now)
    until = now - SETTLED

    def settled(at: Micros | None) -> bool:
        return at is not None and since <= at <= until

    jobs = [j.job_id for j in tables.jobs if j.status in ENDED and settled(j.completed_at)]
    steps = [s for of_job in tables.steps.values() for s in of_job]
    ended = [s.id for s in steps if s.status != "running" and settled(s.completed_at)]
    begun = [s.id for s in steps if settled(s.started_at)]
    lost = (
        ("job ends", [j for j in jobs if j not in log.job_ends], jobs),
        ("step starts", [s for s in begun if s not in log.step_starts], begun),
        ("step ends", [s for s in ended if s not in log.step_ends], ended),
    )
    detail = [
        f"{what}: {share(len(missing), len(whole))} are in the tables and not in the log"
        for what, missing, whole in lost
        if whole
    ]
    if counted is not None:
        kinds = ", ".join(f"{kind} {count:.0f}" for kind, count in sorted(counted.items()) if count)
        detail.append(
            f"counted by the daemon since its start: {kinds or 'none'} (correlator_reconcile_corrections_total)"
        )
    total = sum(len(missing) for _, missing, _ in lost)
    if total and log.rows:
        detail += [
            _why_missing(counted),
            "The published state is correct all the same, from the tables: a second later, and without a log line.",
            "Nothing has to be repaired here; who maintains JobLog decides whether its queue is too small.",
        ]
        words = f"{total} of {sum(len(whole) for _, _, whole in lost)} starts and ends of the tables are not in the log"
        return warning(DROPS, words, detail, [_LOG_EXTENT])
    if not any(whole for _, _, whole in lost):
        return ok(DROPS, "nothing started or ended in the examined period", detail)
    return ok(DROPS, "no start and no end is missing in the log", detail)


def _why_missing(counted: Mapping[str, float] | None) -> str:
    """Return why rows may be missing. The daemon counts a row that does not come, and not one that is deleted later."""
    dropped = "JobLog drops rows while its queue is full"
    gone = "rows were deleted, or the log was emptied"
    if counted is None:
        return f"Either {dropped}, or {gone}."
    if any(counted.values()):
        return f"{dropped}."
    return f"The daemon missed none since its start: {gone} afterwards, or they were missing before."


def judge_operations(tables: TablesOfDay, runs: Mapping[OperationKey, int]) -> Check:
    """Name the operations whose jobs have no forecast. `runs`: the completed runs of each that the daemon knows.

    That is no warning: a new operation has no earlier runs.
    """
    jobs = (*tables.jobs, *tables.older)
    present = Counter((job.job_type or "", job.operation) for job in jobs if job.operation)
    if not present:
        return ok(OPERATIONS, "no job with an operation in two days")
    without = [key for key, _ in present.most_common() if runs.get(key, 0) < MIN_RUNS]
    if not without:
        return ok(OPERATIONS, f"all {len(present)} operations of two days have earlier runs for a forecast")
    words = f"{share(len(without), len(present))} operations of two days have no forecast yet"
    detail = [f"Fewer than {MIN_RUNS} completed runs are known of: {some([*map(_operation, without)])}"]
    return ok(OPERATIONS, words, detail)


def _operation(key: OperationKey) -> str:
    job_type, operation = key
    return f"{operation} ({job_type or 'without type'})"


def _ids(job: JobRecord, id_keys: Sequence[str]) -> list[str]:
    return joblog.external_ids(job.external_job_id, job.metadata, id_keys)


def _known_ids(log: LogOfDay, tables: TablesOfDay) -> set[str]:
    """Return all external IDs of the jobs of both days."""
    return {name for job in (*tables.jobs, *tables.older) for name in _ids(job, log.id_keys)}


def _other_keys(names: Sequence[str], log: LogOfDay, tables: TablesOfDay) -> tuple[list[str], list[str]]:
    """Return detail and fix if metadata holds some of `names` under keys that are not configured; else nothing."""
    wanted = set(names)
    found: Counter[str] = Counter()
    for job in (*tables.jobs, *tables.older) if wanted else ():
        metadata = joblog.metadata_object(job.metadata) or {}
        found.update(k for k, v in metadata.items() if k not in log.id_keys and isinstance(v, str) and v in wanted)
    if not found:
        return [], []
    keys = [key for key, _ in found.most_common()]
    setting = ", ".join(f'"{key}"' for key in (*log.id_keys, *keys))
    detail = f"Some of these IDs are in metadata under {some(keys)}, not in jobs.external_id_keys."
    return [detail], [f"jobs.external_id_keys = [{setting}]"]


def _sql(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
