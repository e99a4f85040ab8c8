"""What is known of the jobs in memory besides what is published of them: what sources ask, and what is stored."""

from __future__ import annotations

from correlator.bounded import BoundedDict, PendingRows
from correlator.forecast.forecaster import OperationKey
from correlator.jobs import joblog
from correlator.jobs.directory import PublishedJobs
from correlator.jobs.forecasts import Forecasts
from correlator.jobs.horizon import Silence
from correlator.jobs.record import LegacyRow, Record
from correlator.jobs.removed_jobs import RemovedJobs, SetAsideRows
from correlator.model.facts import AttributedRow, Reading
from correlator.model.persisted import PersistedJob, PersistedLegacy
from correlator.model.rows import LegacyRecord, Micros

MAX_UNREAD = 10_000
"""Jobs that the log mentions and that were not read from the tables yet."""

MAX_UNLOADED = 5_000
MAX_UNLOADED_BYTES = 16 << 20
"""The bounds of pending rows of jobs that are not published yet, in rows and bytes. The source pauses before."""


class KnownJobs:
    """The records by job ID, and what sources ask before they query a table. Only the index changes it."""

    def __init__(
        self, records: dict[str, Record], published: PublishedJobs, removed: RemovedJobs, silence: Silence
    ) -> None:
        self.records = records
        self.rows: dict[str, LegacyRow] = {}
        """The rows of `failover_jobs`, by their ID as a job."""
        self.set_aside = SetAsideRows()
        """The rows of `failover_jobs` that are in memory no longer."""
        self.unread: BoundedDict[str, None] = BoundedDict(MAX_UNREAD)
        """Jobs that were not read from the tables yet. The records of those that it evicts are dropped."""
        self.pending_rows: PendingRows[str, AttributedRow] = PendingRows(
            MAX_UNLOADED, MAX_UNLOADED_BYTES, lambda row: joblog.size(row.entry)
        )
        """Rows of unread jobs, which are held back."""
        self._published = published
        self._removed = removed
        self._silence = silence

    def active(self) -> set[str]:
        """The IDs of JobLog jobs that have not ended or were not read from the tables yet."""
        return self.records.keys() & self._silence.ongoing | self.unread.keys()

    def running(self) -> dict[OperationKey, list[str]]:
        """The IDs of the JobLog jobs that have not ended, by operation."""
        found: dict[OperationKey, list[str]] = {}
        for job_id in self._silence.ongoing:
            if job_id in self.records and (shown := self._published.get(job_id)) is not None:
                found.setdefault((shown.view.job_type or "", shown.view.operation or ""), []).append(job_id)
        return found

    @property
    def lively(self) -> bool:
        """True while a job runs and is not stalled, or was not read from the tables yet. O(1)."""
        return self._silence.lively or bool(self.unread)

    @property
    def unloaded_rows(self) -> int:
        """The number of pending rows of jobs that are not published yet."""
        return self.pending_rows.count

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
        record = self.records.get(job_id)
        return record.facts.reading if record is not None else None

    def silent_for(self, job_id: str, now: Micros) -> float:
        """Seconds since the last activity of a job; 0 for a job that is not in memory."""
        shown = self._published.get(job_id)
        return max(0.0, (now - shown.alive_at) / 1_000_000) if shown is not None else 0.0

    def legacy(self, job_id: str) -> LegacyRecord | None:
        """The last reading of a row of `failover_jobs`, by its ID as a job."""
        known = self.rows.get(job_id)
        return known.row if known is not None else None

    def legacy_rows(self) -> list[LegacyRecord]:
        """All rows of `failover_jobs` in memory."""
        return [known.row for known in self.rows.values()]

    def unsettled_legacy(self) -> list[LegacyRecord]:
        """Unfinished or undecided rows of `failover_jobs` whose ID no JobLog job in memory has."""
        return [
            row
            for row in self.legacy_rows()
            if not (row.apart and row.status in joblog.LEGACY_ENDED) and not self._published.is_joblog_id(row.job_id)
        ]

    def is_undecided(self, row: LegacyRecord) -> bool:
        """True if a table query must decide whether a JobLog job has the ID of this row of `failover_jobs`."""
        known = self.legacy(row.job_id)
        decided = known is not None and known.apart
        return not decided and not self._published.is_joblog_id(row.job_id) and not self.is_set_aside(row)

    def is_set_aside(self, row: LegacyRecord) -> bool:
        """True if this row of `failover_jobs` is not published until it changes."""
        return self.set_aside.has(row, in_memory=row.job_id in self.rows)


class Persistence:
    """What a checkpoint contains of each job, and which jobs have changed since the last one."""

    def __init__(self, known: KnownJobs, published: PublishedJobs, silence: Silence, forecasts: Forecasts) -> None:
        self.unsaved: dict[str, None] = {}
        """The jobs whose persisted state has changed. The index adds to it."""
        self._known = known
        self._published = published
        self._silence = silence
        self._forecasts = forecasts

    def changed(self) -> list[str]:
        """The IDs of jobs whose persisted state changed since the last call."""
        changed = list(self.unsaved)
        self.unsaved.clear()
        return changed

    def mark_all(self) -> None:
        """Return all jobs with the next `changed`: it is the first write of a store."""
        self.unsaved.update(dict.fromkeys(self.all_ids()))

    def all_ids(self) -> list[str]:
        """The IDs of all jobs that have persisted state."""
        return [*self._known.records, *(i for i in self._known.rows if i not in self._known.records)]

    def get(self, job_id: str) -> PersistedJob | PersistedLegacy | None:
        """The state of a job that a checkpoint must contain. None if the job left memory."""
        silence = self._silence.persisted(job_id)
        if (record := self._known.records.get(job_id)) is not None:
            shown = self._published.get(job_id)
            if shown is None:
                return PersistedJob(record.facts, 0)
            forecast = self._forecasts.persisted(record, shown.forecast)
            return PersistedJob(record.facts, shown.updated_at, forecast, silence)
        row = self._known.legacy(job_id)
        return PersistedLegacy.of(row, silence) if row is not None else None
