"""JSON columns above the limit of a document: a shortened object is read instead of the text.

A text up to `WHOLE` bytes is read as a whole. Of a larger one only the beginning is read, after the server has removed
the members that fill it. Each of these needs a few queries, so the result is cached until its row changes.
"""

from __future__ import annotations

import time

from msgspec import Struct
from msgspec.structs import replace

from correlator.bounded import BoundedDict
from correlator.jobs.sizes import (
    MAX_KEPT,
    STEP_ERRORS,
    Prefix,
    Sizes,
    cut_object,
    cut_text,
    published_name,
    scan,
    size,
)
from correlator.model.rows import JobRecord, Micros, StepRecord
from correlator.sources.db.session import Dialect, Session, chunks

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
    """Reads and caches shortened objects. One per connection."""

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
        for part in chunks(list(rooms)):
            where = ",".join(map(str, part))
            sql = f"SELECT id, SUBSTR(error_message, 1, {limit}) FROM job_steps WHERE id IN ({where})"
            texts |= {i: text or "" for i, text in await session.query(sql)}
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
            rows = await session.query(f"SELECT {column} FROM {table} WHERE id = {self._dialect.placeholder}", (key,))
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
            rows = await session.query(sql, (key,))
        else:
            rest = f"JSON_REMOVE({column}, {self._dialect.marks(paths)})"
            member = self._dialect.member.format(column, mark)
            last = f"{self._dialect.size.format(member)} - 2 * (SUBSTR({member}, 1, 1) = '\"')"  # as `member_size`
            sql = (
                f"SELECT CASE WHEN JSON_VALID({column}) THEN {begin.format(rest)} END,"
                f" CASE WHEN JSON_VALID({column}) THEN {last} END FROM {table} WHERE id = {mark}"
            )
            rows = await session.query(sql, (*paths, paths[-1], paths[-1], key))
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
        rows = await session.query(sql, (*paths.values(), key))
        texts = zip(paths, rows[0], strict=True) if rows else ()
        return [(name, text) for name, text in texts if text is not None and len(text) <= MAX_KEPT]


def _path(name: str) -> str | None:
    """The JSON path of a member; None for a name that databases escape differently."""
    return None if not name or '"' in name or "\\" in name or not name.isprintable() else f'$."{name}"'


def _name(path: str) -> str:
    return path[3:-1]
