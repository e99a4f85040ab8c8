"""What a checkpoint contains of each job, and which jobs have changed since the last one."""

from __future__ import annotations

from collections.abc import Iterable

from correlator.jobs.forecasts import Forecasts
from correlator.jobs.job_facts import JobFacts
from correlator.jobs.legacy_jobs import LegacyJobs
from correlator.jobs.model.persisted import PersistedJob, PersistedLegacy
from correlator.jobs.published import PublishedJobs


class Persistence:
    """The persisted state of JobLog jobs (`facts`) and legacy jobs (`legacy`), by job ID."""

    def __init__(self, facts: JobFacts, legacy: LegacyJobs, published: PublishedJobs, forecasts: Forecasts) -> None:
        self._facts = facts
        self._forecasts = forecasts
        self._legacy = legacy
        self._published = published
        self._again: dict[str, None] = {}

    def changed(self) -> list[str]:
        """The IDs of jobs whose persisted state changed since the last call."""
        changed = self._again | self._facts.pop_changed() | self._legacy.pop_changed() | self._published.unsaved
        self._again = {}
        self._published.unsaved.clear()
        return list(changed)

    def mark_again(self, job_ids: Iterable[str]) -> None:
        """Put IDs in front of the result of the next `changed`. Call it for jobs that could not be written."""
        self._again = dict.fromkeys(job_ids) | self._again

    def all_ids(self) -> list[str]:
        """The IDs of all jobs that have persisted state."""
        return [*self._facts.jobs, *(r.job_id for r in self._legacy.all() if r.job_id not in self._facts.jobs)]

    def get(self, job_id: str) -> PersistedJob | PersistedLegacy | None:
        """The state of a job that a checkpoint must contain. None if the job left memory."""
        silence = self._published.silence.persisted(job_id)
        if (job := self._facts.jobs.get(job_id)) is not None:
            shown = self._published.get(job_id)
            if shown is None:
                return PersistedJob(job, 0)
            forecast = self._forecasts.persisted(job_id, shown.forecast)
            return PersistedJob(job, shown.updated_at, forecast, silence)
        row = self._legacy.get(job_id)
        return PersistedLegacy.of(row, silence) if row is not None else None
