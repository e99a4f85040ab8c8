"""The children of jobs: those that the tables list, and those in memory that the last table query did not return.

The document of a job that starts thousands of others would take a megabyte and change with each of them. A document
therefore names the newest `MAX_CHILDREN` children and carries the number of all.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from msgspec import Struct

from correlator.jobs.model.facts import MAX_CHILDREN, Job
from correlator.jobs.model.rows import Micros

_Child = tuple[Micros, str]
"""The start time of a child and its job ID. Children are sorted by this pair."""


class Family(Struct, frozen=True, gc=False):
    """The published children of a job: the newest `MAX_CHILDREN`, oldest first, and the number of all."""

    ids: tuple[str, ...] = ()
    count: int = 0


NO_CHILDREN = Family()


def family(listed: tuple[_Child, ...], count: int, known: list[_Child]) -> Family:
    """Merge the children that the tables list (`count` in all) with the sorted children in memory (`known`).

    The returned count is exact up to `MAX_CHILDREN`. Beyond that it may lack the children that started since the last
    table query.
    """
    names = {child for _, child in listed}
    newest = sorted([*listed, *(child for child in known[-MAX_CHILDREN:] if child[1] not in names)])
    ids = tuple(child for _, child in newest[-MAX_CHILDREN:])
    return Family(ids, max(count, len(known), len(newest)))


class Children:
    """The children in memory of every job, whether or not that job itself is in memory.

    Memory use is proportional to the number of children in memory. Adding a child costs a binary search.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, Micros]] = {}
        """For each child: its parent and its start time."""
        self._known: dict[str, list[_Child]] = {}
        """For each parent: its children, sorted."""
        self._families: dict[str, tuple[tuple[_Child, ...], int, Family]] = {}
        """A cache. For each parent: the list and the count of the tables, and the family computed from them."""

    def place(self, child: str, parent: str | None, started: Micros) -> list[str]:
        """Set parent and start time of `child`, or remove it (`parent` None). Returns the parents that changed."""
        old, new = self._places.get(child), (parent, started)
        if old == new or (old is None and parent is None):
            return []
        changed: list[str] = []
        if old is not None:
            del self._places[child]
            siblings = self._known[old[0]]
            del siblings[bisect_left(siblings, (old[1], child))]
            if not siblings:
                del self._known[old[0]]
            changed.append(old[0])
        if parent is not None:
            self._places[child] = (parent, started)
            insort(self._known.setdefault(parent, []), (started, child))
            changed.append(parent)
        for one in changed:
            self._families.pop(one, None)
        return changed

    def of(self, job_id: str, job: Job | None) -> Family:
        """The children of `job_id`. `job` holds its facts, if it is in memory."""
        reading = job.reading if job is not None else None
        listed, count = (reading.children, reading.child_count) if reading is not None else ((), 0)
        known = self._known.get(job_id)
        if not listed and known is None:
            return NO_CHILDREN
        cached = self._families.get(job_id)
        if cached is not None and cached[0] == listed and cached[1] == count:
            return cached[2]
        found = family(listed, count, known or [])
        self._families[job_id] = (listed, count, found)
        return found

    def forget(self, job_id: str) -> None:
        """Drop the cache entry of a job that left memory. Its children stay for as long as they are in memory."""
        self._families.pop(job_id, None)
