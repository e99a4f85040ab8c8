"""The hub of a daemon: it publishes what the index makes of the rows that the daemon's own source reads."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from msgspec.structs import asdict

from correlator.forecast.forecaster import Operation, OperationKey
from correlator.jobs import fold, job_view
from correlator.jobs.index import Index
from correlator.jobs.published import PublishedJobs, family
from correlator.model.facts import Job, Reading
from correlator.model.published import Outcome, PublishedJob, Reason
from correlator.model.replies import OperationRuns, OperationWithSteps, Resolved, UsualStep
from correlator.model.rows import LegacyRecord, Micros
from correlator.pipeline.appliance_clock import ApplianceClock
from correlator.pipeline.hub import Batch, Hub, available, wall_clock
from correlator.pipeline.queries import (
    Archive,
    FindLines,
    Found,
    IsContext,
    JobQuery,
    LegacyRow,
    LinesFound,
    LogLines,
    Operations,
    OtherJobs,
    Question,
    UsualSteps,
)
from correlator.pipeline.resume_ring import ResumeRing
from correlator.pipeline.source_status import SourceStatus

A = TypeVar("A")


class LocalHub(Hub):
    """The index with its subscribers; one for the whole daemon. Event loop's thread only.

    The pipeline is the publisher: it applies what the source read to the index, and passes the `Outcome` to `publish`.
    `epoch` is new at every start. `archive`: the database; None: memory only.
    """

    published: PublishedJobs
    status: SourceStatus
    archive: Archive | None

    def __init__(
        self,
        index: Index,
        archive: Archive | None = None,
        *,
        epoch: str = "",
        resume_ring: ResumeRing | None = None,
        on_watch: Callable[[], None] = lambda: None,
        refusal: Callable[[], str | None] = lambda: None,
        clock: Callable[[], Micros] = wall_clock,
    ) -> None:
        status = SourceStatus(index, ApplianceClock(clock))
        super().__init__(
            index.published,
            status,
            epoch or secrets.token_hex(6),
            archive,
            resume_ring=resume_ring,
            on_watch=on_watch,
            refusal=refusal,
            clock=status.clock,
        )
        self.index = index
        self.forecasts = index.forecasts
        self.readiness["tables"] = status.describe_tables
        self._learn: Callable[[Sequence[Reading]], object] = lambda _: None

    # -- called by the writer

    def apply_found_with(self, learn: Callable[[Sequence[Reading]], object]) -> None:
        """Set what applies to the index what `find` read in the database. Until then such readings are dropped."""
        self._learn = learn

    def publish(self, outcome: Outcome) -> None:
        """Pass `outcome` to every subscriber as one batch. An outcome that changed nothing is dropped."""
        lines = () if self.index.loading else outcome.attributed
        if not outcome.changes and not outcome.events and not lines:
            return
        self._resume_ring.add(outcome.changes)
        self._deliver(Batch(self.published.seq, outcome.changes, outcome.events, lines))

    # -- called for clients

    @property
    def serves(self) -> bool:
        return self.refusal() is None

    @property
    def running(self) -> int:
        return len(self.index.known.active())

    def reaches(self, seq: int) -> bool:
        return seq <= self.seq and self._resume_ring.reaches(seq)

    def changed(self) -> Iterator[tuple[str, int]]:
        return self._resume_ring.changed()

    def reason(self, job_id: str) -> Reason | None:
        return self._resume_ring.reason(job_id)

    async def reached(self, seq: int, within: float) -> bool:
        """Return at once: no position of this epoch is ahead of this hub."""
        del within
        return seq <= self.seq

    async def is_behind(self, seq: int) -> bool:
        """False: this process writes the stream."""
        del seq
        return False

    async def _search(self, name: str) -> tuple[PublishedJob, Resolved] | None:
        found = await available(self.archive).find(name, self.index.advance_clock)
        if found is None:
            return None
        if found.reading is not None:
            self._learn([found.reading])
        return self._from_archive(found)

    def _from_archive(self, found: Found) -> tuple[PublishedJob, Resolved] | None:
        if found.legacy is not None:
            return self._archived_legacy(found.legacy), found.resolved
        assert found.reading is not None
        shown = self.archived(found.reading)
        return (shown, found.resolved) if shown is not None else None

    def archived(self, reading: Reading) -> PublishedJob | None:
        """Return a job built from its tables alone, with the current `seq`; None if it has no record.

        A job that came into memory since the query is returned as it is published: a `rev` has one document.
        """
        if reading.record is None:
            return None
        if (published := self.published.get(reading.job_id)) is not None:
            return published
        job = fold.fold(Job(reading.job_id), reading)
        children = family(reading.children, reading.child_count, [])
        updated = reading.record.updated_at or job_view.alive_at(job)
        return PublishedJob(
            job_view.view(job, self.index.id_keys),
            self.seq,
            updated,
            children.ids,
            children.count,
            alive_at=job_view.alive_at(job),
            titles=self.index.published.titles,
        )

    def _archived_legacy(self, row: LegacyRecord) -> PublishedJob:
        """Return a legacy job built from its row, with the current `seq`, or as it is published."""
        if (published := self.published.get(row.job_id)) is not None:
            return published
        updated_at, titles = row.updated_at or row.created_at or 0, self.index.published.titles
        return PublishedJob(job_view.legacy_view(row), self.seq, updated_at, titles=titles)

    def _is_owned(self, name: str) -> bool:
        """True if a JobLog job in memory has this ID, and no legacy job is published under it."""
        return self.published.is_joblog_id(name) and self.published.get(name) is None

    async def page(
        self, query: JobQuery, before: tuple[Micros, str] | None, limit: int, known: Callable[[str], bool]
    ) -> OtherJobs[PublishedJob]:
        if query.instance:
            return OtherJobs((), None)  # the database is of one appliance, and no job in it names that
        found = await available(self.archive).page(query, before, limit, self.index.advance_clock, known)
        jobs = [shown for reading in found.readings if (shown := self.archived(reading)) is not None]
        # Memory knows more IDs of a job than its tables: those that only rows of the log name, in their attrs.
        jobs += [self._archived_legacy(row) for row in found.legacy if not self._is_owned(row.job_id)]
        return OtherJobs(jobs, found.next_before)

    async def ask(self, question: Question[A]) -> A:
        asked: Question[Any] = question
        answer: Any
        match asked:
            case LogLines():
                answer = await available(self.archive).lines(asked)
            case FindLines():  # the lines of one appliance do not name it
                answer = LinesFound() if asked.instance else await available(self.archive).find_lines(asked)
            case IsContext(name):
                answer = await available(self.archive).is_context(name)
            case LegacyRow(name):
                answer = await self._legacy_row(name)
            case Operations():
                known = sorted(self.forecasts.forecaster, key=lambda found: found[0])
                answer = tuple(_runs(key, operation) for key, operation in known)
            case UsualSteps(job_type, operation):
                answer = self._usual_steps((job_type, operation))
        return cast("A", answer)

    async def _legacy_row(self, name: str) -> LegacyRecord | None:
        if (record := self.index.known.legacy(name)) is not None:
            return record
        found = await available(self.archive).find(name, self.index.advance_clock)
        return found.legacy if found is not None else None

    def _usual_steps(self, key: OperationKey) -> OperationWithSteps | None:
        operation = self.forecasts.forecaster.operation(key)
        if operation is None:
            return None
        steps = [
            UsualStep(step.name, _rounded(step.share), _rounded(step.typical_seconds))
            for step in operation.steps.ahead(None)
        ]
        return OperationWithSteps(**asdict(_runs(key, operation)), steps=tuple(steps))


def _runs(key: OperationKey, operation: Operation) -> OperationRuns:
    durations = operation.durations
    typical, p90 = (_rounded(durations.quantile(q)) if len(durations) else None for q in (0.5, 0.9))
    return OperationRuns(key[0] or None, key[1], len(durations), typical, p90, _rounded(operation.failure_rate))


def _rounded(number: float) -> float:
    """A number of 7 digits, which is how they are kept, without the digits that their conversion adds."""
    return round(number, 3)
