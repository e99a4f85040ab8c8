"""Searches without an index of their own, as SQL: of job_tracking from the newest job backwards, of the log of one job,
and of failover_jobs and the jobs that own its rows.

Each reads one slice: jobs between two places in the order (started_at, id), log rows between two ids, or jobs that
began in a range of time. The caller chooses slices that take some 50 ms (`sources.search.Slices`). IDs are compared as
exact text: the collation of the database may match more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import TypeAlias

from correlator.bounded import chunks
from correlator.jobs import fold, joblog
from correlator.model.rows import Int64, LegacyRecord, Micros
from correlator.pipeline.queries import JobNames, JobQuery, LineQuery
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import IN_ONE, Session, Text, Time, form_of, row_of, rows_of

Place: TypeAlias = tuple[Micros, str]
"""Where a job stands in the order of a list: (started_at, id)."""


_COLUMNS = ("status", "job_type", "operation", "context_id", "parent_job_id")


_NEWEST = "ORDER BY started_at DESC, id DESC"


_PLAIN = re.compile(r"[ !#-%(-.0-;=?-\[\]-~]+")


_HAS_PLACE = "started_at >= '1970-01-01 00:00:01'"
"""Jobs that have a place in the order: a zero date is no time, as NULL is none."""


MAX_NARROW = 2_000
"""Jobs that are found by another index than that of the order, and sorted."""


# -- job_tracking


async def nth_job(queries: Queries, session: Session, before: Place | None, n: int) -> Place | None:
    """The place of the n-th job from `before` on, newest first; None if there are fewer. It reads only an index."""
    where, args = _below(queries, before)
    sql = f"SELECT {_started(queries)}, id FROM job_tracking WHERE {where} {_NEWEST} LIMIT 1 OFFSET {n - 1}"
    found = await rows_of(session, tuple[Time, str], sql, args)
    return found[0] if found else None


async def matching(
    queries: Queries,
    session: Session,
    query: JobQuery,
    id_keys: Sequence[str],
    before: Place | None,
    down_to: Place | None,
    limit: int,
    *,
    sort: bool = False,
) -> list[tuple[Place, int]]:
    """The first jobs that match `query`, with the bytes of each, newest first, from before `before` to `down_to`.

    `sort`: `is_narrow` is true, so sort the jobs that another index finds instead of reading the table in this order.
    """
    mark, where, args = queries.dialect.placeholder, list[str](), list[object]()
    for column in _COLUMNS:
        if wanted := sorted(getattr(query, column)):
            if not queries.schema.has("job_tracking", column):
                return []
            where.append(f"{column} IN ({queries.dialect.marks(wanted)})")
            args += wanted
    if query.since is not None:
        where.append(f"started_at >= {mark}")
        args.append(queries.timestamp(-(-query.since // 1_000_000)))
    if query.vm_name:
        condition, more = _mentions(queries, query.vm_name, fold.VM_NAMES)
        where.append(condition if queries.schema.has("job_tracking", "metadata") else "1 = 0")
        args += more if queries.schema.has("job_tracking", "metadata") else []
    mentioned = [_names(queries, query.text, id_keys)] if query.text else []
    mentioned += [_texts(queries, word, id_keys) for word in sorted(query.words)]
    for conditions, more in mentioned:
        where.append(f"({' OR '.join(conditions)})")
        args += more
    return await _places(queries, session, where, args, before, down_to, limit, sort=sort)


def _names(queries: Queries, text: str, id_keys: Sequence[str]) -> tuple[list[str], list[object]]:
    """The conditions for jobs with `text` in any ID or in the VM's name. They may hold for others too."""
    columns = [c for c in ("id", "external_job_id", "context_id") if queries.schema.has("job_tracking", c)]
    conditions = [queries.dialect.matches.format(column) for column in columns]
    args: list[object] = [_pattern(_needles(text))] * len(columns)
    if queries.schema.has("job_tracking", "metadata"):
        # In a value: the metadata of every job has a member named vm_name.
        members = [member(queries, key) for key in (*id_keys, *fold.VM_NAMES)]
        values = " OR ".join(map(queries.dialect.matches.format, members))
        conditions.append(f"({queries.dialect.matches.format('metadata')} AND ({values}))")
        args += [_pattern([_plain_part(text)]), *[_pattern(_needles(text))] * len(members)]
    return conditions, args


def _texts(queries: Queries, text: str, id_keys: Sequence[str]) -> tuple[list[str], list[object]]:
    """As `_names`, and in the operation, an error, or the name of a step. An index finds the steps of a job."""
    conditions, args = _names(queries, text, id_keys)
    pattern = _pattern(_needles(text))
    error = f"SUBSTR(error_message, 1, {queries.limits.error})"
    columns = {"operation": "operation", "error_message": error}
    own = [expression for column, expression in columns.items() if queries.schema.has("job_tracking", column)]
    conditions += map(queries.dialect.matches.format, own)
    args += [pattern] * len(own)
    if queries.schema.has("job_steps", "job_id", "name"):
        of_steps = ["name", *([error] if queries.schema.has("job_steps", "error_message") else [])]
        matching_steps = " OR ".join(map(queries.dialect.matches.format, of_steps))
        conditions.append(
            f"EXISTS (SELECT 1 FROM job_steps WHERE job_steps.job_id = job_tracking.id AND ({matching_steps}))"
        )
        args += [pattern] * len(of_steps)
    return conditions, args


def _needles(text: str) -> list[str]:
    """The forms of `text` of which a text has one that contains it: bytes have upper and lower case in ASCII alone."""
    return [text] if text.isascii() else [text, text.lower(), text.upper()]


def _pattern(parts: Iterable[str]) -> str:
    """The regular expression for texts that contain one of `parts`, for `Dialect.matches`; an empty one is in any."""
    return "(?i)" + "|".join(re.escape(part).replace("\0", "\\x00") for part in dict.fromkeys(parts))


def _encoded(text: str) -> list[str]:
    """A text as encoders of JSON write it: with the fewest escapes, with those beyond ASCII, and with all."""
    units = text.encode("utf-16-be", "surrogatepass").hex()
    escaped = "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
    return [json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], escaped, text.replace("/", "\\/")]


def _plain_part(text: str) -> str:
    """The longest part of `text` that is the same in all JSON: encoders escape other characters or do not."""
    return max(_PLAIN.findall(text), key=len, default="")


async def is_narrow(queries: Queries, session: Session, query: JobQuery) -> bool:
    """True if an index answers `query`: at most `MAX_NARROW` jobs are in its contexts, or are children of its parents.

    It reads that many entries of the index at the most.
    """
    for column in ("context_id", "parent_job_id"):
        wanted = sorted(getattr(query, column))
        if wanted and queries.schema.has("job_tracking", column):
            some = f"SELECT 1 FROM job_tracking WHERE {column} IN ({queries.dialect.marks(wanted)})"
            counted = f"SELECT COUNT(*) FROM ({some} LIMIT {MAX_NARROW + 1}) AS some"
            (count,) = await row_of(session, tuple[Int64], counted, wanted)
            return count <= MAX_NARROW
    return False


async def mentioning(
    queries: Queries,
    session: Session,
    name: str,
    id_keys: Sequence[str],
    before: Place | None,
    down_to: Place | None,
    limit: int,
) -> list[Place]:
    """The first jobs whose metadata has `name` under one of `id_keys`. The database's collation may match too many."""
    where, args = _mentions(queries, name, id_keys)
    return [place for place, _ in await _places(queries, session, [where], args, before, down_to, limit)]


async def mentioning_unordered(
    queries: Queries, session: Session, name: str, id_keys: Sequence[str], limit: int
) -> list[str]:
    """The same among jobs outside that order: the few without started_at, or all in a table without the column."""
    where, args = _mentions(queries, name, id_keys)
    if queries.schema.has("job_tracking", "started_at"):
        where += f" AND (started_at IS NULL OR NOT {_HAS_PLACE})"
    found = await rows_of(session, tuple[str], f"SELECT id FROM job_tracking WHERE {where} LIMIT {limit}", args)
    return [row[0] for row in found]


async def with_column(queries: Queries, session: Session, column: str, value: str, limit: int) -> list[str]:
    """The newest jobs whose indexed `column` is exactly `value`."""
    order = _NEWEST if queries.schema.has("job_tracking", "started_at") else ""
    mark = queries.dialect.placeholder
    sql = f"SELECT id, {column} FROM job_tracking WHERE {column} = {mark} {order} LIMIT {limit}"
    return [job_id for job_id, found in await rows_of(session, tuple[str, Text], sql, (value,)) if found == value]


async def newest(queries: Queries, session: Session, ids: Sequence[str], most: int) -> list[str]:
    """The `most` newest jobs of `ids`; those of one second by their job IDs. It reads rows by the primary key."""
    if not queries.schema.has("job_tracking", "started_at"):
        return list(ids[:most])
    found: list[Place] = []
    for part in chunks(ids, IN_ONE):
        sql = f"SELECT {_started(queries)}, id FROM job_tracking WHERE id IN ({queries.dialect.marks(part)})"
        found += [(at or 0, job_id) for at, job_id in await rows_of(session, tuple[Time | None, str], sql, part)]
    return [job_id for _, job_id in nlargest(most, found)]


async def has_context(queries: Queries, session: Session, name: str) -> bool:
    """True if the context of a job is exactly `name`. The database's collation may match others: it reads 100."""
    if not queries.schema.has("job_tracking", "context_id"):
        return False
    mark = queries.dialect.placeholder
    sql = f"SELECT context_id FROM job_tracking WHERE context_id = {mark} LIMIT 100"
    return any(row[0] == name for row in await rows_of(session, tuple[Text], sql, (name,)))


async def _places(
    queries: Queries,
    session: Session,
    where: Sequence[str],
    args: Sequence[object],
    before: Place | None,
    down_to: Place | None,
    limit: int,
    *,
    sort: bool = False,
) -> list[tuple[Place, int]]:
    below, places = _below(queries, before)
    if down_to is not None:
        mark, at = queries.dialect.placeholder, _at(queries, down_to)
        below += f" AND started_at >= {mark} AND (started_at > {mark} OR id >= {mark})"
        places += [at, at, down_to[1]]
    condition = " AND ".join([below, *where])
    large = [c for c in ("metadata", "error_message") if queries.schema.has("job_tracking", c)]
    # No index has the order of an expression, so the server cannot prefer one to the index that finds few jobs.
    order = "ORDER BY COALESCE(started_at, started_at) DESC, id DESC" if sort else _NEWEST
    size = " + ".join(f"COALESCE(LENGTH({c}), 0)" for c in large) or "0"
    sql = f"SELECT {_started(queries)}, id, {size} FROM job_tracking WHERE {condition} {order} LIMIT {limit}"
    found = await rows_of(session, tuple[Time, str, Int64], sql, [*places, *args])
    return [((at, job_id), length) for at, job_id, length in found]


def _below(queries: Queries, before: Place | None) -> tuple[str, list[object]]:
    if before is None:
        return _HAS_PLACE, []
    mark, at = queries.dialect.placeholder, _at(queries, before)
    return f"{_HAS_PLACE} AND started_at <= {mark} AND (started_at < {mark} OR id < {mark})", [at, at, before[1]]


def _mentions(queries: Queries, name: str, id_keys: Sequence[str]) -> tuple[str, list[object]]:
    mark = queries.dialect.placeholder
    if not id_keys:
        return "1 = 0", []
    values = " OR ".join(f"{member(queries, key)} = {mark}" for key in id_keys)
    args: list[object] = [name] * len(id_keys)
    if not (plain := _plain_part(name)):
        return f"({values})", args
    return f"INSTR(metadata, {mark}) > 0 AND ({values})", [f'"{name}"' if plain == name else plain, *args]


def member(queries: Queries, key: str) -> str:
    """The SQL expression for the text that metadata holds under `key`, which comes from the configuration."""
    path = '$."' + "".join(c for c in key if c not in "\\\"'%{}") + '"'
    return queries.dialect.json_text.format(column="metadata", path=path)


def _started(queries: Queries) -> str:
    return queries.dialect.utc_micros.format("started_at")


def _at(queries: Queries, place: Place) -> str:
    return queries.timestamp(place[0] // 1_000_000)


# -- failover_jobs


async def legacy_places(
    queries: Queries, session: Session, since: Micros | None, before: Place | None, down_to: Place | None, limit: int
) -> list[tuple[int, Place]]:
    """(id, place) of the first rows in the order of a list, from before `before` to `down_to`.

    No index has this order; the table has a row for each failover, and only ids and times of it are read here.
    """
    times = [c for c in ("started_at", "created_at") if queries.schema.has("failover_jobs", c)]
    if not times or not queries.schema.has("failover_jobs", "id", "job_id", "status"):
        return []
    mark, at = queries.dialect.placeholder, f"COALESCE({', '.join(f'NULLIF({c}, 0)' for c in times)})"
    where, args = [f"{at} >= '1970-01-01 00:00:01'"], list[object]()
    if since is not None:
        where.append(f"{at} >= {mark}")
        args.append(queries.timestamp(-(-since // 1_000_000)))
    for place, later, earlier in ((before, "<", "<"), (down_to, ">", ">=")):
        if place is not None:
            where.append(f"({at} {later} {mark} OR ({at} = {mark} AND job_id {earlier} {mark}))")
            args += [_at(queries, place), _at(queries, place), place[1]]
    micros = queries.dialect.utc_micros.format(at)
    sql = f"SELECT id, {micros}, job_id FROM failover_jobs WHERE {' AND '.join(where)}"
    sql = f"{sql} ORDER BY {at} DESC, job_id DESC LIMIT {limit}"
    return [(i, (at, job_id)) for i, at, job_id in await rows_of(session, tuple[Int64, Time, str], sql, args)]


# -- log_events


SCAN_WITHIN = 1.0
"""Seconds after which the server ends the search of one slice of the log for the lines of any job."""


async def sizes_of(
    queries: Queries,
    session: Session,
    names: JobNames | None,
    query: LineQuery,
    where: str,
    limit: int,
    order: str = "ASC",
) -> list[tuple[int, int]]:
    """(id, bytes) of the first rows in `order` that may belong to a job and match `query`. `names` None: of any job.

    `where` selects the ids: `within` or `among`.
    """
    schema, args = queries.schema, list[object]()
    attrs = schema.has("log_events", "attrs")
    if names is not None:
        mine, args = _of_job(queries, names)
        where += f" AND ({mine})"
    if query.levels and schema.has("log_events", "level"):
        where += f" AND level IN ({queries.dialect.marks(query.levels)})"
        args += query.levels
    if query.steps:
        where += f" AND ({_of_steps(queries, query)})"
    at = f"COALESCE({queries.expression('log_events', 'ts')}, 0)"
    if query.since is not None:
        where += f" AND {at} >= {query.since + min(queries.log_clock.offsets(query.since))}"
    if query.until is not None:
        where += f" AND {at} < {query.until + max(queries.log_clock.offsets(query.until))}"
    for text in query.texts:
        needles, plain = _needles(text), _plain_part(text)
        found_in = [queries.dialect.matches.format("message")]
        args.append(_pattern(needles))
        if attrs:
            found_in.append(queries.dialect.matches.format("attrs"))
            args.append(_pattern([plain] if plain else [form for n in needles for form in _encoded(n)]))
        where += f" AND ({' OR '.join(found_in)})"
    carried = f"CASE WHEN LENGTH(attrs) > {joblog.MAX_ATTRS} THEN 0 ELSE COALESCE(LENGTH(attrs), 0) END"
    size = f"LENGTH(message) + {carried if attrs else '0'}"
    briefly, by = "", "id"
    if names is None:
        briefly = queries.dialect.briefly.format(seconds=SCAN_WITHIN)
        by = "id + 0"  # The few that match are sorted, as rows are read forward for less: no index has this order.
    sql = f"{briefly}SELECT id, {size} FROM log_events WHERE {where} ORDER BY {by} {order} LIMIT {limit}"
    return [(i, n or 0) for i, n in await rows_of(session, tuple[Int64, Int64 | None], sql, args)]


def _of_job(queries: Queries, names: JobNames) -> tuple[str, list[object]]:
    """The SQL condition for rows that may belong to a job, and its arguments."""
    mark, schema = queries.dialect.placeholder, queries.schema
    attrs = schema.has("log_events", "attrs")
    conditions, args = list[str](), list[object]()
    if attrs:  # In any case, as the job ID is compared so. An ID without a plain part is in any attrs: the rows decide.
        conditions.append(queries.dialect.matches.format("attrs"))
        args.append(_pattern([_plain_part(name) or "{" for name in (names.job_id, *names.external_ids)]))
    if steps := sorted(names.step_ids):
        if attrs:
            conditions.append("INSTR(attrs, '\"step_id\"') > 0")
        if schema.has("log_events", "step_id"):
            conditions.append(f"step_id IN ({','.join(map(str, steps))})")
    if names.external_ids and schema.has("log_events", "external_job_id"):
        conditions.append(f"external_job_id IN ({queries.dialect.marks(names.external_ids)})")
        args += names.external_ids
    mine = " OR ".join(conditions or ["1 = 0"])
    if schema.has("log_events", "job_id"):
        mine = f"job_id = {mark} OR (job_id IS NULL AND ({mine}))"
        args = [names.job_id, *args]
    return mine, args


def _of_steps(queries: Queries, query: LineQuery) -> str:
    """The SQL condition for rows that may be of the steps of `query`: attrs name the step where the column is null."""
    column, attrs = (queries.schema.has("log_events", name) for name in ("step_id", "attrs"))
    in_attrs = "INSTR(attrs, '\"step_id\"') > 0" if attrs else "1 = 0"
    if not column:
        return in_attrs
    return f"step_id IN ({','.join(map(str, sorted(query.steps)))}) OR (step_id IS NULL AND {in_attrs})"


def within(first: int, last: int) -> str:
    """The SQL condition for a range of ids, both included."""
    return f"id BETWEEN {int(first)} AND {int(last)}"


def among(ids: Iterable[int]) -> str:
    """The SQL condition for a list of ids."""
    return f"id IN ({','.join(str(int(i)) for i in ids)})"


# -- the owners of rows of failover_jobs: JobLog jobs that have their IDs


LOG_ROWS = 1_000
"""Most rows of the log that are read for one ID: an old job may have a million of them."""


NEAR = 86_400
"""Seconds around a row's creation, or the Unix second in its ID, within which a job that owns it began."""


LOG_NAMES = 50
"""IDs in one statement about the log."""


_SECOND = re.compile(r"(\d{10})$")


async def owned_by_index(queries: Queries, session: Session, names: Iterable[str]) -> set[str]:
    """Those of `names` that are a job_tracking.id or a job_tracking.external_job_id."""
    wanted, found = set(names), set[str]()
    for column in ("id", "external_job_id"):
        if queries.schema.has("job_tracking", column):
            for part in chunks(sorted(wanted - found), IN_ONE):
                marks = queries.dialect.marks(part)
                sql = f"SELECT DISTINCT {column} FROM job_tracking WHERE {column} IN ({marks})"
                found |= {r[0] for r in await rows_of(session, tuple[str], sql, part)}
    return found & wanted  # the database compares regardless of case


async def owned_by_log(queries: Queries, session: Session, names: Iterable[str]) -> set[str]:
    """Those of `names` that rows of the log carry in external_job_id, together with a job."""
    wanted, found = set(names), set[str]()
    if queries.schema.has("log_events", "external_job_id", "job_id"):
        one = (
            "SELECT name FROM (SELECT external_job_id AS name, job_id FROM log_events"
            f" WHERE external_job_id = {queries.dialect.placeholder} LIMIT {LOG_ROWS}) AS first_rows"
            " WHERE job_id IS NOT NULL"
        )
        for part in chunks(sorted(wanted), LOG_NAMES):
            found |= {r[0] for r in await rows_of(session, tuple[str], " UNION ".join([one] * len(part)), part)}
    return found & wanted


async def owned_in_metadata(
    queries: Queries, session: Session, names: Sequence[str], keys: Sequence[str], since: int, until: int
) -> set[str]:
    """Those of `names` that metadata holds under one of `keys`, of jobs begun in [since, until): Unix seconds."""
    if not queries.schema.has("job_tracking", "id", "metadata", "started_at"):
        return set()
    mark = queries.dialect.placeholder
    values = [member(queries, key) for key in keys]
    found: set[str] = set()
    for part in chunks(names, IN_ONE) if keys else ():
        marks = queries.dialect.marks(part)
        sql = (
            f"SELECT {', '.join(values)} FROM job_tracking"
            f" WHERE started_at >= {mark} AND started_at < {mark}"
            f" AND ({' OR '.join(f'{value} IN ({marks})' for value in values)})"
        )
        args = [queries.timestamp(since), queries.timestamp(until), *(list(part) * len(values))]
        form = form_of(*[Text] * len(values))
        for row in await rows_of(session, form, sql, args):
            found.update(row)
    return found & set(names)


def owner_began_near(record: LegacyRecord) -> int | None:
    """Unix second near which a job that owns the row began. A constructed ID ends with it. None if unknown."""
    if second := _SECOND.search(record.job_id):
        return int(second[1])
    at = record.created_at if record.created_at is not None else record.started_at
    return at // 1_000_000 if at is not None else None


def spans_near(ages: Iterable[int]) -> list[tuple[int, int]]:
    """The disjoint ranges of Unix seconds within `NEAR` of one of `ages`."""
    spans: list[tuple[int, int]] = []
    for at in sorted(ages):
        since, until = at - NEAR, at + NEAR + 1
        if spans and since <= spans[-1][1]:
            spans[-1] = (spans[-1][0], until)
        else:
            spans.append((since, until))
    return spans
