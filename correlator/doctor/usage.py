"""How JobLog is being used, told from a day of its rows and records: what an engineer checked by hand until now. Pure.

GUI and appliance agree on a constructed ID; whether that ID leads to a job depends on what the appliance's programs
write beside it. And JobLog drops rows when its queue is full: what the tables know and the log does not is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote

from msgspec import Struct

from correlator.doctor.check import Check, ok, share, some, warning
from correlator.jobs import joblog
from correlator.jobs.model import Entry, JobRecord, Kind, LegacyRecord, LogRow, Micros, StepRecord

ROWS, IDS, UNRESOLVED, LEGACY, DROPS = (
    "joblog.rows",
    "joblog.external_ids",
    "joblog.unresolved_ids",
    "joblog.legacy",
    "joblog.drops",
)

DAY = 86_400_000_000
SETTLED = 60_000_000
"""Microseconds around what was looked at in which a row may be on its way, or just out of sight."""

FOLLOWED_BY_GUI = "failover"
"""The type of jobs that a GUI follows by an ID of its own; schedulers and the like need none."""

_JOB_ENDS = frozenset({Kind.JOB_COMPLETED, Kind.JOB_FAILED, Kind.JOB_CANCELLED})
_STEP_ENDS = frozenset({Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.STEP_SKIPPED})
_ENDED = frozenset({"completed", "failed", "cancelled"})


class Log:
    """What a number of rows say, added up."""

    def __init__(self, id_keys: Sequence[str]) -> None:
        self.id_keys = tuple(id_keys)
        self.rows = 0
        self.without_job = 0
        self.oldest: Micros | None = None
        self.whole = True
        """Whether these are all rows of the day; else the newest of them."""
        self.ids: dict[str, set[str]] = {}
        """External ID → the jobs that its rows name, by whatever means; none where no row does."""
        self.job_ends: set[str] = set()
        self.step_starts: set[int] = set()
        self.step_ends: set[int] = set()

    def hear(self, rows: Iterable[LogRow]) -> None:
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
        if entry.kind in _JOB_ENDS and entry.job_id is not None:
            self.job_ends.add(entry.job_id)
        elif entry.kind in _STEP_ENDS and entry.step_id is not None:
            self.step_ends.add(entry.step_id)
        elif entry.kind is Kind.STEP_STARTED and entry.step_id is not None:
            self.step_starts.add(entry.step_id)


class Tables(Struct, frozen=True):
    """What the tables say of the same day. `older`: jobs of the day before, which rows may still name."""

    jobs: tuple[JobRecord, ...]
    older: tuple[JobRecord, ...] = ()
    steps: Mapping[str, Sequence[StepRecord]] = {}
    legacy: tuple[LegacyRecord, ...] = ()
    whole: bool = True
    """Whether these are all jobs of the day; else the newest of them."""


def judge_rows(log: Log, tables: Tables) -> Check:
    looked = "all rows of 24 h" if log.whole else "the newest of 24 h"
    words = f"{share(log.without_job, log.rows)} rows belong to no job; looked at: {log.rows} rows, {looked}"
    if not log.rows:
        mend = ["SELECT MAX(ts), NOW() FROM (SELECT ts FROM log_events ORDER BY id DESC LIMIT 1) AS newest;"]
        return warning(ROWS, "JobLog has written no row for 24 h", ["is the appliance's program running?"], mend)
    if tables.jobs and log.without_job == log.rows:
        return warning(
            ROWS, words, [f"{len(tables.jobs)} jobs ran, and no row names one: JobLog's calls lack its logger"]
        )
    return ok(ROWS, words)


def judge_ids(log: Log, tables: Tables) -> Check:
    """Jobs that no external ID leads to: whoever holds one will never find them."""
    told = {job_id for jobs in log.ids.values() for job_id in jobs}
    bare = [job for job in tables.jobs if job.job_id not in told and not _ids(job, log.id_keys)]
    types = Counter(job.job_type or "without type" for job in bare)
    all_types = Counter(job.job_type or "without type" for job in tables.jobs)
    detail = [f"{kind}: {share(count, all_types[kind])}" for kind, count in types.most_common()]
    looked = "jobs of 24 h" if tables.whole else "jobs, the newest of 24 h,"
    words = f"{share(len(bare), len(tables.jobs))} {looked} have no external ID"
    followed = [job.job_id for job in bare if job.job_type == FOLLOWED_BY_GUI]
    if not followed:
        return ok(IDS, words if tables.jobs else "no job in 24 h", detail)
    detail.append(f"a GUI cannot find these: {some(followed)}")
    return warning(IDS, words, detail, [f"SELECT metadata FROM job_tracking WHERE id = {_sql(followed[0])};"])


def candidates(log: Log, tables: Tables) -> list[str]:
    """External IDs of rows that lead to no job as far as is known here; the database may know more."""
    known = {name for job in (*tables.jobs, *tables.older) for name in _ids(job, log.id_keys)}
    known |= {row.job_id for row in tables.legacy}
    return sorted(name for name, jobs in log.ids.items() if not jobs and name not in known)


def judge_unresolved(log: Log, tables: Tables, nowhere: Sequence[str], unsure: int) -> Check:
    """`nowhere`: candidates that the database does not know either; `unsure`: those that it was not asked about."""
    if not nowhere and not unsure:
        found = f"all {len(log.ids)} external IDs of the rows lead to a job" if log.ids else "no row has an external ID"
        return ok(UNRESOLVED, found)
    keys = _where(nowhere, tables, log.id_keys)
    detail = [f"e.g. {some(nowhere)}"] if nowhere else []
    if unsure:
        detail.append(f"{unsure} more are in no record that was looked at, and were not searched for in the others")
    mend = [f"correlator tap --job {quote(name)}" for name in nowhere[:1]]
    if keys:
        detail.append(f"some of them are in metadata under {some(keys)}, where nobody looks")
        wanted = ", ".join(f'"{key}"' for key in (*log.id_keys, *keys))
        mend = [f"external_id_keys = [{wanted}] under [jobs] in the configuration"]
    return warning(UNRESOLVED, f"{share(len(nowhere) + unsure, len(log.ids))} external IDs lead nowhere", detail, mend)


def judge_legacy(log: Log, tables: Tables, unclaimed: Sequence[str], *, legacy: bool) -> Check:
    """`unclaimed`: IDs of `failover_jobs` that no JobLog job has."""
    if not tables.legacy:
        return ok(LEGACY, "no new row of failover_jobs in 24 h")
    if not unclaimed:
        return ok(LEGACY, f"each of the {len(tables.legacy)} rows of failover_jobs of 24 h has its JobLog job")
    words = f"{share(len(unclaimed), len(tables.legacy))} rows of failover_jobs of 24 h have no JobLog job"
    keys = _where(unclaimed, tables, log.id_keys)
    mend = []
    detail = [f"e.g. {some(unclaimed)}"]
    if keys:
        wanted = ", ".join(f'"{key}"' for key in (*log.id_keys, *keys))
        detail.append(f"some of their IDs are in metadata under {some(keys)}, where nobody looks")
        mend = [f"external_id_keys = [{wanted}] under [jobs] in the configuration"]
    elif legacy:
        detail.append("they are shown as failover_jobs tells them: without steps")
    else:
        mend = ["legacy = true under [jobs] in the configuration, to show them without steps"]
    return warning(LEGACY, words, detail, mend)


def unclaimed(log: Log, tables: Tables) -> list[str]:
    """IDs of `failover_jobs` that no job of the last two days has."""
    known = {name for job in (*tables.jobs, *tables.older) for name in _ids(job, log.id_keys)}
    known |= {job.job_id for job in (*tables.jobs, *tables.older)}
    known |= {name for name, jobs in log.ids.items() if jobs}
    return [row.job_id for row in tables.legacy if row.job_id not in known]


def judge_drops(log: Log, tables: Tables, now: Micros, counted: Mapping[str, float] | None) -> Check:
    """What the tables know and the log lacks. `counted`: of the running daemon, by kind; None where none was asked."""
    # A log that was not looked at in full is known from its oldest row on.
    since = SETTLED + (now - DAY if log.whole else log.oldest or now)
    until = now - SETTLED

    def settled(at: Micros | None) -> bool:
        return at is not None and since <= at <= until

    jobs = [j.job_id for j in tables.jobs if j.status in _ENDED and settled(j.completed_at)]
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
        detail.append("what is shown is right all the same, from the tables; it is a second late, and has no log line")
        return warning(DROPS, f"JobLog dropped {total} of its lifecycle rows: its queue is full at times", detail)
    if not any(whole for _, _, whole in lost):
        return ok(DROPS, "nothing began or ended in what was looked at", detail)
    return ok(DROPS, "no start and no end is missing in the log", detail)


def _ids(job: JobRecord, id_keys: Sequence[str]) -> list[str]:
    return joblog.external_ids(job.external_job_id, job.metadata, id_keys)


def _where(names: Sequence[str], tables: Tables, id_keys: Sequence[str]) -> list[str]:
    """Keys of metadata that hold some of `names`, and that nobody looks under."""
    wanted = set(names)
    found: Counter[str] = Counter()
    for job in (*tables.jobs, *tables.older) if wanted else ():
        metadata = joblog.metadata_object(job.metadata) or {}
        found.update(k for k, v in metadata.items() if k not in id_keys and isinstance(v, str) and v in wanted)
    return [key for key, _ in found.most_common()]


def _sql(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
