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
        return self.query.matches(shown) and self.names(shown, published)

    def names(self, shown: PublishedJob, published: JobDirectory) -> bool:
        """True if the filter names no IDs, or if one of them resolves to the job."""
        if self.jobs is None:
            return True
        return any(n in self.jobs and published.names_lead_to(n, shown.job_id) for n in shown.view.names())
