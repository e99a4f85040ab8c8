"""The published jobs: what clients see of the jobs in memory, and the children of each.

A job is published as a `PublishedJob`: its view, and what other jobs and time add to it (children, `stalled`). Each
change takes the next `seq`. A document changes only with its `rev`, which is the `seq` of the job's last change.

The document of a job that starts thousands of others would take a megabyte and change with each of them. So it names
the newest `MAX_CHILDREN` children and carries the number of all: those that the tables list, and those in memory that
the last table query did not return.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container

from msgspec import Struct

from correlator.jobs.directory import JobDirectory
from correlator.jobs.job_view import ended_at
from correlator.model.facts import MAX_CHILDREN, Reading
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


# -- children


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
