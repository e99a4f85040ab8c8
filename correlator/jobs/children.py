"""The children of jobs: those that the tables list, and those in memory that the last table query did not return.

The document of a job that starts thousands of others would take a megabyte and change with each of them. A document
therefore names the newest `MAX_CHILDREN` children and carries the number of all.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from msgspec import Struct

from correlator.model.facts import MAX_CHILDREN, Reading
from correlator.model.published import JobView
from correlator.model.rows import Micros

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
    """The published children of every job, whether or not that job itself is in memory. O(log n), but for the list."""

    def __init__(self) -> None:
        self._known: dict[str, list[_Child]] = {}
        """For each parent: its children, sorted."""

    def move(self, old: JobView | None, new: JobView | None) -> list[str]:
        """Note what is published of a child now. None: nothing is, or was. Returns the parents that it changes."""
        before, after = _place(old), _place(new)
        if before == after:
            return []
        if before is not None:
            siblings = self._known[before[0]]
            del siblings[bisect_left(siblings, before[1])]
            if not siblings:
                del self._known[before[0]]
        if after is not None:
            insort(self._known.setdefault(after[0], []), after[1])
        return list(dict.fromkeys(place[0] for place in (before, after) if place is not None))

    def of(self, job_id: str, reading: Reading | None) -> Family:
        """The children of a job. `reading`: the last one of its tables."""
        listed, count = (reading.children, reading.child_count) if reading is not None else ((), 0)
        known = self._known.get(job_id)
        return family(listed, count, known or []) if listed or known else NO_CHILDREN


def _place(view: JobView | None) -> tuple[str, _Child] | None:
    """The parent of a job, and its place among the children of that job."""
    if view is None or view.parent_job_id is None:
        return None
    return view.parent_job_id, (view.started_at or 0, view.job_id)
