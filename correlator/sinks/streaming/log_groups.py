"""Which subscriptions get a log line. Imports no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from correlator.jobs.directory import JobDirectory
from correlator.jobs.model.rows import LEVELS, Level
from correlator.jobs.model.views import PublishedJob
from correlator.sinks.streaming.groups import Group
from correlator.sinks.streaming.messages import Client


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
