"""The questions asked of the tables, and their answers as values. One text for every kind of database.

Only columns that exist are named, and every query but the searches of the archive stays on an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import orjson

from correlator.hub import JobNames, JobQuery
from correlator.jobs import joblog
from correlator.jobs.model import JobRecord, LegacyRecord, LogRow, Micros, Reading, StepRecord
from correlator.jobs.wire import rfc3339
from correlator.sources.database import TABLES, Dialect, Row, Schema, Session
from correlator.sources.gaps import Range
from correlator.sources.zones import Zone

IN_ONE = 500
"""Ids in one IN list."""

T = TypeVar("T")

_GO_ESCAPES = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))

_FEW = [TABLES["job_tracking"].index(c) for c in ("operation", "status", "job_type", "owner", "job_category")]
"""Columns whose texts are few: each is kept once, and not with each of thousands of jobs."""

MAX_TEXTS = 10_000
_texts: dict[str, str] = {}

_TIMES = frozenset({"ts", "started_at", "completed_at", "created_at", "updated_at", "canceled_at"})


class Queries:
    """Bound to what one appliance has. `zone` may be replaced while it runs (daylight saving)."""

    def __init__(
        self, dialect: Dialect, schema: Schema, zone: Zone, malformed: Callable[[str], None] = lambda _: None
    ) -> None:
        self.schema = schema
        self.zone = zone
        self.dialect = dialect
        self._malformed = malformed
        self._select = {table: self._columns(table) for table in TABLES if schema.has(table)}
        self._local = {
            table: [i for i, column in enumerate(columns) if column in _TIMES and schema.is_local(table, column)]
            for table, columns in TABLES.items()
        }

    # -- log_events

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        """The rows with id ≥ `first`, in the order of their ids."""
        sql = f"SELECT {self._select['log_events']} FROM log_events WHERE id >= {int(first)} ORDER BY id LIMIT {limit}"
        return [self.log_row(r) for r in await session.query(sql)]

    async def rows_in(self, session: Session, ids: Sequence[int]) -> list[LogRow]:
        found: list[LogRow] = []
        for part in chunks(ids):
            sql = f"SELECT {self._select['log_events']} FROM log_events WHERE id IN ({_list(part)})"
            found += [self.log_row(r) for r in await session.query(sql)]
        return found

    async def rows_of(
        self, session: Session, names: JobNames, wanted: Sequence[Range], limit: int, levels: Sequence[str]
    ) -> list[LogRow]:
        """The first rows in `wanted`, by id, that may belong to a job: whoever asks looks closer at those without."""
        mark = self.dialect.placeholder
        texts = [names.job_id, *names.external_ids]
        tied: list[str] = [f"INSTR(attrs, {mark}) > 0" for _ in texts]
        args: list[object] = [as_stored(t) for t in texts]
        steps = sorted(names.step_ids)
        if steps:
            tied.append("INSTR(attrs, '\"step_id\"') > 0")
            if self.schema.has("log_events", "step_id"):
                tied.append(f"step_id IN ({_list(steps)})")
        if names.external_ids and self.schema.has("log_events", "external_job_id"):
            tied.append(f"external_job_id IN ({_marks(mark, names.external_ids)})")
            args += names.external_ids
        mine = " OR ".join(tied)
        if self.schema.has("log_events", "job_id"):
            mine = f"job_id = {mark} OR (job_id IS NULL AND ({mine}))"
            args = [names.job_id, *args]
        where = f"({' OR '.join(f'id BETWEEN {a} AND {b}' for a, b in wanted)}) AND ({mine})"
        if levels and self.schema.has("log_events", "level"):
            where += f" AND level IN ({_marks(mark, levels)})"
            args += levels
        sql = f"SELECT {self._select['log_events']} FROM log_events WHERE {where} ORDER BY id LIMIT {limit}"
        return [self.log_row(r) for r in await session.query(sql, args)]

    async def id_bounds(self, session: Session, job_id: str) -> Range | None:
        """The first and the last row that an index leads to."""
        if not self.schema.has("log_events", "job_id"):
            return None
        mark = self.dialect.placeholder
        found = await session.query(f"SELECT MIN(id), MAX(id) FROM log_events WHERE job_id = {mark}", (job_id,))
        return (int(found[0][0]), int(found[0][1])) if found and found[0][0] is not None else None

    async def ids_in(self, session: Session, ranges: Iterable[Range]) -> list[int]:
        """The ids that exist in `ranges`, as far as `session` sees them."""
        where = " OR ".join(f"id BETWEEN {a} AND {b}" for a, b in ranges)
        return [r[0] for r in await session.query(f"SELECT id FROM log_events WHERE {where}")]

    async def last_id(self, session: Session) -> int:
        found = await session.query("SELECT MAX(id) FROM log_events")
        return int(found[0][0] or 0)

    async def first_since(self, session: Session, since: Micros) -> int:
        """The id at which rows from `since` on begin, by binary search: ts has no index, but grows with the id."""
        low, high = 0, await self.last_id(session)
        ts = self._time("log_events", "ts")
        while low < high:
            middle = (low + high) // 2
            found = await session.query(f"SELECT id, {ts} FROM log_events WHERE id > {middle} ORDER BY id LIMIT 1")
            if found and self._utc("log_events", found[0][1]) < since:
                low = int(found[0][0])
            else:
                high = middle
        return low + 1

    def log_row(self, row: Row) -> LogRow:
        i, message, ts, level, job_id, step_id, attrs, external = row
        if ts is None:
            self._malformed("ts_invalid")
            ts = 0
        elif self._local["log_events"]:
            ts = self.zone.utc(ts)
        return LogRow(i, message or "", ts, level or "INFO", job_id, step_id, attrs, external)

    # -- job_tracking, job_steps

    async def jobs_by_id(self, session: Session, job_ids: Iterable[str]) -> dict[str, JobRecord]:
        return {r.job_id: r for part in chunks(list(job_ids)) for r in await self._jobs_in(session, "id", part)}

    async def jobs_where(self, session: Session, where: str, args: Sequence[object]) -> list[JobRecord]:
        sql = f"SELECT {self._select['job_tracking']} FROM job_tracking WHERE {where}"
        return [self._job(r) for r in await session.query(sql, args)]

    async def jobs_with(self, session: Session, column: str, value: str) -> list[JobRecord]:
        """The jobs whose indexed `column` equals `value`, as the database compares: the caller looks closer."""
        return await self.jobs_where(session, f"{column} = {self.dialect.placeholder}", (value,))

    async def active_ids(self, session: Session) -> set[str]:
        found = await session.query("SELECT id FROM job_tracking WHERE status IN ('pending', 'running')")
        return {r[0] for r in found}

    async def ids_since(self, session: Session, column: str, since: str) -> set[str]:
        """The jobs whose `column` (started_at or completed_at) is not before `since`, by the database's clock."""
        if not self.schema.has("job_tracking", column):
            return set()
        mark = self.dialect.placeholder
        found = await session.query(f"SELECT id FROM job_tracking WHERE {column} >= {mark}", (since,))
        return {r[0] for r in found}

    async def clock(self, session: Session, back: float) -> str:
        """The database's time less `back` seconds, as its TIMESTAMP columns are written in this session."""
        found = await session.query(self.dialect.clock.format(back=int(back)))
        return str(found[0][0])

    @staticmethod
    def timestamp(second: int) -> str:
        """A Unix second as TIMESTAMP columns are compared in our sessions."""
        return rfc3339(second * 1_000_000)[:19].replace("T", " ")

    async def page(self, session: Session, query: JobQuery, before: tuple[Micros, str] | None, limit: int) -> list[str]:
        """The ids of jobs that `query` wants, newest first by (started_at, id), from before `before` on."""
        mark = self.dialect.placeholder
        where: list[str] = ["started_at IS NOT NULL"]
        args: list[object] = []
        for column in ("status", "job_type", "operation", "context_id", "parent_job_id"):
            if wanted := sorted(getattr(query, column)):
                if not self.schema.has("job_tracking", column):
                    return []
                where.append(f"{column} IN ({_marks(mark, wanted)})")
                args += wanted
        if query.since is not None:
            where.append(f"started_at >= {mark}")
            args.append(self.timestamp(-(-query.since // 1_000_000)))
        if query.text:
            columns = [
                c for c in ("id", "external_job_id", "context_id", "metadata") if self.schema.has("job_tracking", c)
            ]
            where.append("(" + " OR ".join(f"INSTR(LOWER({c}), {mark}) > 0" for c in columns) + ")")
            args += [query.text.lower()] * len(columns)
        if before is not None:
            at = self.timestamp(before[0] // 1_000_000)
            where.append(f"(started_at < {mark} OR (started_at = {mark} AND id < {mark}))")
            args += [at, at, before[1]]
        sql = f"SELECT id FROM job_tracking WHERE {' AND '.join(where)} ORDER BY started_at DESC, id DESC LIMIT {limit}"
        return [r[0] for r in await session.query(sql, args)]

    async def jobs_logged_as(self, session: Session, external_id: str) -> list[str]:
        """The jobs whose log rows carry `external_id` in its column, where there is one."""
        if not self.schema.has("log_events", "external_job_id", "job_id"):
            return []
        mark = self.dialect.placeholder
        sql = (
            "SELECT DISTINCT job_id, external_job_id FROM log_events"
            f" WHERE external_job_id = {mark} AND job_id IS NOT NULL"
        )
        return [r[0] for r in await session.query(sql, (external_id,)) if r[1] == external_id]

    async def steps_of(self, session: Session, job_ids: Iterable[str]) -> dict[str, list[StepRecord]]:
        found: dict[str, list[StepRecord]] = {}
        mark = self.dialect.placeholder
        for part in chunks(list(job_ids)):
            sql = (
                f"SELECT {self._select['job_steps']} FROM job_steps WHERE job_id IN ({_marks(mark, part)})"
                f" ORDER BY job_id, seq"
            )
            for row in await session.query(sql, part):
                *values, job_id = self._times("job_steps", row)
                found.setdefault(job_id, []).append(
                    StepRecord(
                        values[0], _one(values[1] or ""), values[2] or 0, _one(values[3] or "running"), *values[4:]
                    )
                )
        return found

    async def jobs_of_steps(self, session: Session, step_ids: Iterable[int]) -> set[str]:
        if not self.schema.has("job_steps", "job_id"):
            return set()
        found: set[str] = set()
        for part in chunks(list(step_ids)):
            rows = await session.query(f"SELECT DISTINCT job_id FROM job_steps WHERE id IN ({_list(part)})")
            found |= {r[0] for r in rows}
        return found

    async def children_of(self, session: Session, job_ids: Iterable[str]) -> dict[str, list[tuple[Micros, str]]]:
        found: dict[str, list[tuple[Micros, str]]] = {}
        if not self.schema.has("job_tracking", "parent_job_id"):
            return found
        started = self._time("job_tracking", "started_at")
        for part in chunks(list(job_ids)):
            marks = _marks(self.dialect.placeholder, part)
            sql = f"SELECT parent_job_id, {started}, id FROM job_tracking WHERE parent_job_id IN ({marks})"
            for parent, at, child in await session.query(sql, part):
                found.setdefault(parent, []).append((at or 0, child))
        return found

    async def _jobs_in(self, session: Session, column: str, values: Sequence[object]) -> list[JobRecord]:
        return await self.jobs_where(session, f"{column} IN ({_marks(self.dialect.placeholder, values)})", values)

    def _job(self, row: Row) -> JobRecord:
        values = self._times("job_tracking", row)
        for i in _FEW:
            if isinstance(values[i], str):
                values[i] = _one(values[i])
        return JobRecord(*values)

    # -- failover_jobs

    async def last_legacy_id(self, session: Session) -> int:
        return int((await session.query("SELECT MAX(id) FROM failover_jobs"))[0][0] or 0)

    async def legacy_where(self, session: Session, where: str, args: Sequence[object] = ()) -> list[LegacyRecord]:
        sql = f"SELECT {self._select['failover_jobs']} FROM failover_jobs WHERE {where}"
        found = []
        for row in await session.query(sql, args):
            v = self._times("failover_jobs", row)
            values: list[Any] = [*v[:2], v[2] or "pending", *v[3:9], v[9] or v[10], *v[11:]]
            found.append(LegacyRecord(*values))
        return found

    # -- how columns are written and read

    def _columns(self, table: str) -> str:
        return ", ".join(self._expression(table, c) for c in TABLES[table])

    def _expression(self, table: str, column: str) -> str:
        if not self.schema.has(table, column):
            return "NULL"
        if column in _TIMES:
            return self._time(table, column)
        if column == "attrs":
            return f"CASE WHEN LENGTH(attrs) > {joblog.MAX_ATTRS} THEN '{joblog.TOO_LONG}' ELSE attrs END"
        return column

    def _time(self, table: str, column: str) -> str:
        """A time as integer microseconds; DATETIME ones still in local time."""
        local = self.schema.is_local(table, column)
        return (self.dialect.local_micros if local else self.dialect.utc_micros).format(column)

    def _times(self, table: str, row: Row) -> list[Any]:
        values = list(row)
        for i in self._local[table]:
            if values[i] is not None:
                values[i] = self.zone.utc(values[i])
        return values

    def _utc(self, table: str, at: Micros | None) -> Micros:
        if at is None:
            return 0
        return self.zone.utc(at) if self._local[table] else at


def chunks(values: Sequence[T]) -> Iterable[Sequence[T]]:
    """`values` in parts that fit one IN list."""
    for i in range(0, len(values), IN_ONE):
        yield values[i : i + IN_ONE]


def _list(ids: Iterable[int]) -> str:
    return ",".join(map(str, ids))


def _marks(mark: str, values: Sequence[object]) -> str:
    return ",".join([mark] * len(values))


def as_stored(text: str) -> str:
    """`text` as it stands inside JSON written by Go's encoder."""
    inside = orjson.dumps(text)[1:-1].decode()
    for plain, escaped in _GO_ESCAPES:
        inside = inside.replace(plain, escaped)
    return inside


async def read_readings(queries: Queries, session: Session, tick: int, job_ids: Sequence[str]) -> list[Reading]:
    """What the tables say of `job_ids`, now; also of those that have no row. `tick` was taken just before."""
    if not job_ids:
        return []
    records = await queries.jobs_by_id(session, job_ids)
    steps = await queries.steps_of(session, job_ids) if queries.schema.has("job_steps", "id", "job_id") else None
    children = await queries.children_of(session, job_ids)
    return [
        Reading(
            job_id,
            tick,
            records.get(job_id),
            tuple(steps.get(job_id, ())) if steps is not None else None,
            tuple(sorted(children.get(job_id, ()))),
        )
        for job_id in job_ids
    ]


def _one(text: str) -> str:
    """The same object for equal texts, of the first `MAX_TEXTS` different ones."""
    if len(_texts) >= MAX_TEXTS:
        return _texts.get(text, text)
    return _texts.setdefault(text, text)
