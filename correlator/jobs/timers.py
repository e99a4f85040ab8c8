"""The times at which jobs stall, and at which ended jobs leave memory."""

from __future__ import annotations

from correlator.jobs.model.facts import Status
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import JobView, PublishedJob
from correlator.jobs.schedule import Schedule

FOR_EVER = (1 << 63) - 1
"""A time later than any other, in microseconds."""


class Timers:
    """The schedules of the published jobs. Call `update` after each change of a job. Operations are O(log n)."""

    def __init__(self) -> None:
        self.active: set[str] = set()
        """The published jobs that have not ended."""
        self._expiry = Schedule()
        """Ended jobs in memory, by the time of their end."""
        self._quiet = Schedule()
        """Running jobs that are not stalled, by a time of activity."""
        self._stalled = Schedule()
        """Stalled jobs, by the negative of a time of activity: the most recently active one comes first."""

    @property
    def lively(self) -> bool:
        """True while a job runs and is not stalled. O(1)."""
        return bool(self._quiet)

    def update(self, job_id: str, shown: PublishedJob | None) -> None:
        """Apply the published state of a job. None: it left memory."""
        if shown is not None and shown.view.status is Status.RUNNING and not shown.stalled and job_id in self._quiet:
            return  # It runs on, as most changes are about a running job.
        if shown is not None and not shown.view.terminal:
            self.active.add(job_id)
        else:
            self.active.discard(job_id)
        if shown is not None and shown.view.terminal:
            self._expiry.put(job_id, ended_at(shown.view))
        else:
            self._expiry.discard(job_id)
        self.watch(job_id, shown)

    def watch(self, job_id: str, shown: PublishedJob | None) -> None:
        """Schedule the stall check of a running job. A stalled job is checked again if the clock is set back."""
        running = shown is not None and shown.view.status is Status.RUNNING and shown.alive_at > 0
        if shown is None or not running or shown.stalled:
            self._quiet.discard(job_id)
        elif job_id not in self._quiet:
            self._quiet.put(job_id, shown.alive_at)
        if shown is None or not running or not shown.stalled:
            self._stalled.discard(job_id)
        elif job_id not in self._stalled:
            self._stalled.put(job_id, -shown.alive_at)

    def pop_stall_checks(self, alive_since: Micros, most: int) -> list[str]:
        """Remove and return jobs to check, given that a job is stalled if it was last active before `alive_since`."""
        quiet = list(self._quiet.pop_until(alive_since - 1, most))
        return [*quiet, *self._stalled.pop_until(-alive_since, most)]

    def pop_expired(self, ended_until: Micros, most: int) -> list[str]:
        """Remove and return at most `most` jobs that ended at `ended_until` or before, oldest first."""
        return list(self._expiry.pop_until(ended_until, most))


def ended_at(view: JobView) -> Micros:
    """The end of an ended job. If it is unknown, its start, so that the job leaves memory."""
    return next((t for t in (view.ended_at, view.started_at) if t is not None), 0)
