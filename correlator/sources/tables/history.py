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
read and a connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from correlator.jobs.forecast.forecaster import MAX_OPERATIONS, OperationKey
from correlator.jobs.forecast.place import EndedRun
from correlator.jobs.forecast.window import KEEP
from correlator.jobs.model.facts import Status
from correlator.jobs.model.rows import Micros
from correlator.sources import Feed
from correlator.sources.db import ended_jobs
from correlator.sources.db.ended_jobs import EndedJob, Place
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session
from correlator.sources.search.slices import Slices

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
    position: int = 0
    """Slices of the walk, and runs that were fed: it grows while reading succeeds."""
    _operations: dict[OperationKey, Runs] = field(default_factory=dict)
    _cutoff: Micros | None = None
    _since: str = ""
    _before: Place | None = None
    _walked: bool = False
    _jobs: Slices = field(default_factory=lambda: Slices(first=500, least=50, most=5_000))
    _details: Slices = field(default_factory=lambda: Slices(first=10, least=1, most=10))
    """Jobs in a slice of the walk; runs in a call of the feed."""

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
        self._walked = self._walked or not ended_jobs.are_readable(queries.schema)
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
        cutoff = await ended_jobs.now(queries, session) - 1  # Jobs may still end in the present second.
        self._since = await queries.clock(session, self.days * 86_400)
        # Operations that have a running job count among the `MAX_OPERATIONS` even if they last ran long ago.
        self._operations = {key: Runs() for key in sorted(feed.known.running())[:MAX_OPERATIONS]}
        self._cutoff = cutoff
        feed.history_begins(cutoff)

    async def _walk(
        self, queries: Queries, session: Session, cutoff: Micros, turn: Callable[[], Awaitable[None]]
    ) -> None:
        """Note the runs among the next jobs."""
        await turn()
        began = time.monotonic()
        full = [key for key, runs in self._operations.items() if runs.full]
        with self._jobs.timed():
            down_to = await ended_jobs.nth(queries, session, self._since, self._before, self._jobs.size)
            found = await ended_jobs.newest(queries, session, self._since, self._before, down_to, full, AT_ONCE)
        for job in found:
            self._note(job, cutoff)
        self._before = found[-1].place if len(found) == AT_ONCE else down_to
        self._walked = self._before is None
        self.position += 1
        await _pause(began)

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
            part = pending[: -self._details.size - 1 : -1]
            with self._details.timed():
                ended = await _with_details(queries, session, key, part)
            feed.history(ended)
            del pending[-len(part) :]
            self.position += len(part)
            if not pending:
                feed.operation_read(key)
            await _pause(began)


async def _pause(began: float) -> None:
    """Leave the database to others after a slice that began then, in monotonic seconds."""
    await asyncio.sleep(min(LONGEST_PAUSE, PAUSE * (time.monotonic() - began)))


async def _with_details(queries: Queries, session: Session, key: OperationKey, runs: Sequence[Run]) -> list[EndedRun]:
    completed = {run.job_id: run.start for run in runs if run.job_id}
    names = await ended_jobs.vm_names(queries, session, list(completed))
    steps = await ended_jobs.steps_of(queries, session, completed)
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
