"""Subscriptions: which jobs and log lines each one gets. Imports no I/O.

Subscriptions with equal filters form a group, so that a change is matched once per group, however many clients it has.
Groups are found by the IDs that their filters name; those that name none are asked about every change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, TypeAlias

from msgspec import Struct

from correlator.jobs.directory import JobDirectory
from correlator.model.published import PublishedJob, Reason
from correlator.model.rows import LEVELS, Level
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Client
from correlator.sinks.streaming.snapshots import EMPTY, JobOrder, MissedOrders, Orders, Todo, newest_first


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

    `level`: rank of the lowest level of log lines that are sent; None for no lines. `todo`: jobs of its snapshot, or
    those that changed after position `after`, that have still to be sent. `alone`: it is the client's only one.
    """

    client: Client
    id: int
    group: Group
    level: int | None = None
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
            return reason or "filter"
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


class LogGroups:
    """The groups of which a subscription gets log lines. False if there are none."""

    def __init__(self, published: JobDirectory) -> None:
        self._published = published
        self._subscriptions: dict[Group, int] = {}

    def __bool__(self) -> bool:
        return bool(self._subscriptions)

    def add(self, group: Group) -> None:
        """Count a subscription that gets log lines."""
        self._subscriptions[group] = self._subscriptions.get(group, 0) + 1

    def remove(self, group: Group) -> None:
        """Count a subscription no longer that was added."""
        self._subscriptions[group] -= 1
        if not self._subscriptions[group]:
            del self._subscriptions[group]

    def of(self, job_id: str | None, before: Mapping[str, PublishedJob | None]) -> dict[Group, None]:
        """The groups that contain the job. `before`: old states, used instead of the current ones."""
        if job_id is None:
            return {}
        shown = before[job_id] if job_id in before else self._published.get(job_id)
        return {group: None for group in self._subscriptions if group.has(job_id, shown)}


LineClients: TypeAlias = Mapping[tuple[int, ...], Sequence[Client]]
"""Clients by the IDs of their subscriptions that get a line."""


def line_clients(level: Level, groups: Iterable[Group]) -> LineClients:
    """The clients with subscriptions in these groups that get lines of this level."""
    rank = LEVELS.index(level)
    subs: defaultdict[Client, list[int]] = defaultdict(list)
    for group in groups:
        for sub in group.subs:
            if sub.level is not None and rank >= sub.level:
                subs[sub.client].append(sub.id)
    found: defaultdict[tuple[int, ...], list[Client]] = defaultdict(list)
    for client, ids in subs.items():
        found[tuple(sorted(ids))].append(client)
    return found
