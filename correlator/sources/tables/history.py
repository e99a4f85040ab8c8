"""The runs that ended before the daemon's first start: forecasts learn from them.

The problem: an appliance keeps years of jobs, 100,000 of them and more, in an order in which the runs of one operation
are anywhere. No index has the operation. Reading them must delay neither the tail nor a request.

The model: the newest `KEEP` completed runs of each operation are wanted, and those that failed or were cancelled among
them. First the jobs of the last `days` are walked from the newest end backwards by the index on completed_at, in slices
of few columns; the runs that are wanted are noted, and the server leaves out operations that have enough. Then the
steps and VMs of the runs are read, and the feed gets them, an operation at a time, the oldest run first. Operations
that have a running job come first, even before the end of the walk if all of their runs have been found. After each
slice half of the time that it took passes without a query, and none begins while the tail has to catch up.

Invariants: a run that ended at or before `cutoff`, the end of the database's last full second at the beginning, comes
from here at most once, and none that ended later: the tail finds those. What has been noted and fed outlives a failed
read and a connection. Each query reads a bounded number of rows by an index, and never metadata or errors as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from msgspec import Struct

from correlator.forecast.forecaster import MAX_OPERATIONS, OperationKey
from correlator.forecast.points import MAX_STEPS, EndedRun, StepTimes
from correlator.forecast.window import KEEP
from correlator.jobs.fold import VM_NAMES
from correlator.jobs.lenient_json import parsed
from correlator.jobs.sizes import MAX_KEPT
from correlator.model.facts import Status
from correlator.model.rows import Micros
from correlator.sources import Feed
from correlator.sources.db.queries import Queries, as_status
from correlator.sources.db.session import Schema, Session, Text, Time, form_of, rows_of
from correlator.sources.db.slices import Slices
from correlator.sources.tables.reconcile import LATE_COMMIT

MAX_SEARCHED = 4_000_000
"""Most bytes of metadata in which the server searches for the name of the VM."""

Place: TypeAlias = tuple[str, str]
"""Where a job is in the order of ends: (completed_at as text of the database, id)."""

_TIMES = ("completed_at", "started_at", "created_at")
_STORED = "CAST(completed_at AS CHAR)"
_NEWEST = "ORDER BY completed_at DESC, id DESC"

log = logging.getLogger(__name__)

MAX_RUNS = 5 * KEEP
"""Most runs that are read of an operation that fails often, of any outcome."""

AT_ONCE = 500
"""Most jobs that a query of the walk returns: some 5 ms without another task."""

PAUSE, LONGEST_PAUSE = 0.5, 1.0
"""Seconds between two slices for each second that a slice took, and the most seconds between two."""

_COMPLETED: dict[str | None, bool] = {Status.COMPLETED: True, Status.FAILED: False, Status.CANCELLED: False}


class Run(Struct, frozen=True, gc=False):
    """A run whose steps have not been read. `job_id`: "" if it did not complete, as its steps teach nothing."""

    job_id: str
    start: Micros
    end: Micros


class Runs(Struct):
    """The runs of one operation. `pending`: those to feed, the newest first. `completed` and `noted` only count."""

    pending: list[Run] = []
    completed: int = 0
    noted: int = 0

    @property
    def full(self) -> bool:
        return self.completed >= KEEP or self.noted >= MAX_RUNS


@dataclass(slots=True)
class History:
    """What has been read of the earlier runs. It outlives connections.

    `days`: how far back runs count. An older appliance was another one.
    """

    days: float = 180.0
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits for so many seconds, which leave the database to others."""
    position: int = 0
    """Slices of the walk, and runs that were fed: it grows while reading succeeds."""
    _operations: dict[OperationKey, Runs] = field(default_factory=dict)
    _cutoff: Micros | None = None
    """The latest end of a run that is read. None: reading has not begun."""
    _since: str = ""
    """The earliest end of a job that is walked over, in the database's text (`Queries.clock`)."""
    _before: Place | None = None
    """The last job of the walk so far; it goes on with older ones. None: it has not begun, or it is over."""
    _walked: bool = False
    """True once the walk is over, or if the appliance lacks the columns for it."""
    _walk_slices: Slices = field(default_factory=lambda: Slices(first=500, least=50, most=5_000))
    """The number of jobs in a slice of the walk."""
    _feed_slices: Slices = field(default_factory=lambda: Slices(first=10, least=1, most=10))
    """The number of runs in a call of the feed."""

    async def read(self, queries: Queries, session: Session, feed: Feed, turn: Callable[[], Awaitable[None]]) -> None:
        """Read to the end, then report `Feed.history_read`.

        Args:
            turn: Returns when the tail has nothing to catch up with.

        Raises:
            SourceUnavailable: The database failed. The position stays, and nothing is fed twice.
        """
        if self._cutoff is None:
            await self._begin(queries, session, feed)
        assert self._cutoff is not None
        self._walked = self._walked or not _are_readable(queries.schema)
        running = feed.known.running()
        while not self._walked:
            await self._walk(queries, session, self._cutoff, turn)
            for key in running:
                if (runs := self._operations.get(key)) is not None and runs.full and runs.pending:
                    await self._feed(queries, session, feed, key, turn)
        while (following := self._next(feed)) is not None:
            await self._feed(queries, session, feed, following, turn)
        counts = [runs.noted for runs in self._operations.values() if runs.noted]
        log.info("forecasts: read %d earlier runs of %d operations", sum(counts), len(counts))
        self._operations.clear()
        feed.history_read()

    async def _begin(self, queries: Queries, session: Session, feed: Feed) -> None:
        # An end may be committed so much later: those ends are learned as they are seen.
        cutoff = await queries.now(session) - int(LATE_COMMIT * 1_000_000) - 1
        self._since = await queries.clock(session, self.days * 86_400)
        # Operations that have a running job count among the `MAX_OPERATIONS` even if they last ran long ago.
        self._operations = {key: Runs() for key in sorted(feed.known.running())[:MAX_OPERATIONS]}
        self._cutoff = cutoff
        feed.history_begins(cutoff)

    async def _walk(
        self, queries: Queries, session: Session, cutoff: Micros, turn: Callable[[], Awaitable[None]]
    ) -> None:
        """Note the runs among the jobs of the next slice, and move `_before` past them.

        A slice has as many jobs as `_walk_slices` says. It ends earlier with the oldest job, or with `AT_ONCE` jobs
        of operations that do not have enough runs yet.

        Raises:
            SourceUnavailable: The database failed. `_before` stays, so the slice is read again.
        """
        await turn()
        began = time.monotonic()
        full = [key for key, runs in self._operations.items() if runs.full]
        with self._walk_slices.timed():
            down_to = await _nth_ended(queries, session, self._since, self._before, self._walk_slices.size)
            found = await _newest_ended(queries, session, self._since, self._before, down_to, full, AT_ONCE)
        for job in found:
            self._note(job, cutoff)
        self._before = found[-1].place if len(found) == AT_ONCE else down_to
        self._walked = self._before is None
        self.position += 1
        await self._rest(began)

    def _note(self, job: EndedJob, cutoff: Micros) -> None:
        completed = _COMPLETED.get(job.status)
        if completed is None or not job.operation[1] or not job.start or job.end is None or job.end > cutoff:
            return
        runs = self._operations.get(job.operation)
        if runs is None:
            if len(self._operations) >= MAX_OPERATIONS:
                return
            runs = self._operations[job.operation] = Runs()
        if not runs.full:
            runs.pending.append(Run(job.place[1] if completed else "", job.start, job.end))
            runs.completed += completed
            runs.noted += 1

    def _next(self, feed: Feed) -> OperationKey | None:
        """The operation to feed next; None after the last."""
        pending = [key for key, runs in self._operations.items() if runs.pending]
        running = feed.known.running() if pending else {}
        return next((key for key in pending if key in running), pending[0] if pending else None)

    async def _feed(
        self, queries: Queries, session: Session, feed: Feed, key: OperationKey, turn: Callable[[], Awaitable[None]]
    ) -> None:
        """Feed the pending runs of an operation, the oldest first."""
        pending = self._operations[key].pending
        while pending:
            await turn()
            began = time.monotonic()
            part = pending[: -self._feed_slices.size - 1 : -1]
            with self._feed_slices.timed():
                ended = await _with_details(queries, session, key, part)
            feed.history(ended)
            del pending[-len(part) :]
            self.position += len(part)
            if not pending:
                feed.operation_read(key)
            await self._rest(began)

    async def _rest(self, began: float) -> None:
        """Leave the database to others after a slice that began then, in monotonic seconds."""
        await self.pause(min(LONGEST_PAUSE, PAUSE * (time.monotonic() - began)))


async def _with_details(queries: Queries, session: Session, key: OperationKey, runs: Sequence[Run]) -> list[EndedRun]:
    completed = {run.job_id: run.start for run in runs if run.job_id}
    names = await _vm_names(queries, session, list(completed))
    steps = await _steps_of(queries, session, completed)
    return [
        EndedRun(
            key,
            names.get(run.job_id, ""),
            run.start,
            run.end,
            completed=bool(run.job_id),
            steps=tuple(steps.get(run.job_id, ())),
        )
        for run in runs
    ]


class EndedJob(NamedTuple):
    """A row of job_tracking with a completed_at. Its `status` may still be any; times are None if they are unknown."""

    place: Place
    operation: OperationKey
    status: str | None
    start: Micros | None
    end: Micros | None


def _are_readable(schema: Schema) -> bool:
    """True if the appliance has the columns without which nothing is known of an ended job."""
    began = schema.has("job_tracking", "started_at") or schema.has("job_tracking", "created_at")
    return began and schema.has("job_tracking", "id", "status", "completed_at")


async def _nth_ended(queries: Queries, session: Session, since: str, before: Place | None, n: int) -> Place | None:
    """The n-th job that ended before the place `before` and at or after `since` (`Queries.clock`), newest first.

    None if there are fewer. It reads only an index.
    """
    where, args = _between(queries, since, before)
    sql = f"SELECT {_STORED}, id FROM job_tracking WHERE {where} {_NEWEST} LIMIT 1 OFFSET {n - 1}"
    found = await rows_of(session, tuple[str, str], sql, args)
    return found[0] if found else None


async def _newest_ended(
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
    for one_type, one in without:
        by_type.setdefault(one_type, []).append(one)
    for one_type, operations in by_type.items():
        # In hexadecimal, as the collation of the database may ignore case.
        texts = [f"HEX(COALESCE({queries.expression('job_tracking', c)}, ''))" for c in ("job_type", "operation")]
        where += f" AND NOT ({texts[0]} = {mark} AND {texts[1]} IN ({queries.dialect.marks(operations)}))"
        args += [text.encode().hex().upper() for text in (one_type, *operations)]
    selected = ", ".join(queries.expression("job_tracking", column) for column in columns)
    sql = f"SELECT {_STORED}, id, {selected} FROM job_tracking WHERE {where} {_NEWEST} LIMIT {limit}"
    found = []
    rows = await rows_of(session, tuple[str, str, Text, Text, Text, Time | None, Time | None, Time | None], sql, args)
    for at, job_id, status, job_type, operation, *times in rows:
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


async def _vm_names(queries: Queries, session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """The name of each job's VM as `fold.vm_name` finds it, or ""."""
    if not job_ids or not queries.schema.has("job_tracking", "metadata"):
        return {}
    dialect = queries.dialect
    searched = f"{dialect.size.format('metadata')} <= {MAX_SEARCHED} AND JSON_VALID(metadata)"
    text = f"SUBSTR({dialect.member.format('metadata', dialect.placeholder)}, 1, {MAX_KEPT + 1})"
    texts = ", ".join([f"CASE WHEN {searched} THEN {text} END"] * len(VM_NAMES))
    sql = f"SELECT id, {texts} FROM job_tracking WHERE id IN ({dialect.marks(job_ids)})"
    form = form_of(str, *[Text] * len(VM_NAMES))
    rows = await rows_of(session, form, sql, [*(f'$."{name}"' for name in VM_NAMES), *job_ids])
    return {job_id: _first_text(members) for job_id, *members in rows}


def _first_text(members: Sequence[str | None]) -> str:
    """The first of these JSON texts that is a string and was not cut."""
    for member in members:
        if member is not None and len(member) <= MAX_KEPT and member.startswith('"'):
            try:
                return str(parsed(member))
            except ValueError:
                continue
    return ""


async def _steps_of(queries: Queries, session: Session, starts: Mapping[str, Micros]) -> dict[str, list[StepTimes]]:
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
    begun = dict(starts)
    sql = " UNION ALL ".join([one] * len(job_ids))
    rows = await rows_of(session, tuple[str, Text, Time | None, Time | None], sql, job_ids)
    for job_id, name, began, ended in rows:
        at = queries.utc("job_steps", "started_at", began, begun.get(job_id))
        if at is not None:
            begun[job_id] = at
            step = StepTimes(name or "", at, queries.utc("job_steps", "completed_at", ended, at))
            found.setdefault(job_id, []).append(step)
    return found
