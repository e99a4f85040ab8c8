"""The queries of jobs that have ended, for what forecasts learn from them: times, steps, and the name of the VM.

Each query reads a bounded number of rows by an index, and never metadata or errors as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from correlator.jobs import joblog
from correlator.jobs.forecast.forecaster import OperationKey
from correlator.jobs.forecast.place import MAX_STEPS, StepTimes
from correlator.jobs.job_view import VM_NAMES
from correlator.jobs.model.rows import Micros
from correlator.jobs.sizes import MAX_KEPT
from correlator.sources.db.queries import Queries, as_status
from correlator.sources.db.session import Schema, Session

MAX_SEARCHED = 4_000_000
"""Most bytes of metadata in which the server searches for the name of the VM."""

Place: TypeAlias = tuple[str, str]
"""Where a job is in the order of ends: (completed_at as text of the database, id)."""

_TIMES = ("completed_at", "started_at", "created_at")
_STORED = "CAST(completed_at AS CHAR)"
_NEWEST = "ORDER BY completed_at DESC, id DESC"


class EndedJob(NamedTuple):
    """A row of job_tracking with a completed_at. Its `status` may still be any; times are None if they are unknown."""

    place: Place
    operation: OperationKey
    status: str | None
    start: Micros | None
    end: Micros | None


def are_readable(schema: Schema) -> bool:
    """True if the appliance has the columns without which nothing is known of an ended job."""
    began = schema.has("job_tracking", "started_at") or schema.has("job_tracking", "created_at")
    return began and schema.has("job_tracking", "id", "status", "completed_at")


async def now(queries: Queries, session: Session) -> Micros:
    """The database's time, in whole seconds."""
    return int((await session.query(f"SELECT {queries.dialect.utc_micros.format('CURRENT_TIMESTAMP')}"))[0][0])


async def nth(queries: Queries, session: Session, since: str, before: Place | None, n: int) -> Place | None:
    """The n-th job that ended before the place `before` and at or after `since` (`Queries.clock`), newest first.

    None if there are fewer. It reads only an index.
    """
    where, args = _between(queries, since, before)
    sql = f"SELECT {_STORED}, id FROM job_tracking WHERE {where} {_NEWEST} LIMIT 1 OFFSET {n - 1}"
    found = await session.query(sql, args)
    return (found[0][0], found[0][1]) if found else None


async def newest(
    queries: Queries,
    session: Session,
    since: str,
    before: Place | None,
    down_to: Place | None,
    without: Iterable[OperationKey],
    limit: int,
) -> list[EndedJob]:
    """The first of these jobs, newest first, down to the place `down_to` and except the operations `without`."""
    mark, columns = queries.dialect.placeholder, ("status", "job_type", "operation", *_TIMES)
    where, args = _between(queries, since, before)
    if down_to is not None:
        where += f" AND completed_at >= {mark} AND (completed_at > {mark} OR id >= {mark})"
        args += [down_to[0], down_to[0], down_to[1]]
    by_type: dict[str, list[str]] = {}
    for job_type, operation in without:
        by_type.setdefault(job_type, []).append(operation)
    for job_type, operations in by_type.items():
        # In hexadecimal, as the collation of the database may ignore case.
        texts = [f"HEX(COALESCE({queries.expression('job_tracking', c)}, ''))" for c in ("job_type", "operation")]
        where += f" AND NOT ({texts[0]} = {mark} AND {texts[1]} IN ({queries.dialect.marks(operations)}))"
        args += [_hex(text) for text in (job_type, *operations)]
    selected = ", ".join(queries.expression("job_tracking", column) for column in columns)
    sql = f"SELECT {_STORED}, id, {selected} FROM job_tracking WHERE {where} {_NEWEST} LIMIT {limit}"
    found = []
    for at, job_id, status, job_type, operation, *times in await session.query(sql, args):
        end, started, created = (queries.utc("job_tracking", c, t) for c, t in zip(_TIMES, times, strict=True))
        start = started if started is not None else created
        found.append(EndedJob((at, job_id), (job_type or "", operation or ""), as_status(status), start, end))
    return found


def _between(queries: Queries, since: str, before: Place | None) -> tuple[str, list[object]]:
    mark = queries.dialect.placeholder
    if before is None:
        return f"completed_at >= {mark}", [since]
    where = f"completed_at >= {mark} AND completed_at <= {mark} AND (completed_at < {mark} OR id < {mark})"
    return where, [since, before[0], before[0], before[1]]


def _hex(text: str) -> str:
    return text.encode().hex().upper()


async def vm_names(queries: Queries, session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """The name of each job's VM as `job_view.vm_name` finds it, or ""."""
    if not job_ids or not queries.schema.has("job_tracking", "metadata"):
        return {}
    dialect = queries.dialect
    searched = f"{dialect.size.format('metadata')} <= {MAX_SEARCHED} AND JSON_VALID(metadata)"
    text = f"SUBSTR({dialect.member.format('metadata', dialect.placeholder)}, 1, {MAX_KEPT + 1})"
    texts = ", ".join([f"CASE WHEN {searched} THEN {text} END"] * len(VM_NAMES))
    sql = f"SELECT id, {texts} FROM job_tracking WHERE id IN ({dialect.marks(job_ids)})"
    rows = await session.query(sql, [*(f'$."{name}"' for name in VM_NAMES), *job_ids])
    return {job_id: _first_text(members) for job_id, *members in rows}


def _first_text(members: Sequence[str | None]) -> str:
    """The first of these JSON texts that is a string and was not cut."""
    for member in members:
        if member is not None and len(member) <= MAX_KEPT and member.startswith('"'):
            try:
                return str(joblog.parsed(member))
            except ValueError:
                continue
    return ""


async def steps_of(queries: Queries, session: Session, starts: Mapping[str, Micros]) -> dict[str, list[StepTimes]]:
    """The first `MAX_STEPS` steps of each job, which started then, by `seq`. A step without a start is left out."""
    job_ids = list(starts)
    if not job_ids or not queries.schema.has("job_steps", "job_id", "name", "started_at"):
        return {}
    started, completed = (queries.expression("job_steps", column) for column in ("started_at", "completed_at"))
    order = " ORDER BY seq" if queries.schema.has("job_steps", "seq") else ""
    one = (
        f"SELECT * FROM (SELECT job_id, name, {started} AS began, {completed} AS ended FROM job_steps"
        f" WHERE job_id = {queries.dialect.placeholder}{order} LIMIT {MAX_STEPS}) AS some"
    )
    found: dict[str, list[StepTimes]] = {}
    for job_id, name, began, ended in await session.query(" UNION ALL ".join([one] * len(job_ids)), job_ids):
        at = queries.utc("job_steps", "started_at", began, starts.get(job_id))
        if at is not None:
            step = StepTimes(name or "", at, queries.utc("job_steps", "completed_at", ended, at))
            found.setdefault(job_id, []).append(step)
    return found
