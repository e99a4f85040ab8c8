"""The jobs that a subscription has still to get before it is synced: its snapshot, or the changes it missed. Pure.

All snapshots follow one shared order of jobs, and a subscription keeps only its place in that order. So a hundred pages
that open at once need no hundred lists of 20,000 jobs. A job after that place causes no message when it enters the
filter, changes or leaves: at its turn it is sent in its state at that time, if it matches. Clients that resume share an
order too: that of the jobs by their last change, in which a position in the stream is a place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from correlator.model.published import PublishedJob


class JobOrder:
    """Jobs in the order in which they are sent. Frozen."""

    __slots__ = ("ids", "place")

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self.ids = tuple(ids)
        self.place = {job_id: n for n, job_id in enumerate(self.ids)}


NONE = JobOrder()


class TodoPlace(NamedTuple):
    """Where a `Todo` is: two orders, and the place of the next job in each."""

    first: JobOrder
    at: int
    second: JobOrder
    at_second: int


class Todo:
    """Jobs that have not been sent yet: those of the order `first` from `at` on, then those of `second`.

    A job that both orders have is sent at its turn in `second`.
    """

    __slots__ = ("_at", "_at_second", "_first", "_second")

    def __init__(self, first: JobOrder, second: JobOrder = NONE, at: int = 0) -> None:
        self._first, self._at = first, at
        self._second, self._at_second = second, 0

    def __bool__(self) -> bool:
        return self._at < len(self._first.ids) or self._at_second < len(self._second.ids)

    def __contains__(self, job_id: str) -> bool:
        if (found := self._second.place.get(job_id)) is not None:
            return found >= self._at_second
        return self._first.place.get(job_id, -1) >= self._at

    def pop_next(self) -> str | None:
        """Remove and return the next job; None when none is left."""
        ids, at = self._first.ids, self._at
        while at < len(ids):
            job_id = ids[at]
            self._at = at = at + 1
            if job_id not in self._second.place:
                return job_id
        ids, at = self._second.ids, self._at_second
        if at >= len(ids):
            return None
        self._at_second = at + 1
        return ids[at]

    @property
    def place(self) -> TodoPlace:
        return TodoPlace(self._first, self._at, self._second, self._at_second)

    def skip_to(self, place: TodoPlace) -> None:
        """Remove the jobs before a place in the same orders."""
        self._at, self._at_second = place.at, place.at_second

    def clear(self) -> None:
        self._first, self._at = NONE, 0
        self._second, self._at_second = NONE, 0


EMPTY = Todo(NONE)
"""The `todo` of a synced subscription. Shared: nothing can be added to it."""


class Orders:
    """The shared order for snapshots that begin now. Call `add` for every job that is loaded into memory.

    `max_added`: jobs that may be added before the order is rebuilt.
    """

    def __init__(self, max_added: int) -> None:
        self._max_added = max_added
        self._order: JobOrder | None = None
        self._added: dict[str, None] = {}
        self._newest: JobOrder | None = NONE
        """Those of `_added`; None until a snapshot needs it."""

    def add(self, job_id: str) -> None:
        if self._order is None or job_id in self._order.place:
            return
        self._added[job_id] = None
        self._newest = None
        if len(self._added) > self._max_added:
            self._order = None  # rebuilt for the next snapshot

    def todo(self, shown: Iterable[PublishedJob], count: int) -> Todo:
        """A `Todo` of all jobs. `shown`: the jobs in memory, `count` of them."""
        if self._order is None or len(self._order.ids) > 2 * count + self._max_added:
            self._order, self._added, self._newest = newest_first(shown), {}, NONE
        if self._newest is None:
            self._newest = JobOrder(reversed(self._added))
        return Todo(self._newest, self._order)


def newest_first(shown: Iterable[PublishedJob]) -> JobOrder:
    """The order of a snapshot of these jobs."""
    return JobOrder(s.job_id for s in sorted(shown, key=lambda s: s.view.started_at or 0, reverse=True))


class MissedOrders:
    """The shared order for clients that resume now.

    Args:
        changed: Yields the jobs that changed, each with the seq of its last change, the newest first.
        max_added: Jobs that may change before the order is rebuilt.
        max_missed: Jobs of an order. A client that missed more gets a snapshot, which costs less.
    """

    def __init__(self, changed: Callable[[], Iterator[tuple[str, int]]], max_added: int, max_missed: int) -> None:
        self._changed = changed
        self._max_added = max_added
        self._max_missed = max_missed
        self._order = NONE
        """The oldest change first."""
        self._seqs: list[int] = []
        """The seq of the last change of each job of the order, as of `_until`."""
        self._after = self._until = self._at = 0
        """The order has the jobs that changed after `_after` and up to `_until`."""
        self._since = NONE
        """The jobs that changed after `_until` and up to `_at`."""
        self._epoch: str | None = None

    def clear(self) -> None:
        """Free the order. The next call of `todo` makes another one."""
        self._order, self._seqs, self._since, self._epoch = NONE, [], NONE, None

    def todo(self, after: int, epoch: str, seq: int) -> Todo | None:
        """The jobs that changed after position `after`. `epoch`, `seq`: where the stream is. None: too many jobs."""
        if epoch != self._epoch or after < self._after or not self._has_room(seq):
            self._rebuild(after, epoch, seq)
        if after < self._after:
            return None
        return Todo(self._order, self._since, bisect_right(self._seqs, after))

    def _has_room(self, seq: int) -> bool:
        """Note what changed since the last call. False if it is too much."""
        if seq != self._at:
            since = [job_id for job_id, last in self._newest(self._max_added + 1) if last > self._until]
            if len(since) > self._max_added:
                return False
            self._since, self._at = JobOrder(reversed(since)), seq
        return True

    def _rebuild(self, after: int, epoch: str, seq: int) -> None:
        # Twice as many as before, so that clients whose positions are ever older do not rebuild it each time.
        wanted = min(2 * len(self._seqs) + self._max_added, self._max_missed)
        found: list[tuple[str, int]] = []
        self._after = 0
        for job_id, last in self._newest(self._max_missed + 1):
            if len(found) >= wanted and (last <= after or len(found) >= self._max_missed):
                self._after = last
                break
            found.append((job_id, last))
        found.reverse()
        self._order, self._seqs = JobOrder(job_id for job_id, _ in found), [last for _, last in found]
        self._since, self._until, self._at, self._epoch = NONE, seq, seq, epoch

    def _newest(self, most: int) -> Iterator[tuple[str, int]]:
        return islice(self._changed(), most)
