"""The queries of the tables, and their results as values. The same SQL for every kind of database.

Queries name only columns that exist, and each of them uses an index; searches without one are in `searches`. A missing
column is NULL, and of a long text at most a limit is read. Times come as integers, those of DATETIME columns in local
time, which `zones` converts. Which of its two readings one has in the hour that the end of daylight saving time repeats
no row says: `RepeatedHours` finds it.

Of a JSON column above the limit of a document, a shortened object is read instead of the text (`Oversized`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeAlias, TypeVar, get_args

from msgspec import Meta, Struct
from msgspec.structs import replace

from correlator.bounded import BoundedDict, chunks
from correlator.jobs import joblog
from correlator.jobs.directory import OwnIds
from correlator.jobs.encoding import rfc3339
from correlator.jobs.sizes import (
    KEPT_KEYS,
    MAX_KEPT,
    SHORT_ERROR,
    STEP_ERRORS,
    Prefix,
    Sizes,
    cut_object,
    cut_text,
    published_name,
    published_object,
    scan,
    size,
)
from correlator.model.facts import MAX_CHILDREN, MAX_STEPS, Reading
from correlator.model.rows import Int64, JobRecord, LegacyRecord, LogRow, Micros, StepRecord
from correlator.sources.db.log_times import IdSpan, LogClock, LogQuestion, LogTimes, RepeatedHours, last_id
from correlator.sources.db.session import (
    FORMS,
    IN_ONE,
    TABLES,
    TIMES,
    Dialect,
    Range,
    Row,
    Schema,
    Session,
    Text,
    Time,
    form_of,
    row_of,
    rows_of,
    unreadable,
)
from correlator.sources.db.zones import Offset, ServerZone, Zone
from correlator.tasks import Pacer

WHOLE = 128_000
"""Most bytes of a text that is read as a whole and shortened here."""

MAX_SEARCHED = 64_000_000
"""Most bytes of a text in which the server searches for members. Of a larger one only the beginning is published."""

ROUNDS = 4
"""Most members that are removed one by one. What follows them is not published."""

MAX_REMEMBERED = 1_000
"""Most shortened records in the cache."""

SETTLED_AFTER = 2_000_000
"""Microseconds after `updated_at` from which a further change alters it: it has a resolution of one second."""

CHECK_AFTER = 30.0
"""Seconds after which a row is read as a whole again, even if its `updated_at` is the same."""


class Remembered(Struct, frozen=True, gc=False):
    """A shortened record. `settled`: any later change of the row alters its `updated_at`."""

    record: JobRecord
    settled: bool
    read_at: float


class Oversized:
    """Reads and caches shortened objects: JSON columns above the limit of a document. One per connection.

    A text up to `WHOLE` bytes is read as a whole. Of a larger one only the beginning is read, after the server has
    removed the members that fill it. Each of these needs a few queries, so the result is cached until its row changes.
    """

    def __init__(self, dialect: Dialect, sizes: Sizes) -> None:
        self._dialect = dialect
        self._sizes = sizes
        self._remembered: BoundedDict[str, Remembered] = BoundedDict(MAX_REMEMBERED)
        self._specs: BoundedDict[int, tuple[int, Micros | None, str]] = BoundedDict(MAX_REMEMBERED)

    def is_known(self, job_id: str) -> bool:
        """True if the job has a shortened record that was read within `CHECK_AFTER` seconds."""
        known = self._remembered.get(job_id)
        return known is not None and known.settled and time.monotonic() - known.read_at < CHECK_AFTER

    def unchanged(self, light: JobRecord) -> JobRecord | None:
        """The cached record of a row that was read without its large columns; None if it has changed since."""
        known = self._remembered.get(light.job_id)
        return known.record if known is not None and known.record.updated_at == light.updated_at else None

    async def cut(
        self, session: Session, record: JobRecord, metadata: int, error: int | None, now: Micros | None
    ) -> JobRecord:
        """`record`, shortened to the limits. `metadata` and `error`: bytes in the table; `now`: the database's time."""
        if metadata > self._sizes.metadata:
            cut = await self.read(session, "job_tracking", "metadata", record.job_id, metadata)
            record = replace(record, metadata=cut)
        if record.error_message is not None:
            text, full = cut_text(record.error_message, self._sizes.error, error)
            record = replace(record, error_message=text, error_cut=full)
        self._remember(record, now)
        return record

    async def step_errors(self, session: Session, found: dict[str, list[StepRecord]], sizes: dict[int, int]) -> None:
        """Read the long errors of steps, in the order of the steps, up to the limits. `sizes`: bytes by step id."""
        limit, rooms = self._sizes.error, dict[int, int]()
        for steps in found.values():
            left = STEP_ERRORS * limit
            for step in steps:
                if step.id in sizes and (room := min(sizes[step.id], limit, left)) > 0:
                    rooms[step.id] = room
                    left -= room
        texts: dict[int, str] = {}
        for part in chunks(list(rooms), IN_ONE):
            where = ",".join(map(str, part))
            sql = f"SELECT id, SUBSTR(error_message, 1, {limit}) FROM job_steps WHERE id IN ({where})"
            texts |= {i: text or "" for i, text in await rows_of(session, tuple[Int64, Text], sql)}
        for steps in found.values():
            for n, step in enumerate(steps):
                if step.id in sizes:
                    text, full = cut_text(texts.get(step.id, ""), rooms.get(step.id, 0), sizes[step.id])
                    steps[n] = replace(step, error_message=text or None, error_cut=full)

    def _remember(self, record: JobRecord, now: Micros | None) -> None:
        at = record.updated_at
        settled = at is not None and now is not None and now - at >= SETTLED_AFTER
        self._remembered[record.job_id] = Remembered(record, settled, time.monotonic())
        self._remembered.move_to_end(record.job_id)

    async def spec(self, session: Session, key: int, full: int, updated_at: Micros | None) -> str:
        """The shortened `source_vm_spec` of a row of failover_jobs, which is read every second until its end."""
        known = self._specs.get(key)
        if known is not None and known[:2] == (full, updated_at):
            return known[2]
        text = await self.read(session, "failover_jobs", "source_vm_spec", key, full)
        self._specs[key] = (full, updated_at, text)
        return text

    async def read(self, session: Session, table: str, column: str, key: object, full: int) -> str:
        """The shortened object of a text of `full` bytes in the row `key`; `{}` with `_cut` if it is no object."""
        if full <= WHOLE:
            sql = f"SELECT {column} FROM {table} WHERE id = {self._dialect.placeholder}"
            rows = await rows_of(session, tuple[Text], sql, (key,))
            found = scan(rows[0][0] or "") if rows else None
            members = found.members if found is not None and found.whole else []
            return self._cut_object(members, {}, 0 if members else full)
        found, missing = await self._without_the_largest(session, table, column, key, full)
        members = found.members if found is not None else []
        if found is not None and not found.whole and full <= MAX_SEARCHED:
            seen = {name for name, _ in members} | set(missing)
            members = members + await self._named(
                session, table, column, key, [n for n in self._sizes.keep if n not in seen]
            )
        rest = 0
        if found is None or not found.whole:
            rest = max(1, full - sum(size(name) + size(text) for name, text in members) - sum(missing.values()))
        return self._cut_object(members, missing, rest)

    def _cut_object(self, members: list[tuple[str, str]], missing: dict[str, int], rest: int) -> str:
        return cut_object(
            [(published_name(name), text) for name, text in members],
            {published_name(name): length for name, length in missing.items()},
            self._sizes.keep, self._sizes.metadata, rest,
        )  # fmt: skip

    async def _without_the_largest(
        self, session: Session, table: str, column: str, key: object, full: int
    ) -> tuple[Prefix | None, dict[str, int]]:
        """The beginning of the object after the server has removed large members, and the bytes of those by name."""
        paths: list[str] = []
        missing: dict[str, int] = {}
        while True:
            found, last = await self._beginning(session, table, column, key, paths)
            if paths and last is not None:
                missing[_name(paths[-1])] = last
            if found is None or found.whole or found.open is None:
                return found, missing
            enough = sum(size(text) for _, text in found.members) > self._sizes.metadata
            path = _path(found.open)
            if enough or path is None or path in paths or len(paths) == ROUNDS or full > MAX_SEARCHED:
                return found, missing
            paths.append(path)

    async def _beginning(
        self, session: Session, table: str, column: str, key: object, paths: list[str]
    ) -> tuple[Prefix | None, int | None]:
        """The beginning of the text without `paths`, and the bytes of the last of those."""
        mark = self._dialect.placeholder
        begin = f"SUBSTR({{}}, 1, {2 * self._sizes.metadata})"
        if not paths:
            sql = f"SELECT {begin.format(column)}, NULL FROM {table} WHERE id = {mark}"
            args: tuple[object, ...] = (key,)
        else:
            rest = f"JSON_REMOVE({column}, {self._dialect.marks(paths)})"
            member = self._dialect.member.format(column, mark)
            last = f"{self._dialect.size.format(member)} - 2 * (SUBSTR({member}, 1, 1) = '\"')"  # as `member_size`
            sql = (
                f"SELECT CASE WHEN JSON_VALID({column}) THEN {begin.format(rest)} END,"
                f" CASE WHEN JSON_VALID({column}) THEN {last} END FROM {table} WHERE id = {mark}"
            )
            args = (*paths, paths[-1], paths[-1], key)
        rows = await rows_of(session, tuple[Text, Int64 | None], sql, args)
        return (scan(rows[0][0] or ""), rows[0][1]) if rows else (None, None)

    async def _named(
        self, session: Session, table: str, column: str, key: object, names: list[str]
    ) -> list[tuple[str, str]]:
        """The members `names`, wherever they are in the object."""
        paths = {name: path for name in names if (path := _path(name)) is not None}
        if not paths:
            return []
        mark = self._dialect.placeholder
        member = self._dialect.member.format(column, mark)
        one = f"CASE WHEN JSON_VALID({column}) THEN SUBSTR({member}, 1, {MAX_KEPT + 1}) END"
        sql = f"SELECT {', '.join([one] * len(paths))} FROM {table} WHERE id = {mark}"
        form = form_of(*[Text] * len(paths))
        rows = await rows_of(session, form, sql, (*paths.values(), key))
        texts = zip(paths, rows[0], strict=True) if rows else ()
        return [(name, text) for name, text in texts if text is not None and len(text) <= MAX_KEPT]


def _path(name: str) -> str | None:
    """The JSON path of a member; None for a name that databases escape differently."""
    return None if not name or '"' in name or "\\" in name or not name.isprintable() else f'$."{name}"'


def _name(path: str) -> str:
    return path[3:-1]


# -- queries


MESSAGE_COMPARED = 512
"""Characters of a row's message that distinguish it from another row."""

HEAVY = 4_096
"""Bytes of a message or of attrs above which a light reading leaves them out."""

FIRST_WITHIN = 2.0
"""Seconds in which the first row since a time is found, whichever way the clock was set."""

STEPS_AT_ONCE = 5 * MAX_STEPS
"""Steps of several jobs in one query, above which those of each job are counted first."""

BRIEFLY = "@@max_statement_time / 9"
"""Seconds of a query that is asked in another way if they do not suffice: a tenth of `database.query_timeout`."""

LOGGED_ROWS = 2000
"""Rows of the log that are read from either end to find the jobs with an external ID."""

Listed: TypeAlias = tuple[tuple[tuple[Micros, str], ...], int]
"""Children of a job as (started, job ID), sorted, and the number of all."""

NO_CHILDREN: Listed = ((), 0)

Record = TypeVar("Record", JobRecord, StepRecord, LegacyRecord)

_FEW = [TABLES["job_tracking"].index(c) for c in ("operation", "status", "job_type", "owner", "job_category")]
"""Columns with few different texts: equal texts share one object in memory. `sys.intern` would never free them."""

_METADATA, _SPEC = TABLES["job_tracking"].index("metadata"), TABLES["failover_jobs"].index("source_vm_spec")
_STATUS, _STARTED = (TABLES["job_tracking"].index(column) for column in ("status", "started_at"))

_STEP_STARTED = TABLES["job_steps"].index("started_at")

Timestamp: TypeAlias = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?$")]
"""The database's clock (`Dialect.clock`)."""

_ACTIVE = "status IN ('pending', 'running')"

MAX_TEXTS = 10_000
_texts: dict[str, str] = {}


class Queries:
    """The queries for the schema of one appliance.

    Args:
        malformed: Called with the reason for each value that cannot be read.
        limits: Most bytes of metadata and errors. A longer text is shortened by the server.
        lost: Tables and columns that were read before, and are missing now (`lost_of`).
        clock: The time of this host, about that of new rows.

    Every query raises `SourceUnavailable`.
    """

    def __init__(
        self,
        dialect: Dialect,
        schema: Schema,
        zone: Zone,
        malformed: Callable[[str], None] = lambda _: None,
        limits: Sizes | None = None,
        lost: frozenset[str] = frozenset(),
        clock: Callable[[], Micros] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._clock = clock
        self.dialect = dialect
        self.schema = schema
        self.zone = zone
        self.limits = limits or Sizes()
        self._select = {table: self._columns(table) for table in TABLES}
        self._local = {
            table: [i for i, column in enumerate(columns) if column in TIMES and schema.is_local(table, column)]
            for table, columns in TABLES.items()
        }
        self.lost = lost
        self._oversized = Oversized(dialect, self.limits)
        self._malformed = malformed
        self._repeated = RepeatedHours()
        self._light = ", ".join(_light(schema, c) or self.expression("log_events", c) for c in TABLES["log_events"])

    def lost_of(self, table: str) -> tuple[str, ...]:
        """The columns of a table that were read before, and are missing now. What was read of them stays."""
        return tuple(column for column in TABLES[table] if f"{table}.{column}" in self.lost)

    # -- log_events

    async def rows_in(self, session: Session, ids: Sequence[int]) -> list[LogRow]:
        """The rows with these ids, as far as they are visible."""
        rows = await self._rows_in(session, FORMS["log_events"], ids, self._select["log_events"])
        return [self.log_row(row) for row in rows]

    async def past_rows_in(self, session: Session, ids: Sequence[int], began: Micros) -> list[LogRow]:
        """The rows of a job that began then; a local time that a DST change repeats is read by the order of all ids."""
        rows = await self._rows_in(session, FORMS["log_events"], ids, self._select["log_events"])
        hours = dict[Range, list[Row]]()
        for row in rows if self._local["log_events"] else ():
            if row[2] is not None and (hour := self.zone.repeated(row[2])) is not None:
                hours.setdefault(hour, []).append(row)
        second = set[int]()
        for hour, some in hours.items():
            second |= await self._repeated.second(session, self.log_clock, hour, sorted(row[0] for row in some))
        return [self.log_row(row, since=self.zone.readings(row[2])[1] if row[0] in second else began) for row in rows]

    async def _rows_in(self, session: Session, form: type[Row], ids: Sequence[int], columns: str) -> list[Row]:
        found: list[Row] = []
        for part in chunks(ids, IN_ONE):
            found += await self._with_offset(session, form, columns, f"FROM log_events WHERE id IN ({_list(part)})")
        return found

    async def _with_offset(
        self, session: Session, form: type[Row], columns: str, rest: str, args: Sequence[object] = (), briefly: str = ""
    ) -> list[Row]:
        """The rows of a SELECT with local times. A server's own zone is read in the same statement."""
        if not isinstance(self.zone, ServerZone):
            return await rows_of(session, form, f"{briefly}SELECT {columns} {rest}", args)
        sql = f"{briefly}SELECT {columns}, (SELECT {self.dialect.offset}) {rest}"
        rows = await rows_of(session, _and(form, Offset), sql, args)
        if rows:
            self.zone.observe(rows[0][-1])
        return [row[:-1] for row in rows]

    async def id_bounds(self, session: Session, job_id: str) -> Range | None:
        """The first and the last id of rows with this job_id; None if there are none."""
        if not self.schema.has("log_events", "job_id"):
            return None
        mark = self.dialect.placeholder
        sql = f"SELECT MIN(id), MAX(id) FROM log_events WHERE job_id = {mark}"
        low, high = await row_of(session, tuple[Int64 | None, Int64 | None], sql, (job_id,))
        return (low, high) if low is not None and high is not None else None

    async def ids_in(self, session: Session, ranges: Iterable[Range]) -> list[int]:
        """The ids in `ranges` that are visible to `session`."""
        where = " OR ".join(f"id BETWEEN {a} AND {b}" for a, b in ranges)
        return [r[0] for r in await rows_of(session, tuple[Int64], f"SELECT id FROM log_events WHERE {where}")]

    async def last_id(self, session: Session, below: int | None = None) -> int:
        """The highest id of log_events (below this one); 0 if there is none."""
        return await last_id(session, below)

    async def first_since(self, session: Session, since: Micros) -> int:
        """The lowest id of a row from `since` on. If finding it takes long, the log's times are taken for sorted."""
        return (await self.log_span(session, since)).first

    async def log_span(self, session: Session, since: Micros) -> IdSpan:
        """The ids of log_events that may have a row from `since` on, found in about `FIRST_WITHIN` seconds."""

        async def ask(question: LogQuestion) -> Any:
            return await question(self.log_clock, session)

        return await LogTimes().span(ask, since, None, FIRST_WITHIN)

    @property
    def log_clock(self) -> LogClock:
        """How the times of log_events are written."""
        local = self.schema.is_local("log_events", "ts")
        return LogClock(self.dialect.local_micros if local else self.dialect.utc_micros, self.zone if local else None)

    def log_row(self, row: Row, near: Micros | None = None, since: Micros | None = None) -> LogRow:
        """Convert a row. `near` and `since` as in `Zone.utc`, for local times that a DST change repeats."""
        i, message, ts, level, job_id, step_id, attrs, external = row
        if ts is None:
            self._malformed("ts_invalid")
            ts = 0
        elif self._local["log_events"]:
            ts = self.zone.utc(ts, near, since)
        return LogRow(i, message or "", ts, level or "INFO", job_id, step_id, attrs, external)

    # -- light readings of log_events

    async def light_rows_from(
        self, session: Session, first: int, limit: int, *, last: int | None = None, after: Micros | None = None
    ) -> list[LogRow]:
        """The rows with id ≥ `first` (and ≤ `last`), in the order of their ids.

        `after`: the time of the row before, which resolves local times that a DST change repeats; None if the rows
        have just been written.
        """
        upto = "" if last is None else f" AND id <= {int(last)}"
        rest = f"FROM log_events WHERE id >= {int(first)}{upto} ORDER BY id LIMIT {limit}"
        return self._light_rows(await self._with_offset(session, _LIGHT, self._light, rest), after)

    async def light_rows_upto(self, session: Session, last: int, limit: int) -> list[LogRow]:
        """The rows with id ≤ `last`, the newest first."""
        rest = f"FROM log_events WHERE id <= {int(last)} ORDER BY id DESC LIMIT {limit}"
        return self._light_rows(await self._with_offset(session, _LIGHT, self._light, rest))

    async def light_rows_in(self, session: Session, ids: Sequence[int]) -> list[LogRow]:
        """The rows of `ids`, which have just been written, in any order."""
        return self._light_rows(await self._rows_in(session, _LIGHT, ids, self._light))

    def _light_rows(self, rows: Sequence[Row], after: Micros | None = None) -> list[LogRow]:
        now = self._clock() if after is None else None
        found: list[LogRow] = []
        for row in rows:
            attrs: Any = row[6]
            if attrs is not None and (isinstance(attrs, int) or joblog.is_count(attrs)):
                row = (*row[:6], f"{joblog.TOO_LONG}{attrs}", *row[7:])  # noqa: PLW2901
            found.append(self.log_row(row, now, after))
            if after is not None:
                after = found[-1].ts or after
        return found

    # -- job_tracking, job_steps

    async def jobs_by_id(self, session: Session, job_ids: Iterable[str]) -> dict[str, JobRecord]:
        wanted = list(job_ids)
        found = await self._unchanged(session, [i for i in wanted if self._oversized.is_known(i)])
        for part in chunks([i for i in wanted if i not in found], IN_ONE):
            where = f"id IN ({self.dialect.marks(part)})"
            found |= {r.job_id: r for r in await self.jobs_where(session, where, part)}
        return found

    async def jobs_where(self, session: Session, where: str, args: Sequence[object]) -> list[JobRecord]:
        table = "job_tracking"
        sizes = [self._size(table, c) for c in ("metadata", "error_message")]
        now = self.dialect.utc_micros.format("CURRENT_TIMESTAMP")
        sql = f"SELECT {self._select[table]}, {', '.join(sizes)}, {now} FROM {table} WHERE {where}"
        found, pacer = [], Pacer()
        form = _and(FORMS[table], Int64 | None, Int64 | None, Time | None)
        for *values, metadata_size, error_size, at in await rows_of(session, form, sql, args):
            await pacer.pause()
            record = self._job(tuple(values))
            if (error_size or 0) > self.limits.error or (metadata_size or 0) > self.limits.metadata:
                record = await self._oversized.cut(session, record, metadata_size or 0, error_size, at)
            found.append(record)
        return found

    async def _unchanged(self, session: Session, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """The cached records of those jobs whose rows have not changed; the large columns are not read."""
        found: dict[str, JobRecord] = {}
        columns = [
            "NULL" if column in ("metadata", "error_message") else self.expression("job_tracking", column)
            for column in TABLES["job_tracking"]
        ]
        for part in chunks(job_ids, IN_ONE):
            marks = self.dialect.marks(part)
            sql = f"SELECT {', '.join(columns)} FROM job_tracking WHERE id IN ({marks})"
            for row in await rows_of(session, FORMS["job_tracking"], sql, part):
                light = self._job(row)
                if (known := self._oversized.unchanged(light)) is not None:
                    large = (known.metadata, known.error_message, known.error_cut)
                    found[light.job_id] = replace(light, metadata=large[0], error_message=large[1], error_cut=large[2])
        return found

    async def active_ids(self, session: Session) -> set[str]:
        found = await rows_of(session, tuple[str], f"SELECT id FROM job_tracking WHERE {_ACTIVE}")
        return {r[0] for r in found}

    async def existing(self, session: Session, job_ids: Sequence[str]) -> set[str]:
        """Those of `job_ids` that the table has."""
        found: set[str] = set()
        for part in chunks(job_ids, IN_ONE):
            sql = f"SELECT id FROM job_tracking WHERE id IN ({self.dialect.marks(part)})"
            found.update(row[0] for row in await rows_of(session, tuple[str], sql, part))
        return found

    async def active_since(self, session: Session, since: str) -> dict[str, Micros]:
        """The jobs that have not ended and were updated at or after `since`, with their updated_at."""
        mark, at = self.dialect.placeholder, self._time("job_tracking", "updated_at")
        sql = f"SELECT id, {at} FROM job_tracking WHERE {_ACTIVE} AND updated_at >= {mark}"
        return dict(await rows_of(session, tuple[str, Time], sql, (since,)))

    async def ids_since(self, session: Session, since: str, *columns: str) -> set[str]:
        """The jobs of which a column (started_at, completed_at) is at or after `since`, by the database's clock."""
        mark = self.dialect.placeholder
        there = [column for column in columns if self.schema.has("job_tracking", column)]
        if not there:
            return set()
        sql = " UNION ALL ".join(f"SELECT id FROM job_tracking WHERE {column} >= {mark}" for column in there)
        return {r[0] for r in await rows_of(session, tuple[str], sql, (since,) * len(there))}

    async def newest_since(
        self, session: Session, since: str, column: str, limit: int
    ) -> list[tuple[str, Micros | None]]:
        """The `limit` jobs with the newest times in `column` (see `ids_since`), newest first, each with that time."""
        if limit <= 0 or not self.schema.has("job_tracking", column):
            return []
        mark, at = self.dialect.placeholder, self._time("job_tracking", column)
        where = f"WHERE {column} >= {mark} ORDER BY {column} DESC, id DESC LIMIT {limit}"
        rows = await rows_of(session, tuple[str, Time | None], f"SELECT id, {at} FROM job_tracking {where}", (since,))
        return [(job_id, self.utc("job_tracking", column, value)) for job_id, value in rows]

    async def oldest_start(self, session: Session) -> Micros | None:
        """When the job started that started first, as far as the tables say; None if they have none."""
        if not self.schema.has("job_tracking", "started_at"):
            return None
        at = self._time("job_tracking", "started_at")
        sql = f"SELECT {at} FROM job_tracking WHERE started_at IS NOT NULL ORDER BY started_at LIMIT 1"
        found = await rows_of(session, tuple[Time | None], sql)
        return self.utc("job_tracking", "started_at", found[0][0]) if found else None

    async def clock(self, session: Session, back: float) -> str:
        """The database's time `back` seconds ago, as text to compare TIMESTAMP columns with."""
        sql = self.dialect.clock.format(back=int(back))
        (found,) = await row_of(session, tuple[Timestamp], sql)
        return _of_calendar(found, sql)

    async def now(self, session: Session) -> Micros:
        """The database's time, in whole seconds."""
        sql = f"SELECT {self.dialect.utc_micros.format('CURRENT_TIMESTAMP')}"
        (found,) = await row_of(session, tuple[Time], sql)
        return found

    async def clock_and_active_count(self, session: Session, back: float) -> tuple[str, int]:
        """`clock`, and the number of jobs that have not ended, in one query. It counts in the index on status."""
        clock = f"({self.dialect.clock.format(back=int(back))})"
        columns = f"{clock}, (SELECT COUNT(*) FROM job_tracking WHERE {_ACTIVE})"
        if not isinstance(self.zone, ServerZone):
            sql = f"SELECT {columns}"
            now, count = await row_of(session, tuple[Timestamp, Int64], sql)
        else:
            sql = f"SELECT {columns}, {self.dialect.offset}"
            now, count, offset = await row_of(session, tuple[Timestamp, Int64, Offset], sql)
            self.zone.observe(offset)
        return _of_calendar(now, sql), count

    async def last_changes(self, session: Session, *tables: str) -> tuple[object, float]:
        """A value that is another after each change of these tables, and the seconds since the last of them.

        A transaction counts when it is committed, with the second in which it began. So one that lasts for longer than
        these seconds may leave the value as it is. None and 0.0 if the database does not tell.
        """
        if not self.dialect.last_changes:
            return None, 0.0
        names = ", ".join(f"'{name}'" for name in tables)
        sql = self.dialect.last_changes.format(tables=names)
        found = await rows_of(session, tuple[str, Any, Int64 | None], sql)
        ages = [age for *_, age in found if age is not None]
        if not ages or len(ages) < max(len(found), len(tables)):
            return None, 0.0
        return sorted((name, str(at)) for name, at, _ in found), float(min(ages))

    @staticmethod
    def timestamp(second: int) -> str:
        """A Unix second as text to compare TIMESTAMP columns with."""
        return rfc3339(second * 1_000_000)[:19].replace("T", " ")

    @staticmethod
    def micros(timestamp: str) -> Micros:
        """The Unix time of such a text, in microseconds."""
        return round(datetime.fromisoformat(f"{timestamp}+00:00").timestamp() * 1_000_000)

    async def jobs_logged_as(self, session: Session, external_id: str) -> list[str]:
        """The jobs whose log rows have `external_id` in the column external_job_id.

        Only the first and the last `LOGGED_ROWS` such rows are read: a job may have a million.
        """
        if not self.schema.has("log_events", "external_job_id", "job_id"):
            return []
        mark = self.dialect.placeholder
        found: dict[str, None] = {}
        for order in ("DESC", "ASC"):
            sql = (
                "SELECT DISTINCT job_id, external_job_id FROM (SELECT job_id, external_job_id FROM log_events"
                f" WHERE external_job_id = {mark} ORDER BY id {order} LIMIT {LOGGED_ROWS}) AS some"
                " WHERE job_id IS NOT NULL"
            )
            rows = await rows_of(session, tuple[str, Text], sql, (external_id,))
            found |= dict.fromkeys(job_id for job_id, name in rows if name == external_id)
        return list(found)

    async def steps_of(
        self, session: Session, starts: Mapping[str, Micros | None], *, briefly: bool = False
    ) -> dict[str, list[StepRecord]]:
        """The last `MAX_STEPS` steps of each job by `seq`. Long errors are shortened, also to what a job may have.

        `starts`: when each job started, since none of its steps began before it. `briefly`: each query may take only
        a part of its time (`BRIEFLY`).
        """
        within = self.dialect.briefly.format(seconds=BRIEFLY) if briefly else ""
        found: dict[str, list[StepRecord]] = {}
        begun = {job_id: at for job_id, at in starts.items() if at is not None}
        """When the newest of its steps began, of each job. None begins before the one in front of it."""
        long: dict[int, int] = {}
        own, pacer = OwnIds(starts), Pacer()
        for part in chunks(list(starts), IN_ONE):
            for *row, error_size in await self._step_rows(session, part, within):
                await pacer.pause()
                job_id = own.of(row[-1])
                *values, _ = self._times("job_steps", tuple(row), begun.get(job_id))
                if values[_STEP_STARTED] is not None and job_id in begun:
                    begun[job_id] = values[_STEP_STARTED]
                if error_size is not None and error_size > SHORT_ERROR:
                    long[values[0]] = error_size
                found.setdefault(job_id, []).append(
                    StepRecord(
                        values[0],
                        _one(values[1] or ""),
                        values[2] or 0,
                        _one(as_status(values[3]) or "running"),
                        *values[4:],
                    )
                )
        for steps in found.values():
            del steps[:-MAX_STEPS]
        if long:
            await self._oversized.step_errors(session, found, long)
        return found

    async def _step_rows(self, session: Session, job_ids: Sequence[str], briefly: str) -> list[Row]:
        """At most `STEPS_AT_ONCE` steps, or the last `MAX_STEPS` of each job, with the bytes of their errors."""
        order = "seq" if self.schema.has("job_steps", "seq") else "id"
        columns = f"{self._select['job_steps']}, {self._size('job_steps', 'error_message')}"
        form = _and(FORMS["job_steps"], Int64 | None)
        among = f"FROM job_steps WHERE job_id IN ({self.dialect.marks(job_ids)})"
        ordered = f"{among} ORDER BY job_id, {order} LIMIT {STEPS_AT_ONCE + 1}"
        rows = await self._with_offset(session, form, columns, ordered, job_ids, briefly)
        if len(rows) <= STEPS_AT_ONCE:
            return rows
        counted = f"{briefly}SELECT job_id, COUNT(*) {among} GROUP BY job_id"
        counts = dict(await rows_of(session, tuple[str, Int64], counted, job_ids))
        few = [job_id for job_id, n in counts.items() if n <= MAX_STEPS]
        rows = []
        if few:
            rest = f"FROM job_steps WHERE job_id IN ({self.dialect.marks(few)}) ORDER BY job_id, {order}"
            rows += await self._with_offset(session, form, columns, rest, few, briefly)
        for job_id in counts.keys() - few:
            rest = f"FROM job_steps WHERE job_id = {self.dialect.placeholder} ORDER BY {order} DESC LIMIT {MAX_STEPS}"
            rows += reversed(await self._with_offset(session, form, columns, rest, (job_id,), briefly))
        return rows

    async def jobs_of_steps(self, session: Session, step_ids: Iterable[int]) -> dict[int, str]:
        """The job of each of these steps, as far as there are any."""
        if not self.schema.has("job_steps", "job_id"):
            return {}
        found: dict[int, str] = {}
        for part in chunks(list(step_ids), IN_ONE):
            sql = f"SELECT id, job_id FROM job_steps WHERE id IN ({_list(part)})"
            found |= dict(await rows_of(session, tuple[Int64, str], sql))
        return found

    async def children_of(self, session: Session, job_ids: Iterable[str]) -> dict[str, Listed]:
        """The newest `MAX_CHILDREN` children of each job that has any, and the number of all."""
        counts: dict[str, int] = {}
        found: dict[str, list[tuple[Micros, str]]] = {}
        if not self.schema.has("job_tracking", "parent_job_id"):
            return {}
        started, mark = self._time("job_tracking", "started_at"), self.dialect.placeholder
        select = f"SELECT parent_job_id, {started}, id FROM job_tracking WHERE parent_job_id"
        job_ids = list(job_ids)
        for part in chunks(job_ids, IN_ONE):
            marks = self.dialect.marks(part)
            counted = f"SELECT parent_job_id, COUNT(*) FROM job_tracking WHERE parent_job_id IN ({marks})"
            counts |= dict(await rows_of(session, tuple[str, Int64], f"{counted} GROUP BY parent_job_id", part))
        own = OwnIds(set(job_ids))
        counts = {own.of(parent): n for parent, n in counts.items()}
        few = [parent for parent, n in counts.items() if n <= MAX_CHILDREN]
        asked = [(f"{select} IN ({self.dialect.marks(part)})", part) for part in chunks(few, IN_ONE)]
        newest = f"{select} = {mark} ORDER BY started_at DESC, id DESC LIMIT {MAX_CHILDREN}"
        asked += [(newest, [parent]) for parent, n in counts.items() if n > MAX_CHILDREN]
        for sql, args in asked:
            for parent, at, child in await rows_of(session, tuple[str, Time | None, str], sql, args):
                found.setdefault(own.of(parent), []).append((at or 0, child))
        return {parent: (tuple(sorted(found[parent])), n) for parent, n in counts.items() if parent in found}

    def _job(self, row: Row) -> JobRecord:
        began = None if self.schema.is_local("job_tracking", "started_at") else row[_STARTED]
        values = self._times("job_tracking", row, began)
        values[_STATUS] = as_status(values[_STATUS])
        for i in _FEW:
            if isinstance(values[i], str):
                values[i] = _one(values[i])
        values[_METADATA] = published_object(values[_METADATA])
        return JobRecord(values[0], **dict(zip(TABLES["job_tracking"][1:], values[1:], strict=True)))

    # -- failover_jobs

    async def last_legacy_id(self, session: Session) -> int:
        (found,) = await row_of(session, tuple[Int64 | None], "SELECT MAX(id) FROM failover_jobs")
        return found or 0

    async def legacy_ids(self, session: Session, where: str, args: Sequence[object] = (), *more: str) -> list[int]:
        """The ids of the rows that `legacy_where` would return."""
        sql = _any_of("SELECT id FROM failover_jobs WHERE ", where, *more)
        return [row[0] for row in await rows_of(session, tuple[Int64], sql, args)]

    async def legacy_where(
        self, session: Session, where: str, args: Sequence[object] = (), *more: str
    ) -> list[LegacyRecord]:
        """The rows of failover_jobs for which `where`, or one of `more`, holds; twice if two of them hold.

        `args` are for all conditions, in order.
        """
        table = "failover_jobs"
        sizes = [self._size(table, c) for c in ("source_vm_spec", "error_message")]
        sql = _any_of(f"SELECT {self._select[table]}, {', '.join(sizes)} FROM {table} WHERE ", where, *more)
        found, pacer = [], Pacer()
        form = _and(FORMS[table], Int64 | None, Int64 | None)
        for *row, spec_size, error_size in await rows_of(session, form, sql, args):
            await pacer.pause()
            v = self._times(table, tuple(row))
            v[_SPEC] = published_object(v[_SPEC])
            values: list[Any] = [*v[:2], as_status(v[2]) or "pending", *v[3:9], v[9] or v[10], *v[11:]]
            record = LegacyRecord(*values)
            if record.error_message is not None:
                error, cut = cut_text(record.error_message, self.limits.error, error_size)
                record = replace(record, error_message=error, error_cut=cut)
            if spec_size is not None and spec_size > self.limits.metadata:
                spec = await self._oversized.spec(session, record.id, spec_size, record.updated_at)
                record = replace(record, source_vm_spec=spec)
            found.append(record)
        return found

    # -- how columns are written in SQL, and how their times are read

    def _columns(self, table: str) -> str:
        return ", ".join(self.expression(table, column) for column in TABLES[table])

    def _size(self, table: str, column: str) -> str:
        return self.dialect.size.format(column) if self.schema.has(table, column) else "NULL"

    def expression(self, table: str, column: str) -> str:
        """The column, NULL if it is missing. Times become microseconds, DATETIME ones still in local time (`utc`)."""
        if not self.schema.has(table, column):
            return "NULL"
        if column in TIMES:
            return self._time(table, column)
        return self._bounded(table, column)

    def _bounded(self, table: str, column: str) -> str:
        """The column, or only its beginning or NULL if its text is long."""
        if column == "attrs":
            return f"CASE WHEN LENGTH(attrs) > {joblog.MAX_ATTRS} THEN {self._names_in_attrs()} ELSE attrs END"
        limits = {"metadata": self.limits.metadata, "source_vm_spec": self.limits.metadata}
        if table == "job_steps":
            limits["error_message"] = SHORT_ERROR
        if column in limits:
            return f"CASE WHEN {self._size(table, column)} <= {limits[column]} THEN {column} END"
        if column == "error_message":
            cut = f"SUBSTR({column}, 1, {self.limits.error})"
            return f"CASE WHEN {self._size(table, column)} <= {self.limits.error} THEN {column} ELSE {cut} END"
        return column

    def _names_in_attrs(self) -> str:
        """What is read of attrs that are too long: `joblog.TOO_LONG`, and the members that name the job."""
        text = f"'{joblog.TOO_LONG}{{'"
        keys = dict.fromkeys(("job_id", "step_id", *self.limits.keep))
        for number, key in enumerate(name for name in keys if name not in KEPT_KEYS):
            name = "".join(c for c in key if c not in "\\\"'%{}")
            member = self.dialect.member.format("attrs", f"""'$."{name}"'""")
            value = f"CASE WHEN {self.dialect.size.format(member)} <= {MAX_KEPT} THEN {member} END"
            for part in (f"""'{"," if number else ""}"{name}":'""", f"COALESCE({value}, 'null')"):
                text = self.dialect.joined.format(text, part)
        text = self.dialect.joined.format(text, "'}'")
        readable = f"LENGTH(attrs) <= {MAX_SEARCHED} AND JSON_VALID(attrs)"
        return f"CASE WHEN {readable} THEN {text} ELSE '{joblog.TOO_LONG}' END"

    def _time(self, table: str, column: str) -> str:
        """A time as integer microseconds; DATETIME ones still in local time."""
        local = self.schema.is_local(table, column)
        return (self.dialect.local_micros if local else self.dialect.utc_micros).format(column)

    def _times(self, table: str, row: Row, since: Micros | None = None) -> list[Any]:
        """A row with its times in UTC. Each is at or after `since` and the times in front of it, as of a step."""
        values = list(row)
        for i in self._local[table]:
            if values[i] is not None:
                values[i] = self.zone.utc(values[i], since=since)
                since = values[i] if since is not None else None
        return values

    def utc(self, table: str, column: str, at: Micros | None, since: Micros | None = None) -> Micros | None:
        """A time of this column in UTC, as `expression` returned it. `since`: as in `Zone.utc`."""
        return self.zone.utc(at, since=since) if at is not None and self.schema.is_local(table, column) else at


def _and(form: type[Row], *more: Any) -> type[Row]:
    return form_of(*get_args(form), *more)


_LIGHT = form_of(
    *(int | Text if column == "attrs" else kind
      for column, kind in zip(TABLES["log_events"], get_args(FORMS["log_events"]), strict=True))
)  # fmt: skip
"""The form of a light reading, in which a number may be in place of attrs."""


def _light(schema: Schema, column: str) -> str | None:
    """The expression of a column that may be heavy; a number in place of attrs is the bytes of message and attrs."""
    attrs = "attrs" if schema.has("log_events", "attrs") else "NULL"
    if column == "message":
        return f"CASE WHEN LENGTH(message) > {HEAVY} THEN SUBSTR(message, 1, {MESSAGE_COMPARED}) ELSE message END"
    if column == "attrs":
        return (
            f"CASE WHEN LENGTH(message) > {HEAVY} OR LENGTH({attrs}) > {HEAVY}"
            f" THEN LENGTH(message) + COALESCE(LENGTH({attrs}), 0) ELSE {attrs} END"
        )
    return None


async def read_readings(
    queries: Queries,
    session: Session,
    observed_at: int,
    job_ids: Sequence[str],
    known: Callable[[str], Reading | None] = lambda _: None,
    *,
    with_steps: bool = True,
    briefly: bool = False,
) -> list[Reading]:
    """The readings of `job_ids` from the tables, also of those without a row.

    For the ID of a job in another case, there is a reading of the job, and one of an ID without a row.
    `observed_at`: the logical time, from `advance_clock` just before this call. `known`: the last reading of a job; it
    has what lost columns contained. The readings have no steps without `with_steps`, or if the steps cannot be read.
    `briefly`: the steps of all may take only a part of the time of a query; `SourceUnavailable` says `Away.SLOW` then.
    """
    if not job_ids:
        return []
    records = await queries.jobs_by_id(session, job_ids)
    own = OwnIds(records)
    others = [job_id for job_id in job_ids if own.of(job_id) != job_id]
    job_ids = [*dict.fromkeys(map(own.of, job_ids)), *others]
    lost_steps = queries.lost_of("job_steps")
    with_steps = with_steps and queries.schema.has("job_steps", "id", "job_id") and "status" not in lost_steps
    starts = {job_id: records[job_id].started_at if job_id in records else None for job_id in job_ids}
    steps = await queries.steps_of(session, starts, briefly=briefly) if with_steps else None
    children = await queries.children_of(session, job_ids)
    # The last percent of the log applies where that of the table is lost.
    lost = tuple(column for column in queries.lost_of("job_tracking") if column != "percent_complete")
    found = []
    for job_id in job_ids:
        reading = Reading(
            job_id,
            observed_at,
            records.get(job_id),
            tuple(steps.get(job_id, ())) if steps is not None else None,
            *children.get(job_id, NO_CHILDREN),
        )
        if (lost or lost_steps) and (before := known(job_id)) is not None:
            reading = _with_lost(reading, before, lost, lost_steps)
        found.append(reading)
    return found


def _with_lost(reading: Reading, before: Reading, lost: Sequence[str], lost_steps: Sequence[str]) -> Reading:
    """`reading` with what the lost columns contained in the reading `before`."""
    record, steps = reading.record, reading.steps
    if record is not None and before.record is not None:
        record = with_lost(record, before.record, lost)
    if steps and before.steps:
        known = {step.id: step for step in before.steps}
        steps = tuple(with_lost(step, known[step.id], lost_steps) if step.id in known else step for step in steps)
    if "parent_job_id" in lost:
        reading = replace(reading, children=before.children, child_count=before.child_count)
    return replace(reading, record=record, steps=steps)


def with_lost(record: Record, before: Record, lost: Sequence[str]) -> Record:
    """`record` with the members that `lost` columns had in `before`."""
    if not lost:
        return record
    taken = (*lost, "error_cut") if "error_message" in lost else lost
    return replace(record, **{name: getattr(before, name) for name in taken if hasattr(before, name)})


def _any_of(select: str, *conditions: str) -> str:
    """The rows for which any condition holds. Unlike an OR, each uses its own index."""
    return " UNION ALL ".join(select + condition for condition in conditions)


def _of_calendar(text: str, sql: str) -> str:
    """A time of the server, unchanged. Raises: `SourceUnavailable` if no calendar has it."""
    try:
        Queries.micros(text)
    except ValueError:
        raise unreadable(sql, "the server's time is none") from None
    return text


def _list(ids: Iterable[int]) -> str:
    return ",".join(map(str, ids))


def as_status(text: str | None) -> str | None:
    """A status as JobLog writes it: the server compares a VARCHAR regardless of case and of spaces at its end."""
    return text.strip().lower() if text is not None else None


def _one(text: str) -> str:
    """The same object for equal texts, for the first `MAX_TEXTS` different ones."""
    if len(_texts) >= MAX_TEXTS:
        return _texts.get(text, text)
    return _texts.setdefault(text, text)
