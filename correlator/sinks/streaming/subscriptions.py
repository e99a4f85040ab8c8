"""Subscriptions: which jobs each one gets. Imports no I/O.

Subscriptions with equal filters form a group, so that a change is matched once per group, however many clients it has.
Groups are found by the IDs that their filters name; those that name none are asked about every change.

What a subscription has still to get before it is synced is its snapshot, or the changes that it missed (`Todo`). All
snapshots follow one shared order of jobs, and a subscription keeps only its place in that order. So a hundred pages
that open at once need no hundred lists of 20,000 jobs. A job after that place causes no message when it enters the
filter, changes or leaves: at its turn it is sent in its state at that time, if it matches. Clients that resume share an
order too: that of the jobs by their last change, in which a position in the stream is a place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

from correlator.jobs.directory import JobDirectory
from correlator.jobs.fold import vm_name
from correlator.model.published import PublishedJob, Reason
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Client


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


# -- subscriptions


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


Left: TypeAlias = Reason | Literal["filter", "maybe"]
"""Why a job left a subscription; maybe: it does not match, and nobody knows whether the client has it."""


@dataclass(slots=True, eq=False)
class Sub:
    """One subscription of one client.

    `level`: rank of the lowest level of log lines that are sent; None for no lines. `waiting_ids`: IDs of its filter
    that no job had at its begin. `todo`: jobs of its snapshot, or those that changed after position `after`, that have
    still to be sent. `alone`: it is the client's only one.
    """

    client: Client
    id: int
    group: Group
    level: int | None = None
    waiting_ids: Sequence[str] = ()
    todo: Todo = EMPTY
    after: int | None = None
    alone: bool = True


@dataclass(slots=True, eq=False)
class Group:
    """The subscriptions with one filter.

    `members`: the jobs that match now, if the filter names IDs. For other filters it is empty: whether a job matches
    depends on the published job alone.
    """

    filter: Filter
    members: set[str] = field(default_factory=set)
    subs: dict[Sub, None] = field(default_factory=dict)
    all_jobs: bool = False
    """The filter matches every job."""
    matches: Callable[[PublishedJob], bool] = field(init=False)
    """Says whether a job matches, apart from the IDs that the filter names."""

    def __post_init__(self) -> None:
        self.all_jobs = self.filter == Filter()
        # Kept here, as the query's own cache of them is smaller than the number of groups may be.
        self.matches = self.filter.query.matcher()

    def has(self, job_id: str, shown: PublishedJob | None) -> bool:
        """True if the job is in the group. `shown`: the job at the moment in question."""
        if self.filter.jobs is not None:
            return job_id in self.members
        return shown is not None and (self.all_jobs or self.matches(shown))

    def might_match(self, shown: PublishedJob) -> bool:
        """True if the job would match in case every ID that it carries resolved to it."""
        names = self.filter.jobs
        return self.matches(shown) and (names is None or not names.isdisjoint(shown.view.names()))

    def left_by(self, shown: PublishedJob | None) -> Reason | Literal["filter"]:
        """Why a job of the group that has become `shown` left it. One of another VM is gone for a client of the VM."""
        vm = self.filter.query.vm_name
        return "gone" if vm and shown is not None and vm_name(shown.view) != vm else "filter"


class Groups:
    """All groups, indexed by filter and by the IDs that the filters name."""

    def __init__(self, hub: Hub, limits: Limits) -> None:
        self._hub = hub
        self._published = hub.published
        self._limits = limits
        self._orders = Orders(limits.max_added)
        self._missed = MissedOrders(hub.changed, limits.max_added, limits.max_missed)
        self._groups: dict[Filter, Group] = {}
        self._broad: dict[Group, None] = {}
        """Groups whose filters name no IDs."""
        self._named: dict[str, dict[Group, None]] = {}
        self._names = 0

    def of(self, wanted: Filter) -> Group:
        """The group of a filter. A new group contains the jobs that match now."""
        if (known := self._groups.get(wanted)) is not None:
            return known
        group = self._groups[wanted] = Group(wanted)
        if wanted.jobs is None:
            self._broad[group] = None
        self._names += len(wanted.jobs or ())
        for name in wanted.jobs or ():
            self._named.setdefault(name, {})[group] = None
            resolved = self._published.resolve(name)
            shown = self._published.get(resolved.job_id) if resolved is not None else None
            if shown is not None and wanted.matches(shown, self._published):
                group.members.add(shown.job_id)
        return group

    def remove(self, group: Group) -> None:
        """Remove a group that has no subscription any more."""
        del self._groups[group.filter]
        self._broad.pop(group, None)
        self._names -= len(group.filter.jobs or ())
        for name in group.filter.jobs or ():
            self._named[name].pop(group, None)
            if not self._named[name]:
                del self._named[name]

    def has_room(self, wanted: Filter) -> bool:
        """False if the IDs of the filter would exceed `Limits.max_ids`."""
        return wanted in self._groups or self._names + len(wanted.jobs or ()) <= self._limits.max_ids

    def added(self, job_id: str) -> None:
        """A job has been loaded into memory."""
        self._orders.add(job_id)

    def snapshot(self, group: Group) -> Todo:
        """The jobs of a group as of now, as the `todo` of a new subscription."""
        if group.filter.jobs is None:
            return self._orders.todo(self._published.all(), len(self._published))
        return Todo(newest_first(s for i in group.members if (s := self._published.get(i)) is not None))

    def missed(self, group: Group, after: int) -> Todo | None:
        """The jobs that may concern a client that has every change up to position `after`. None: a snapshot costs less.

        `left` says of a job that does not match whether the client may have it.
        """
        names, most = group.filter.jobs, self._limits.max_visited
        if names is not None and (found := self._hub.changed_with(names, after, most)) is not None:
            return Todo(JobOrder(found))
        todo = self._missed.todo(after, self._hub.epoch, self._hub.seq)
        if todo is None or names is None:
            return todo
        # A job that an ID has moved to may have no change of its own since `after`.
        carriers = (self._published.carriers(name) for name in names)
        moved = chain((name for name in names if self._published.get(name) is not None), *carriers)
        return Todo(todo.place.first, JobOrder(dict.fromkeys([*todo.place.second.ids, *moved])), todo.place.at)

    def left(self, group: Group, job_id: str, after: int) -> Left | None:
        """Why a client that has every change up to position `after` does not get a job. None: it never had it."""
        states = self._hub.before(job_id, after)
        shown = self._published.get(job_id)
        reason = self._hub.reason(job_id) if shown is None else None
        if states is None:
            return reason or "maybe"
        if any(map(group.might_match, states if shown is None else [*states, shown])):
            return reason or group.left_by(shown)
        return None

    def forget_missed(self) -> None:
        """Free what only clients that resume at once need."""
        self._missed.clear()

    def concerned(self, *shown: PublishedJob | None) -> Collection[Group]:
        """The groups that a job may be in. `shown`: its states in question."""
        if not self._named:
            return list(self._broad)
        found = dict(self._broad)
        for name in set[str]().union(*(one.view.names() for one in shown if one is not None)):
            found.update(self._named.get(name, {}))
        return found
