"""The times at which ended jobs leave memory, and which jobs have not ended."""

from __future__ import annotations

from correlator.jobs.model.facts import Status
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import JobView, PublishedJob
from correlator.jobs.schedule import Schedule


class Timers:
    """The schedule of the published jobs. Call `update` after each change of a job. Operations are O(log n)."""

    def __init__(self) -> None:
        self.active: set[str] = set()
        """The published jobs that have not ended."""
        self._expiry = Schedule()
        """Ended jobs in memory, by the time of their end."""

    def update(self, job_id: str, shown: PublishedJob | None) -> None:
        """Apply the published state of a job. None: it left memory."""
        if shown is not None and shown.view.status is Status.RUNNING and job_id in self.active:
            return  # It runs on, as most changes are about a running job.
        if shown is not None and not shown.view.terminal:
            self.active.add(job_id)
        else:
            self.active.discard(job_id)
        if shown is not None and shown.view.terminal:
            self._expiry.put(job_id, ended_at(shown.view))
        else:
            self._expiry.discard(job_id)

    def pop_expired(self, ended_until: Micros, most: int) -> list[str]:
        """Remove and return at most `most` jobs that ended at `ended_until` or before, oldest first."""
        return list(self._expiry.pop_until(ended_until, most))


def ended_at(view: JobView) -> Micros:
    """The end of an ended job. If it is unknown, its start, so that the job leaves memory."""
    return next((t for t in (view.ended_at, view.started_at) if t is not None), 0)
