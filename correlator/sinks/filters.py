"""What a subscription wants."""

from __future__ import annotations

from msgspec import Struct

from correlator.hub import JobQuery
from correlator.jobs.index import Index
from correlator.jobs.model import Shown


class Filter(Struct, frozen=True):
    """What a subscription wants. `jobs` None: whatever its name; else the jobs that these IDs lead to."""

    query: JobQuery = JobQuery()
    jobs: frozenset[str] | None = None

    def matches(self, shown: Shown, index: Index) -> bool:
        if not self.query.matches(shown):
            return False
        if self.jobs is None:
            return True
        return any(n in self.jobs and index.names_lead_to(n, shown.job_id) for n in shown.view.names())

    def might_match(self, shown: Shown) -> bool:
        """Whether it would match if every ID led to it that it carries."""
        return self.query.matches(shown) and (self.jobs is None or not self.jobs.isdisjoint(shown.view.names()))
