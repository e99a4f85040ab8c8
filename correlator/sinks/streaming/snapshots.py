"""The jobs that a subscription has still to get before it is synced: its snapshot, or the changes it missed. Pure.

All snapshots follow one shared order of jobs, and a subscription keeps only its place in that order. So a hundred pages
that open at once need no hundred lists of 20,000 jobs. A job after that place causes no message when it enters the
filter, changes or leaves: at its turn it is sent in its state at that time, if it matches.
"""

from __future__ import annotations

from collections.abc import Iterable

from correlator.jobs.model.views import PublishedJob


class Order:
    """The jobs at one moment, newest first. Frozen."""

    __slots__ = ("ids", "place")

    def __init__(self, shown: Iterable[PublishedJob] = ()) -> None:
        jobs = sorted(shown, key=lambda s: s.view.started_at or 0, reverse=True)
        self.ids = tuple(s.job_id for s in jobs)
        self.place = {job_id: n for n, job_id in enumerate(self.ids)}


class Todo:
    """Jobs that have not been sent yet: first those of `listed`, then those of `order`.

    `listed` maps a job to True if the client has the job from an earlier connection.
    """

    __slots__ = ("_listed", "_order", "at")

    def __init__(self, order: Order, listed: dict[str, bool]) -> None:
        self._order = order
        self._listed = dict(reversed(listed.items()))  # popitem removes from the end
        self.at = 0
        """The place in the order of the next job."""

    def __bool__(self) -> bool:
        return bool(self._listed) or self.at < len(self._order.ids)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._listed or self._order.place.get(job_id, -1) >= self.at

    def had(self, job_id: str) -> bool:
        """True if the client has the job from an earlier connection."""
        return self._listed.get(job_id, False)

    def discard(self, job_id: str) -> None:
        """Remove a listed job. A job of the order stays: at its turn it is sent only if it matches."""
        self._listed.pop(job_id, None)

    def clear(self) -> None:
        self._listed = {}
        self._order = NONE

    def pop_next(self) -> str | None:
        """Remove and return the next job; None when none is left."""
        if self._listed:
            return self._listed.popitem()[0]
        ids, at = self._order.ids, self.at
        if at >= len(ids):
            return None
        self.at = at + 1
        return ids[at]

    @property
    def place(self) -> tuple[Order, int] | None:
        """The order and the place of the next job in it; None if the next job is a listed one."""
        return None if self._listed else (self._order, self.at)

    def skip_to(self, at: int) -> None:
        """Remove the jobs of the order before the place `at`."""
        self.at = at


class Orders:
    """The shared order for snapshots that begin now. Call `add` for every job that is loaded into memory.

    `max_added`: jobs that may be added before the order is rebuilt.
    """

    def __init__(self, max_added: int) -> None:
        self._max_added = max_added
        self._order: Order | None = None
        self._added: dict[str, None] = {}

    def add(self, job_id: str) -> None:
        if self._order is None or job_id in self._order.place:
            return
        self._added[job_id] = None
        if len(self._added) > self._max_added:
            self._order = None  # rebuilt for the next snapshot

    def todo(self, shown: Iterable[PublishedJob], count: int) -> Todo:
        """A `Todo` of all jobs. `shown`: the jobs in memory, `count` of them."""
        if self._order is None or len(self._order.ids) > 2 * count + self._max_added:
            self._order, self._added = Order(shown), {}
        return Todo(self._order, dict.fromkeys(reversed(self._added), False))


NONE = Order()
EMPTY = Todo(NONE, {})
"""The `todo` of a synced subscription. Shared: nothing can be added to it."""
