"""What is known of the jobs in memory besides what is published of them: what sources ask before they query a table.

It knows too which jobs left memory, and which readings and rows bring them back.

Problem: the tables have jobs for which memory has no room (`max_jobs`), or that ended too long ago (`retention`). They
are read all the same: at a start, by the readings that follow an end, for a client that asks for one. If each reading
published such a job again, it would leave again, its end would be read again, and its transitions would be announced
as new.

Model: a removed job is remembered with its newest time, and comes back only if it runs again or has a later end. Of a
job that nobody remembers, because it was never in memory or too many have left since, only its times say whether it is
news: what happened before `announced_until` was published by this run or an earlier one, or before the first start.
The same holds for a row of `failover_jobs` that expired, or that a JobLog job owns (`KnownJobs.set_aside`).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from correlator.bounded import BoundedDict, PendingRows
from correlator.forecast.forecaster import OperationKey
from correlator.jobs import joblog
from correlator.jobs.away import AwayJobs
from correlator.jobs.directory import PublishedJobs
from correlator.jobs.fold import ended_at, legacy_view
from correlator.jobs.forecasted_job import operation_key
from correlator.jobs.record import LegacyRow, Record
from correlator.jobs.stalled import Silence
from correlator.model.facts import AttributedRow, Entry, Kind, Reading
from correlator.model.published import JobView
from correlator.model.rows import LegacyRecord, Micros

MAX_REMOVED = 100_000
"""Removed jobs that are remembered. Those that left before them count as announced."""

MAX_PERSISTED = 1_000
"""Removed jobs that a checkpoint contains, at most."""

MAX_SET_ASIDE = 10_000
"""Rows of `failover_jobs` remembered as unpublished. Beyond that, rows stay unpublished that ended before one that was
forgotten."""

LATE_COMMIT = 60_000_000
"""Microseconds by which the commit of a job may lag behind its times in the tables."""


class RemovedJobs:
    """The removed JobLog jobs by ID. Only the index calls what changes it. Operations are O(1), but for `state`."""

    def __init__(self) -> None:
        self._seen_to: BoundedDict[str, Micros] = BoundedDict(MAX_REMOVED)
        """The newest time of each job when it left. What happened to it until then has been published."""
        self._newest: BoundedDict[str, Micros] = BoundedDict(MAX_PERSISTED)
        """Those of `_seen_to` that left last, which a checkpoint contains."""
        self._forgotten_until: Micros = -1
        """The newest time of a job that a checkpoint does not contain."""
        self._announced_until: Micros = -1
        self._gone: BoundedDict[str, None] = BoundedDict(MAX_REMOVED)
        """Those that left because the tables did not have them any more."""
        self._no_room_until: Micros = -1
        """The newest end of a job that left by `retention` or `max_jobs`: memory has no room for an older one."""

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._seen_to

    def announced_until(self, job_id: str) -> Micros:
        """Transitions of a job that is not in memory have been announced up to this time, or are of the past."""
        return max(self._seen_to.get(job_id, -1), self._announced_until)

    def is_news(self, view: JobView, alive_at: Micros) -> bool:
        """True if a job that is not in memory belongs there, given what was read of it."""
        seen_to = min(self._no_room_until, self.announced_until(view.job_id))
        return not view.terminal or ended_at(view, alive_at) > seen_to

    def may_return(self, job_id: str) -> bool:
        """True if the job was not removed, or only because the tables did not have it."""
        return job_id not in self._seen_to or job_id in self._gone

    def skips(self, entry: Entry, job_id: str) -> bool:
        """True for a late row of a removed job. A row that starts the job again brings it back."""
        seen_to = self._seen_to.get(job_id)
        return seen_to is not None and not (entry.kind is Kind.JOB_STARTED and entry.at > seen_to)

    # -- called by the index

    def add(self, job_id: str, view: JobView | None, alive_at: Micros, now: Micros, *, gone: bool = False) -> None:
        """Remember a job that leaves memory, or that was not published. `view`: what is known of it, if anything.

        `now` is in microseconds since 1970. `gone`: the tables do not have it, and it belongs in memory once they do.
        """
        if gone:
            self._gone[job_id] = None
        else:
            self._gone.pop(job_id, None)
        ended = ended_at(view, 0) if view is not None and view.terminal else 0
        seen_to = max(self._seen_to.get(job_id, 0), alive_at, ended)
        if (evicted := self._seen_to.put(job_id, seen_to)) is not None:
            self._announced_until = max(self._announced_until, min(now, evicted[1]))
        if (evicted := self._newest.put(job_id, seen_to)) is not None:
            self._forgotten_until = max(self._forgotten_until, min(now, evicted[1]))

    def had_no_room(self, view: JobView, alive_at: Micros) -> None:
        """Note that a job left by `retention` or `max_jobs`, or did not come into memory for it."""
        self._no_room_until = max(self._no_room_until, ended_at(view, alive_at))

    def discard(self, job_id: str) -> None:
        """Note that a job is published again."""
        for known in (self._seen_to, self._newest, self._gone):
            known.pop(job_id, None)

    def has_read(self, newest: Micros) -> None:
        """Note that the tables were read while nothing was announced. `newest`: the newest time of a job in them."""
        self._announced_until = max(self._announced_until, newest - LATE_COMMIT)

    def state(self, newest: Micros) -> tuple[tuple[tuple[str, Micros], ...], Micros]:
        """What a checkpoint contains, if the newest time of a job is `newest`.

        The removed jobs that a restart could take for new ones, and the time until which it has to take all others for
        announced.
        """
        until = max(self._announced_until, self._forgotten_until, newest - LATE_COMMIT)
        return tuple((job_id, seen_to) for job_id, seen_to in self._newest.items() if seen_to > until), until

    def restore(self, removed: Iterable[tuple[str, Micros]], announced_until: Micros) -> None:
        """Add what `state` returned in an earlier run."""
        self._seen_to.update(removed)
        self._newest.update(removed)
        self._announced_until = max(self._announced_until, announced_until)


# -- the jobs in memory


MAX_UNREAD = 10_000
"""Jobs that the log mentions and that were not read from the tables yet."""

MAX_UNLOADED = 5_000
MAX_UNLOADED_BYTES = 16 << 20
"""The bounds of pending rows of jobs that are not published yet, in rows and bytes. The source pauses before."""


class KnownJobs:
    """The records by job ID, and what sources ask before they query a table. Only the index changes it."""

    def __init__(
        self,
        records: dict[str, Record],
        published: PublishedJobs,
        removed: RemovedJobs,
        away: AwayJobs,
        silence: Silence,
    ) -> None:
        self.records = records
        self.rows: dict[str, LegacyRow] = {}
        """The rows of `failover_jobs`, by their ID as a job."""
        self._set_aside: BoundedDict[str, LegacyRecord] = BoundedDict(MAX_SET_ASIDE)
        """The rows of `failover_jobs` that stay unpublished until they change."""
        self._forgotten_until: Micros = -1
        """The newest end of such a row that is not remembered any more."""
        self.unread: BoundedDict[str, None] = BoundedDict(MAX_UNREAD)
        """Jobs that were not read from the tables yet. The records of those that it evicts are dropped."""
        self.pending_rows: PendingRows[str, AttributedRow] = PendingRows(
            MAX_UNLOADED, MAX_UNLOADED_BYTES, lambda row: joblog.size(row.entry)
        )
        """Rows of unread jobs, which are held back."""
        self._published = published
        self._removed = removed
        self._away = away
        self._silence = silence

    def active(self) -> set[str]:
        """The IDs of JobLog jobs that have not ended or were not read from the tables yet."""
        return self.records.keys() & self._silence.ongoing | self.unread.keys()

    def running(self) -> dict[OperationKey, list[str]]:
        """The IDs of the JobLog jobs that have not ended, by operation."""
        found: dict[OperationKey, list[str]] = {}
        for job_id in self._silence.ongoing:
            if job_id in self.records and (shown := self._published.get(job_id)) is not None:
                found.setdefault(operation_key(shown.view), []).append(job_id)
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
        return self._removed.may_return(job_id) and (shown is None or not shown.view.terminal)

    def has_ended(self, job_id: str) -> bool:
        """True if the job is in memory and has ended."""
        shown = self._published.get(job_id)
        return shown is not None and shown.view.terminal

    def is_new(self, job_id: str) -> bool:
        """True if the job is not in memory, and was not removed while the tables had it."""
        return self._published.get(job_id) is None and self._removed.may_return(job_id)

    def away(self) -> list[str]:
        """The IDs of the jobs that the tables had not when they were read last, and that are kept for a while."""
        return list(self._away)

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
        return [known.row for known in self.rows.values() if self._is_unsettled(known.row)]

    def is_unsettled(self, job_id: str) -> bool:
        """True if `unsettled_legacy` has the row with this ID."""
        return (known := self.rows.get(job_id)) is not None and self._is_unsettled(known.row)

    def _is_unsettled(self, row: LegacyRecord) -> bool:
        ended = row.apart and row.status in joblog.LEGACY_ENDED
        return not ended and not self._published.is_joblog_id(row.job_id)

    def is_undecided(self, row: LegacyRecord) -> bool:
        """True if a table query must decide whether a JobLog job has the ID of this row of `failover_jobs`."""
        known = self.legacy(row.job_id)
        decided = known is not None and known.apart
        return not decided and not self._published.is_joblog_id(row.job_id) and not self.is_set_aside(row)

    def is_set_aside(self, row: LegacyRecord) -> bool:
        """True if this row of `failover_jobs` is not published until it changes."""
        if (aside := self._set_aside.get(row.job_id)) is not None:
            return aside == replace(row, apart=False)
        if self._forgotten_until < 0 or row.job_id in self.rows:
            return False
        view = legacy_view(row)
        return view.terminal and ended_at(view, 0) <= self._forgotten_until

    def set_aside(self, row: LegacyRecord, newest: Micros) -> None:
        """Leave a row unpublished until it changes. `newest`: the newest time of a job, at most the present."""
        if (forgotten := self._set_aside.put(row.job_id, replace(row, apart=False))) is not None:
            view = legacy_view(forgotten[1])
            if view.terminal:
                self._forgotten_until = max(self._forgotten_until, min(ended_at(view, 0), newest))
