"""What a subscription wants: the matching of jobs with filters, now and at an earlier position of the stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

from correlator.hub import JobQuery
from correlator.jobs.index import Index
from correlator.jobs.model import Change, Shown


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


class Past:
    """The index as it was before `changes`, the newest ones, happened."""

    def __init__(self, index: Index, changes: Sequence[Change]) -> None:
        self._index = index
        self._before: dict[str, Shown | None] = {}
        for change in changes:
            self._before.setdefault(change.job_id, change.old)
        self._carriers: defaultdict[str, set[str]] = defaultdict(set)
        for shown in (s for s in self._before.values() if s is not None):
            for name in shown.view.names():
                self._carriers[name].add(shown.job_id)

    def get(self, job_id: str) -> Shown | None:
        return self._before[job_id] if job_id in self._before else self._index.get(job_id)

    def matched(self, wanted: Filter, job_id: str) -> bool:
        """Whether the job was there, and matched."""
        shown = self.get(job_id)
        if shown is None or not wanted.query.matches(shown):
            return False
        names = wanted.jobs
        return names is None or any(n in names and self._led_to(n, shown) for n in shown.view.names())

    def _led_to(self, name: str, shown: Shown) -> bool:
        """The order of `Index.resolve`, then."""
        own = self.get(name)
        if own is not None and own.view.source == "joblog":
            return own.job_id == shown.job_id
        known = map(self.get, {*self._index.carriers(name), *self._carriers.get(name, ())})
        carriers = [s for s in known if s is not None and s.view.source == "joblog"]
        owners = [s for s in carriers if name in s.view.external_ids]
        owners = owners or [s for s in carriers if name == s.view.context_id]
        if owners:
            return max(owners, key=lambda s: s.view.age_key).job_id == shown.job_id
        return own is not None and own.job_id == shown.job_id
