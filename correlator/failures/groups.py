"""The failed jobs that are known, grouped by fingerprint: whether a failure has happened before, and to which jobs.

Invariant: at most `most` jobs are kept, those that ended last. `since` says from when on all of them are here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import TypeAlias

from msgspec import Struct

from correlator.failures.failure import Failure
from correlator.model.rows import Micros

MAX_FAILED_JOBS = 20_000
"""About 20 MB if no two of them failed alike."""

_Key: TypeAlias = tuple[Micros, str]


class FailedJob(Struct, frozen=True, gc=False):
    """One failed job. `ended_at`: microseconds since 1970. `operation`, `vm`: "" if not known."""

    job_id: str
    ended_at: Micros
    failure: Failure
    operation: str
    vm: str

    @property
    def key(self) -> _Key:
        """Orders failed jobs by their end."""
        return self.ended_at, self.job_id


class Groups:
    """See the module's docstring. Failures without a fingerprint are in no group. Operations are O(log n)."""

    def __init__(self, most: int = MAX_FAILED_JOBS) -> None:
        self._most = most
        self._jobs: dict[str, FailedJob] = {}
        self._by_end: list[_Key] = []
        self._alike: dict[str, list[_Key]] = {}
        self.since: Micros = 0
        """The newest end of a job for which there was no room; 0: there was room for all."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def get(self, job_id: str) -> FailedJob | None:
        return self._jobs.get(job_id)

    def put(self, job: FailedJob) -> None:
        """Add a job, or replace what is known of it. Beyond `most`, the job that ended first is forgotten."""
        if self._jobs.get(job.job_id) == job:
            return
        self.discard(job.job_id)
        if not job.failure.fingerprint:
            return
        self._jobs[job.job_id] = job
        insort(self._by_end, job.key)
        insort(self._alike.setdefault(job.failure.fingerprint, []), job.key)
        if len(self._jobs) > self._most:
            first, job_id = self._by_end[0]
            self.since = max(self.since, first)
            self.discard(job_id)

    def discard(self, job_id: str) -> None:
        """Forget a job, if it is known."""
        if (job := self._jobs.pop(job_id, None)) is None:
            return
        del self._by_end[bisect_left(self._by_end, job.key)]
        alike = self._alike[job.failure.fingerprint]
        del alike[bisect_left(alike, job.key)]
        if not alike:
            del self._alike[job.failure.fingerprint]

    def is_known(self, job: FailedJob) -> bool:
        """True if another job with the same fingerprint ended before this one."""
        alike = self._alike.get(job.failure.fingerprint)
        return alike is not None and alike[0] < job.key

    def of(self, fingerprint: str) -> Iterator[FailedJob]:
        """The jobs that failed like this, the newest first."""
        return (self._jobs[job_id] for _, job_id in reversed(self._alike.get(fingerprint, ())))

    def fingerprints(self) -> list[str]:
        """The fingerprints of all groups."""
        return list(self._alike)

    def older(self, key: _Key | None, most: int) -> list[FailedJob]:
        """Up to `most` jobs that ended before the one with this key, the newest first; None: the newest of all."""
        at = bisect_left(self._by_end, key) if key is not None else len(self._by_end)
        return [self._jobs[job_id] for _, job_id in reversed(self._by_end[max(0, at - most) : at])]

    def newer(self, key: _Key, most: int) -> list[FailedJob]:
        """Up to `most` jobs that ended after the one with this key, the oldest first."""
        at = bisect_right(self._by_end, key)
        return [self._jobs[job_id] for _, job_id in self._by_end[at : at + most]]

    def count(self, fingerprint: str) -> int:
        """The number of jobs that failed like this."""
        return len(self._alike.get(fingerprint, ()))
