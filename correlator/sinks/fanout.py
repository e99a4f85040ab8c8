"""From one change to every reader that wants it, encoded once. Shared by the websocket and the event stream.

Readers with equal filters form a group, and a change is matched once a group. A reader that lags gets no backlog: of
each job it owes only the newest state. What a subscription has not yet been sent in its snapshot is not sent as a
change either: it will be in the snapshot, newer. So snapshot and stream meet without a hole or a repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from correlator.hub import Batch, Hub, JobQuery
from correlator.jobs import wire
from correlator.jobs.index import Index
from correlator.jobs.model import Change, Shown

LAGGING_OVER = 64 * 1024
"""Bytes waiting in a reader's transport from which on it lags."""

CAUGHT_UP_UNDER = 16 * 1024

TOO_SLOW_OVER = 1024 * 1024
TOO_SLOW_AFTER = 60.0
"""Bytes waiting, or seconds without progress, at which a reader is given up."""


class Filter(Struct, frozen=True):
    """What a subscription wants. `jobs` None: whatever its name; else the jobs that these IDs lead to."""

    query: JobQuery = JobQuery()
    jobs: frozenset[str] | None = None

    def matches(self, shown: Shown, index: Index) -> bool:
        if not self.query.matches(shown):
            return False
        if self.jobs is None:
            return True
        return any(n in self.jobs and index.names_lead_to(n, shown.job_id) for n in shown.view.names())


class Reader(Protocol):
    """One connection. `write` takes whole messages and never waits."""

    def write(self, messages: list[bytes]) -> None: ...

    def waiting(self) -> int:
        """Bytes that its transport has not got rid of yet."""

    def give_up(self) -> None:
        """It is too slow: end it."""


@dataclass(slots=True, eq=False)
class Sub:
    """One subscription of one reader. `todo`: jobs of its snapshot that have not been sent yet."""

    reader: Reader
    id: int
    group: Group
    todo: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Group:
    """The subscriptions with one filter, and the jobs that match it now."""

    filter: Filter
    members: set[str] = field(default_factory=set)
    subs: list[Sub] = field(default_factory=list)


@dataclass(slots=True)
class Lag:
    """A reader that lags: per job and subscription the reason it left, or None where its newest state is owed."""

    dirty: dict[str, dict[int, str | None]] = field(default_factory=dict)
    waiting: int = 0
    progressed: float = 0.0


class Fanout:
    """Listens to the hub for all readers of one kind of connection. `clock`: monotonic seconds."""

    def __init__(self, hub: Hub, clock: Callable[[], float]) -> None:
        self._hub = hub
        self._index = hub.index
        self._clock = clock
        self._groups: dict[Filter, Group] = {}
        self._broad: dict[Group, None] = {}
        self._named: dict[str, dict[Group, None]] = {}
        self._subs: dict[Reader, dict[int, Sub]] = {}
        self._lagging: dict[Reader, Lag] = {}

    @property
    def readers(self) -> Iterable[Reader]:
        return self._subs.keys()

    def lags(self, reader: Reader) -> bool:
        return reader in self._lagging

    @property
    def lagging(self) -> int:
        return len(self._lagging)

    def join(self, reader: Reader) -> None:
        self._subs[reader] = {}

    def leave(self, reader: Reader) -> None:
        for sub_id in list(self._subs.get(reader, ())):
            self.unsubscribe(reader, sub_id)
        self._subs.pop(reader, None)
        self._lagging.pop(reader, None)

    def subs(self, reader: Reader) -> dict[int, Sub]:
        return self._subs.get(reader, {})

    def subscribe(self, reader: Reader, sub_id: int, wanted: Filter) -> Sub:
        """Register; the subscription's `todo` is its snapshot, taken in the same step."""
        self.unsubscribe(reader, sub_id)
        group = self._groups.get(wanted) or self._new_group(wanted)
        sub = Sub(reader, sub_id, group, dict.fromkeys(group.members))
        group.subs.append(sub)
        self._subs[reader][sub_id] = sub
        return sub

    def unsubscribe(self, reader: Reader, sub_id: int) -> bool:
        sub = self._subs.get(reader, {}).pop(sub_id, None)
        if sub is None:
            return False
        if (lag := self._lagging.get(reader)) is not None:
            for owed in lag.dirty.values():
                owed.pop(sub_id, None)
        group = sub.group
        group.subs.remove(sub)
        if not group.subs:
            del self._groups[group.filter]
            self._broad.pop(group, None)
            for name in group.filter.jobs or ():
                self._named[name].pop(group, None)
                if not self._named[name]:
                    del self._named[name]
        return True

    def _new_group(self, wanted: Filter) -> Group:
        group = self._groups[wanted] = Group(wanted)
        if wanted.jobs is None:
            self._broad[group] = None
            found = self._index.shown()
        else:
            found = []
            for name in wanted.jobs:
                self._named.setdefault(name, {})[group] = None
                resolved = self._index.resolve(name)
                if resolved is not None and (shown := self._index.get(resolved.job_id)) is not None:
                    found.append(shown)
        group.members = {s.job_id for s in found if wanted.matches(s, self._index)}
        return group

    # -- live

    def hear(self, batch: Batch) -> None:
        out: dict[Reader, list[bytes]] = {}
        for change in batch.changes:
            self._spread(change, out)
        frames: dict[tuple[int, ...], list[bytes]] = {}
        for reader, messages in out.items():
            # Readers that get the same messages get the very same list, so that it is framed once.
            key = tuple(map(id, messages))
            reader.write(frames.setdefault(key, messages))

    def _spread(self, change: Change, out: dict[Reader, list[bytes]]) -> None:
        puts: dict[Reader, list[int]] = {}
        leaves: dict[tuple[Reader, str], list[int]] = {}
        for group in list(self._concerned(change)):
            was = change.job_id in group.members
            now = change.new is not None and group.filter.matches(change.new, self._index)
            if now and was and change.moved:
                continue
            if now:
                group.members.add(change.job_id)
            elif was:
                group.members.discard(change.job_id)
            else:
                continue
            reason = None if now else change.reason or "filter"
            for sub in group.subs:
                self._tell(sub, change.job_id, reason, puts, leaves)
        if not puts and not leaves:
            return
        shown = change.new
        document = wire.encode(wire.document(shown)) if shown is not None else b""
        known: dict[tuple[int, ...], bytes] = {}
        for reader, subs in puts.items():
            if shown is not None:
                key = tuple(subs)
                message = known.get(key)
                if message is None:
                    message = known[key] = wire.put(key, change.seq, shown, document)
                out.setdefault(reader, []).append(message)
        gone: dict[tuple[str, tuple[int, ...]], bytes] = {}
        for (reader, why), subs in leaves.items():
            named = (why, tuple(subs))
            message = gone.get(named)
            if message is None:
                message = gone[named] = wire.delete(subs, change.seq, change.job_id, why)
            out.setdefault(reader, []).append(message)

    def _tell(
        self,
        sub: Sub,
        job_id: str,
        reason: str | None,
        puts: dict[Reader, list[int]],
        leaves: dict[tuple[Reader, str], list[int]],
    ) -> None:
        reader = sub.reader
        if job_id in sub.todo:
            if reason is not None:
                del sub.todo[job_id]  # it never knew of it
            return
        lag = self._lag(reader)
        if lag is not None:
            lag.dirty.setdefault(job_id, {})[sub.id] = reason
            return
        if reason is None or reason == "filter":
            puts.setdefault(reader, []).append(sub.id)
        if reason is not None:
            leaves.setdefault((reader, reason), []).append(sub.id)

    def _concerned(self, change: Change) -> Iterator[Group]:
        yield from self._broad
        if not self._named:
            return
        names = set(change.new.view.names()) if change.new is not None else set()
        if change.old is not None:
            names.update(change.old.view.names())
        seen: set[int] = set()
        for name in names:
            for group in self._named.get(name, ()):
                if id(group) not in seen:
                    seen.add(id(group))
                    yield group

    # -- readers that lag

    def _lag(self, reader: Reader) -> Lag | None:
        lag = self._lagging.get(reader)
        if lag is None and (waiting := reader.waiting()) > LAGGING_OVER:
            lag = self._lagging[reader] = Lag(waiting=waiting, progressed=self._clock())
        return lag

    def sweep(self) -> None:
        """Called every 100 ms: readers that caught up get what they are owed; hopeless ones are given up."""
        now = self._clock()
        for reader in self._subs:
            self._lag(reader)
        for reader, lag in list(self._lagging.items()):
            waiting = reader.waiting()
            if waiting < lag.waiting:
                lag.progressed = now
            lag.waiting = waiting
            if waiting < CAUGHT_UP_UNDER:
                del self._lagging[reader]
                reader.write(self._owed(lag))
            elif waiting > TOO_SLOW_OVER or now - lag.progressed > TOO_SLOW_AFTER:
                self.leave(reader)
                reader.give_up()

    def _owed(self, lag: Lag) -> list[bytes]:
        messages: list[bytes] = []
        seq = self._hub.seq
        for job_id, subs in lag.dirty.items():
            shown = self._index.get(job_id)
            puts = [s for s, reason in subs.items() if reason is None or reason == "filter"]
            if shown is not None and puts:
                messages.append(wire.put(puts, seq, shown, wire.encode(wire.document(shown))))
            messages += [
                wire.delete([s for s, r in subs.items() if r == reason], seq, job_id, reason)
                for reason in sorted({r for r in subs.values() if r is not None})
            ]
        return messages
