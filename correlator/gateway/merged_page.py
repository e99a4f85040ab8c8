"""One page of jobs, newest first, merged from the pages of several appliances. Pure.

Problem. Each appliance has an ordered list of its jobs, and gives it in pages that may be short, or empty, before the
end of the list. A client gets one list over all of them, with one cursor for all: nothing may be missing from it, and
nothing may be in it twice.

Model. An appliance's part is what it has given so far. It is complete down to its `next_before`, so the merged list is
complete down to the highest `next_before` of all parts, and ends there. The appliances that hold it up are asked for
more until the page is full.

Invariants.

* A job is in the page only if every other answering appliance has given everything that is newer.
* An appliance that does not answer holds nothing up: the page is without its jobs, and says so in `reason`.
* Of jobs with the same start and ID, one is in the page: a cursor cannot point between them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TypeAlias

from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import PublishedJob
from correlator.pipeline.queries import OtherJobs

Place: TypeAlias = tuple[Micros, str]
"""The position of a job in the order of the list: (started_at, ID)."""


class _Part:
    """How far an appliance's jobs are known. `asked`: False until its first page."""

    def __init__(self, before: Place | None) -> None:
        self.next_before = before
        self.asked = False


class MergedPage:
    """Merges pages until `limit` jobs are certain. Ask those that `due` names; then `add` or `drop` each of them.

    Args:
        instances: The appliances.
        before: The place before which the page begins; None: at the newest job.
        limit: The number of jobs that fill the page.
    """

    def __init__(self, instances: Iterable[str], before: Place | None, limit: int) -> None:
        self._limit = limit
        self._parts = {instance: _Part(before) for instance in sorted(instances)}
        self._jobs: dict[Place, tuple[PublishedJob, str]] = {}
        self._reasons: dict[str, str] = {}

    def due(self) -> list[tuple[str, Place | None]]:
        """The appliances that hold the page up, each with the place to ask from. Empty: the page is full, or ends."""
        unasked = [(instance, part.next_before) for instance, part in self._parts.items() if not part.asked]
        if unasked:
            return unasked
        reached = self._reached()
        if reached is None or len(self._certain(reached)) >= self._limit:
            return []
        return [(instance, reached) for instance, part in self._parts.items() if part.next_before == reached]

    def add(
        self, instance: str, jobs: Iterable[PublishedJob], next_before: Place | None, reason: str | None = None
    ) -> None:
        """Add a page that an appliance gave. `reason`: why jobs of its database are missing."""
        part = self._parts[instance]
        part.next_before, part.asked = next_before, True
        if reason is not None:
            self._reasons[instance] = reason
        for job in jobs:
            known = self._jobs.get(place := place_of(job))
            if known is None or (job.view.age_key, known[1]) > (known[0].view.age_key, instance):
                self._jobs[place] = job, instance

    def drop(self, instance: str, reason: str) -> None:
        """Go on without an appliance that did not answer. What it gave before stays."""
        self.add(instance, (), None, reason)

    def result(self) -> OtherJobs:
        """The page, once every appliance has given a page or was dropped. It is short if some are still `due`."""
        reached = self._reached()
        certain = self._certain(reached)
        page = certain[: self._limit]
        following = place_of(page[-1]) if len(certain) > self._limit else reached
        return OtherJobs(page, following, "; ".join(self._reasons.values()) or None)

    def _reached(self) -> Place | None:
        """The place down to which every part is complete; None: all have ended."""
        return max((part.next_before for part in self._parts.values() if part.next_before is not None), default=None)

    def _certain(self, reached: Place | None) -> list[PublishedJob]:
        """The newest jobs down to `reached`; at most one more than fits into the page."""
        found = (place for place in self._jobs if reached is None or place >= reached)
        return [self._jobs[place][0] for place in heapq.nlargest(self._limit + 1, found)]


def place_of(job: PublishedJob) -> Place:
    return (job.view.started_at or 0, job.job_id)
