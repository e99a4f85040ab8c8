"""Groups of subscriptions with equal filters. A change is matched once per group. Imports no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from correlator.jobs.directory import JobDirectory
from correlator.jobs.model.changes import Change
from correlator.jobs.model.views import PublishedJob
from correlator.sinks.streaming.filters import Filter
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Client
from correlator.sinks.streaming.snapshots import EMPTY, NONE, Order, Orders, Todo

MAYBE: Final = "maybe"
"""The reason in `Sub.left` of a job that does not match, and of which nobody knows whether the client has it."""


@dataclass(slots=True, eq=False)
class Sub:
    """One subscription of one client.

    `level`: rank of the lowest level of log lines that are sent; None for no lines. `todo`: jobs of its snapshot that
    have still to be sent. `left`: jobs of `todo` that the client has from an earlier connection and that have left the
    filter since, with the reason. `alone`: the client has no other subscription.
    """

    client: Client
    id: int
    group: Group
    level: int | None = None
    todo: Todo = EMPTY
    left: dict[str, str] = field(default_factory=dict)
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

    def __post_init__(self) -> None:
        self.all_jobs = self.filter == Filter()

    def has(self, job_id: str, shown: PublishedJob | None) -> bool:
        """True if the job is in the group. `shown`: the job at the moment in question."""
        if self.filter.jobs is not None:
            return job_id in self.members
        return shown is not None and (self.all_jobs or self.filter.query.matches(shown))


class Groups:
    """All groups, indexed by filter and by the IDs that the filters name."""

    def __init__(self, published: JobDirectory, limits: Limits) -> None:
        self._published = published
        self._max_ids = limits.max_ids
        self._orders = Orders(limits.max_added)
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
        return wanted in self._groups or self._names + len(wanted.jobs or ()) <= self._max_ids

    def added(self, job_id: str) -> None:
        """A job has been loaded into memory."""
        self._orders.add(job_id)

    def snapshot(self, group: Group) -> Todo:
        """The jobs of a group as of now, as the `todo` of a new subscription."""
        if group.filter.jobs is None:
            return self._orders.todo(self._published.all(), len(self._published))
        return Todo(Order(s for i in group.members if (s := self._published.get(i)) is not None), {})

    def concerned(self, *shown: PublishedJob | None) -> Iterator[Group]:
        """The groups that a job may be in. `shown`: its states in question."""
        yield from self._broad
        if not self._named:
            return
        names = set[str]().union(*(one.view.names() for one in shown if one is not None))
        seen: set[int] = set()
        for name in names:
            for group in self._named.get(name, ()):
                if id(group) not in seen:
                    seen.add(id(group))
                    yield group


def missed(group: Group, changes: Sequence[Change], published: JobDirectory) -> tuple[Todo, dict[str, str]]:
    """The `todo` and `left` of a subscription whose client has every change before `changes`."""
    wanted = group.filter
    left: dict[str, str] = {}
    last: dict[str, Change] = {}
    had: set[str] = set()
    for change in changes:
        before = last.pop(change.job_id, None)
        last[change.job_id] = change
        if not change.old_known:
            had.add(change.job_id)
            continue
        # The old state of a later change is the new state of the change before it.
        for shown in (change.new,) if before is not None else (change.old, change.new):
            if shown is not None and wanted.might_match(shown):
                had.add(change.job_id)
    todo: dict[str, bool] = {}
    for job_id in _may_have_moved(group, published) if not all(change.old_known for change in changes) else ():
        if job_id not in last:
            todo[job_id] = True
            if not group.has(job_id, published.get(job_id)):
                left[job_id] = MAYBE
    for job_id, change in last.items():
        if group.has(job_id, published.get(job_id)):
            todo[job_id] = job_id in had
        elif job_id in had:
            todo[job_id] = True
            left[job_id] = change.reason or ("filter" if change.old_known else MAYBE)
    return Todo(NONE, todo), left


def _may_have_moved(group: Group, published: JobDirectory) -> Iterator[str]:
    """The jobs that an ID of the filter resolves to, or did before: they may have no change of their own.

    Where the old states are known, there is a change for each ID that moved (`Change.moved`).
    """
    for name in group.filter.jobs or ():
        yield from published.carriers(name)
        if published.get(name) is not None:
            yield name
