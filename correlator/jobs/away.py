"""The last state of jobs whose rows are gone from the tables: most that come back do so within minutes.

Problem: somebody empties `job_tracking` and fills it again, or the database is for some seconds a replica that is
behind. What the log said of these jobs has been read, and the log does not say it again.

Model: a job that is gone is kept as a checkpoint keeps one, with what was published of it. Rows of the log that name it
are joined, and their lines wait. If the tables have it again, it goes on where it was: its silence, its forecast and
its counts, and only what happened since is announced. After `AWAY_FOR`, or beyond the bound, it is forgotten. If such a
job comes back, the log is read again from its start on (`Outcome.log_from`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from correlator.jobs import fold
from correlator.jobs.directory import NO_AGE, Names
from correlator.jobs.record import Record
from correlator.model.encoder import packed
from correlator.model.facts import Entry
from correlator.model.persisted import PersistedJob
from correlator.model.published import AgeKey, PublishedJob
from correlator.model.rows import Micros

AWAY_FOR: Micros = 600_000_000
"""Microseconds for which a job that is gone is kept."""

MAX_BYTES = 32 << 20
"""The bound of all of them, in bytes of a checkpoint. Those that went first are forgotten first."""


class AwayJob:
    """One job that is gone. `shown`: what was published of it last; None if it was not published.

    `stored`: its state, as in a checkpoint. `record`: what else is known of it; its facts are those in `stored`.
    `bytes`: the size of `stored`; 0 if no checkpoint can have it.
    """

    __slots__ = ("bytes", "record", "shown", "stored")

    def __init__(self, stored: PersistedJob, shown: PublishedJob | None, record: Record) -> None:
        self.stored, self.shown, self.record = stored, shown, record
        self.bytes = len(packed(stored) or b"")

    @property
    def job_id(self) -> str:
        return self.record.job_id

    def join(self, entries: Sequence[Entry]) -> None:
        self.stored = replace(self.stored, job=fold.fold_rows(self.stored.job, entries))
        self.bytes = len(packed(self.stored) or b"")


class AwayJobs:
    """The jobs that are gone, in the order in which they went, within `max_bytes`. Only the index changes it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._jobs: OrderedDict[str, AwayJob] = OrderedDict()
        self._bytes = 0
        self._names = Names(lambda job_id: _age_and_names(self._jobs[job_id])[0])
        self.get = self._jobs.get
        """Returns the job with this ID, if it is away."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def owner(self, external_id: str) -> str | None:
        """The newest job that is away and had this external ID."""
        return self._names.owner(external_id)

    def add(self, job: AwayJob) -> list[AwayJob]:
        """Add a job. Returns those that are forgotten for it, or the job itself if it has no size."""
        if not job.bytes:
            return [job]
        self._jobs[job.job_id] = job
        self._bytes += job.bytes
        age, names = _age_and_names(job)
        self._names.move(job.job_id, (), age, names, age)
        return self._beyond_bound()

    def join(self, job: AwayJob, entries: Sequence[Entry]) -> None:
        """Join rows of the log that name a job that is away."""
        self._bytes -= job.bytes
        job.join(entries)
        self._bytes += job.bytes

    def pop(self, job_id: str) -> AwayJob | None:
        """Remove and return a job, if it is away."""
        return self._removed(job_id) if job_id in self._jobs else None

    def expired(self, now: Micros) -> list[AwayJob]:
        """Remove and return the jobs that went too long ago, and those beyond the bound."""
        forgotten = self._beyond_bound()
        while self._jobs and next(iter(self._jobs.values())).stored.away_at <= now - AWAY_FOR:
            forgotten.append(self._removed(next(iter(self._jobs))))
        return forgotten

    def _beyond_bound(self) -> list[AwayJob]:
        forgotten = []
        while self._bytes > self._max_bytes:
            forgotten.append(self._removed(next(iter(self._jobs))))
        return forgotten

    def _removed(self, job_id: str) -> AwayJob:
        job = self._jobs.pop(job_id)
        self._bytes -= job.bytes
        age, names = _age_and_names(job)
        self._names.move(job_id, names, age, (), age)
        return job


def _age_and_names(job: AwayJob) -> tuple[AgeKey, tuple[str, ...]]:
    """The age by which external IDs led to a job, and these IDs."""
    return (job.shown.view.age_key, job.shown.view.external_ids) if job.shown is not None else (NO_AGE, ())
