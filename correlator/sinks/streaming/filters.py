"""The filter of a subscription."""

from __future__ import annotations

from msgspec import Struct

from correlator.jobs.directory import JobDirectory
from correlator.jobs.model.views import PublishedJob
from correlator.pipeline.queries import JobQuery


class Filter(Struct, frozen=True):
    """Selects jobs. `jobs`: only jobs that one of these IDs resolves to; None selects jobs of any ID."""

    query: JobQuery = JobQuery()
    jobs: frozenset[str] | None = None

    def matches(self, shown: PublishedJob, published: JobDirectory) -> bool:
        if not self.query.matches(shown):
            return False
        if self.jobs is None:
            return True
        return any(n in self.jobs and published.names_lead_to(n, shown.job_id) for n in shown.view.names())

    def might_match(self, shown: PublishedJob) -> bool:
        """True if the job would match in case every ID that it carries resolved to it."""
        return self.query.matches(shown) and (self.jobs is None or not self.jobs.isdisjoint(shown.view.names()))
