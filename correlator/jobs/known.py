"""What sources ask the index before they query a table: a read-only view of the jobs and rows in memory."""

from __future__ import annotations

from correlator.jobs import legacy_status
from correlator.jobs.attribution import Attributor
from correlator.jobs.forecast.forecaster import OperationKey
from correlator.jobs.job_facts import JobFacts
from correlator.jobs.legacy_jobs import LegacyJobs
from correlator.jobs.model.facts import Reading
from correlator.jobs.model.rows import LegacyRecord, Micros
from correlator.jobs.published import PublishedJobs
from correlator.jobs.removed_jobs import RemovedJobs


class KnownJobs:
    """Answers from the state of an index as it is at each call.

    `facts`: those of JobLog jobs.
    """

    def __init__(
        self,
        facts: JobFacts,
        published: PublishedJobs,
        legacy: LegacyJobs,
        attributor: Attributor,
        removed: RemovedJobs,
    ) -> None:
        self._facts = facts.jobs
        self._pending = facts.pending
        self._removed = removed
        self._published = published
        self._legacy = legacy
        self._attributor = attributor

    def active(self) -> set[str]:
        """The IDs of JobLog jobs that have not ended or were not read from the tables yet."""
        return {i for i in self._published.timers.active if i in self._facts} | set(self._pending)

    def running(self) -> dict[OperationKey, list[str]]:
        """The IDs of the JobLog jobs that have not ended, by operation."""
        found: dict[OperationKey, list[str]] = {}
        for job_id in self._published.timers.active:
            if job_id in self._facts and (shown := self._published.get(job_id)) is not None:
                found.setdefault((shown.view.job_type or "", shown.view.operation or ""), []).append(job_id)
        return found

    @property
    def lively(self) -> bool:
        """True while a job runs and is not stalled, or was not read from the tables yet. O(1)."""
        return self._published.silence.lively or bool(self._pending)

    @property
    def unloaded_rows(self) -> int:
        """The number of pending rows of jobs that are not published yet."""
        return self._attributor.unloaded_rows

    def joblog_ids(self) -> list[str]:
        """The IDs of all published JobLog jobs."""
        return [s.job_id for s in self._published.all() if s.view.source == "joblog"]

    def is_in_memory(self, job_id: str) -> bool:
        return self._published.get(job_id) is not None

    def needs_reading(self, job_id: str) -> bool:
        """True if the tables may contain news of a job that began or ended recently."""
        shown = self._published.get(job_id)
        return job_id not in self._removed and (shown is None or not shown.view.terminal)

    def has_ended(self, job_id: str) -> bool:
        """True if the job is in memory and has ended."""
        shown = self._published.get(job_id)
        return shown is not None and shown.view.terminal

    def is_new(self, job_id: str) -> bool:
        """True if the job is not in memory and was not removed."""
        return self._published.get(job_id) is None and job_id not in self._removed

    def reading(self, job_id: str) -> Reading | None:
        """The last reading of a JobLog job; None if there is none."""
        job = self._facts.get(job_id)
        return job.reading if job is not None else None

    def legacy(self, job_id: str) -> LegacyRecord | None:
        """The last reading of a row of `failover_jobs`, by its ID as a job."""
        return self._legacy.get(job_id)

    def silent_for(self, job_id: str, now: Micros) -> float:
        """Seconds since the last activity of a job; 0 for a job that is not in memory."""
        shown = self._published.get(job_id)
        return max(0.0, (now - shown.alive_at) / 1_000_000) if shown is not None else 0.0

    def unsettled_legacy(self) -> list[LegacyRecord]:
        """Unfinished or undecided rows of `failover_jobs` whose ID no JobLog job in memory has."""
        return [
            r
            for r in self._legacy.all()
            if not (r.apart and r.status in legacy_status.ENDED) and not self._published.is_joblog_id(r.job_id)
        ]

    def legacy_rows(self) -> list[LegacyRecord]:
        """All rows of `failover_jobs` in memory."""
        return list(self._legacy.all())

    def is_undecided(self, record: LegacyRecord) -> bool:
        """True if a table query must decide whether a JobLog job has the ID of this row of `failover_jobs`."""
        known = self._legacy.get(record.job_id)
        decided = known is not None and known.apart
        return not decided and not self._published.is_joblog_id(record.job_id) and not self._legacy.is_set_aside(record)
