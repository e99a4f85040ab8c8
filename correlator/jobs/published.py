"""The published jobs: what clients see of the jobs in memory, and the IDs that lead to them.

A job is published as a `PublishedJob`: its view, and what other jobs and time add to it (children, `stalled`). Each
change takes the next `seq`. A document changes only with its `rev`, which is the `seq` of the job's last change.
"""

from __future__ import annotations

from collections.abc import Container

from correlator.jobs.directory import JobDirectory
from correlator.jobs.job_view import ended_at
from correlator.model.published import NO_TITLES, JobView, PublishedJob, Titles
from correlator.model.rows import Micros


class PublishedJobs(JobDirectory):
    """The published jobs of an index. Anybody may read. Only the index changes it, and the callers of `begin_past`.

    `joblog_ids`: the IDs of all JobLog jobs that the index knows. `retention`: seconds that an ended job stays.
    """

    def __init__(self, joblog_ids: Container[str], *, retention: float, titles: Titles = NO_TITLES) -> None:
        super().__init__()
        self.retention = int(retention * 1_000_000)
        """Microseconds that an ended job stays in memory."""
        self.titles = titles
        self.past_unread: Micros | None = None
        """The time at which reading of the log's past began, in microseconds. None once all of it is published."""
        self.newest_removed: Micros = 0
        """The newest start of a job that left memory, or for which it had no room."""
        self._joblog_ids = joblog_ids
        self._awaited: set[str] = set()
        self._newest_awaited: Micros = -1
        """Legacy rows of which it is not known yet whether a JobLog job has their ID, and the newest start of one."""

    def is_joblog_id(self, name: str) -> bool:
        """True if a JobLog job in memory has this ID, as its own or as an external one."""
        return name in self._joblog_ids or self._external.owner(name) is not None

    def complete_since(self, now: Micros) -> Micros:
        """All jobs that started at or after this time are in memory; `max_jobs` may have removed older ones."""
        return max(now - self.retention, self.newest_removed + 1, self._newest_awaited + 1)

    def has_expired(self, view: JobView, now: Micros) -> bool:
        return view.terminal and ended_at(view) <= now - self.retention

    def begin_past(self, now: Micros) -> None:
        """Begin with the log's past. Jobs that are published while the tables are loaded are incomplete from now on."""
        self.past_unread = now

    def leave_out(self, started_at: Micros) -> None:
        """Note that memory may lack jobs that started at this time or before."""
        self.newest_removed = max(self.newest_removed, started_at)

    # -- called by the index

    def await_legacy(self, job_id: str, started_at: Micros) -> None:
        """Note a legacy row that is published once it is certain that no JobLog job has its ID."""
        self._awaited.add(job_id)
        self._newest_awaited = max(self._newest_awaited, started_at)

    def await_no_longer(self, job_id: str) -> None:
        self._awaited.discard(job_id)
        if not self._awaited:
            self._newest_awaited = -1

    def next_seq(self) -> int:
        """The position of the next change."""
        self.seq += 1
        return self.seq

    def put(self, new: PublishedJob, old: PublishedJob | None) -> None:
        """Set the newest revision of a job. `old`: the one before, None for a new job. `move_names` is separate."""
        self._put(new, old)

    def drop(self, old: PublishedJob) -> None:
        """Remove a job. `move_names` is separate."""
        self._drop(old.job_id)
        self.leave_out(old.view.started_at or 0)
