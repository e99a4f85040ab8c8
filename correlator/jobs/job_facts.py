"""The joined facts of JobLog jobs, and the IDs of those that were not read from the tables yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from correlator.jobs import fold
from correlator.jobs.bounded import BoundedDict
from correlator.jobs.ids import OwnIds
from correlator.jobs.model.facts import Entry, Job, Reading

MAX_PENDING = 10_000
"""Jobs that the log mentions and that were not read from the tables yet."""


class JobFacts:
    """The facts by job ID. Only the index calls its methods. `is_published(job_id)`: whether clients see such a job."""

    def __init__(self, is_published: Callable[[str], bool]) -> None:
        self._is_published = is_published
        self.jobs: dict[str, Job] = {}
        self.own_ids = OwnIds(self.jobs)
        self.pending: BoundedDict[str, None] = BoundedDict(MAX_PENDING)
        """Jobs that were not read from the tables yet. The facts of those that it evicts are forgotten."""
        self._changed: dict[str, None] = {}

    def pop_changed(self) -> dict[str, None]:
        """The IDs of jobs whose facts have changed or were forgotten since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def restore(self, job: Job) -> None:
        """Add a job of a checkpoint. A reading of it that has arrived since the start is joined."""
        job, read = fold.restored(job), self.jobs.get(job.job_id)
        self.own_ids.add(job.job_id)
        self.jobs[job.job_id] = fold.fold(job, read.reading) if read is not None and read.reading else job
        self.pending[job.job_id] = None

    def join_rows(self, job_id: str, entries: Sequence[Entry]) -> Job:
        """Join rows of the log into a job, and return it."""
        self._changed[job_id] = None
        self.jobs[job_id] = job = fold.fold_rows(self._get(job_id), entries)
        return job

    def join_reading(self, reading: Reading) -> Job:
        """Join a reading of the tables into its job, and return it."""
        job = self._get(reading.job_id)
        if fold.is_news(job, reading):
            self._changed[reading.job_id] = None
        self.jobs[reading.job_id] = job = fold.fold(job, reading)
        return job

    def settled(self, job_id: str) -> None:
        """Note that a job is published: it is not pending."""
        if job_id in self.pending:
            del self.pending[job_id]

    def forget(self, job_id: str) -> None:
        """Forget the facts of a job."""
        self._drop(job_id)
        self.pending.pop(job_id, None)
        self._changed[job_id] = None

    def _get(self, job_id: str) -> Job:
        """The facts of a job. An unknown job is created and waits to be read from the tables."""
        job = self.jobs.get(job_id)
        if job is not None:
            return job
        if not self._is_published(job_id) and (evicted := self.pending.put(job_id, None)) is not None:
            self._drop(evicted[0])
        self.own_ids.add(job_id)
        return Job(job_id)

    def _drop(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)
        self.own_ids.discard(job_id)
