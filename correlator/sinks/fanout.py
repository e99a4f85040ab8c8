"""From one change to every reader that wants it, encoded once. Shared by the websocket and the event stream.

Readers with equal filters form a group, and a change is matched once a group. A reader that lags gets no backlog: of
each job it owes only the newest state. What a subscription has not yet been sent in its snapshot is not sent as a
change either: it will be in the snapshot, newer. So snapshot and stream meet without a hole or a repeat, and a
subscription always holds a job at the revision before its next change, which is why a delta is enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from correlator.hub import Batch, Hub
from correlator.jobs import wire
from correlator.jobs.model import LEVELS, Change, Level
from correlator.sinks.backlog import Backlog
from correlator.sinks.encoder import Encoder, Told
from correlator.sinks.filters import Filter
from correlator.sinks.messages import Message, Reader
from correlator.sinks.outbox import Outboxes

LAGGING_OVER = 64 * 1024
"""Bytes waiting in a reader's transport from which on it lags."""

CAUGHT_UP_UNDER = 16 * 1024

TOO_SLOW_AFTER = 60.0
"""Seconds without progress after which a reader is given up."""

MUCH = 1024 * 1024
TOO_SLOW_WITH_MUCH_AFTER = 5.0
"""The same with so many bytes waiting: no more than one large message can make that many."""

PARTS_AT_ONCE = 16
"""Parts of a backlog that one look sends at the most, to a reader that takes them as fast."""


@dataclass(slots=True, eq=False)
class Sub:
    """One subscription of one reader.

    `todo`: jobs of its snapshot that have not been sent yet, and whether the reader has them from before it came back;
    `left`: those of them that left the filter meanwhile, and why. `level`: the least of the log lines it wants.
    `alone`: the reader has no other.
    """

    reader: Reader
    id: int
    group: Group
    level: int | None = None
    todo: dict[str, bool] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    alone: bool = True


@dataclass(slots=True, eq=False)
class Group:
    """The subscriptions with one filter, and the jobs that match it now."""

    filter: Filter
    members: set[str] = field(default_factory=set)
    subs: list[Sub] = field(default_factory=list)


class Fanout:
    """Listens to the hub for all readers. `clock`: monotonic seconds; `later` calls after so many of them."""

    def __init__(
        self, hub: Hub, clock: Callable[[], float], later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self._hub = hub
        self._index = hub.index
        self._clock = clock
        self._groups: dict[Filter, Group] = {}
        self._broad: dict[Group, None] = {}
        self._named: dict[str, dict[Group, None]] = {}
        self._loud: dict[Group, int] = {}
        self._subs: dict[Reader, dict[int, Sub]] = {}
        self._behind: dict[Reader, Backlog] = {}
        self._out = Outboxes(clock, later)

    @property
    def readers(self) -> Iterable[Reader]:
        return self._subs.keys()

    @property
    def lagging(self) -> int:
        return len(self._behind)

    def knows(self, reader: Reader) -> bool:
        """Whether it has joined, and has neither left nor been given up."""
        return reader in self._subs

    def lags(self, reader: Reader) -> bool:
        return reader in self._behind

    def position(self, reader: Reader) -> int:
        """Up to where the reader has everything, in its subscriptions that are synced."""
        behind = self._behind.get(reader)
        return behind.seq if behind is not None else self._hub.seq

    def join(self, reader: Reader) -> None:
        self._subs[reader] = {}

    def leave(self, reader: Reader) -> None:
        self._behind.pop(reader, None)
        for sub_id in list(self._subs.get(reader, ())):
            self.unsubscribe(reader, sub_id)
        self._subs.pop(reader, None)
        self._out.take(reader)

    def subs(self, reader: Reader) -> dict[int, Sub]:
        return self._subs.get(reader, {})

    def subscribe(self, reader: Reader, sub_id: int, wanted: Filter, level: Level | None = None) -> Sub:
        """Register; the subscription's `todo` is its snapshot, taken in the same step."""
        self.unsubscribe(reader, sub_id)
        group = self._groups.get(wanted) or self._new_group(wanted)
        sub = Sub(reader, sub_id, group, LEVELS.index(level) if level else None, dict.fromkeys(group.members, False))
        group.subs.append(sub)
        if sub.level is not None:
            self._loud[group] = self._loud.get(group, 0) + 1
        self._subs[reader][sub_id] = sub
        self._look_who_is_alone(reader)
        return sub

    def resume(
        self, reader: Reader, sub_id: int, wanted: Filter, level: Level | None, changes: Iterable[Change]
    ) -> Sub:
        """Register a reader that has everything but `changes`, the newest ones: they are its `todo`.

        What exactly it has is not known: it may have been told more than the position that it remembers. So it is told
        of every job that left which it may have had since then.
        """
        sub = self.subscribe(reader, sub_id, wanted, level)
        sub.todo, last = {}, dict[str, Change]()
        had: set[str] = set()
        for change in changes:
            last.pop(change.job_id, None)
            last[change.job_id] = change
            if any(s is not None and wanted.might_match(s) for s in (change.old, change.new)):
                had.add(change.job_id)
        for job_id, change in last.items():
            if job_id in sub.group.members:
                sub.todo[job_id] = job_id in had
            elif job_id in had:
                sub.todo[job_id] = True
                sub.left[job_id] = change.reason or "filter"
        return sub

    def unsubscribe(self, reader: Reader, sub_id: int) -> bool:
        sub = self._subs.get(reader, {}).pop(sub_id, None)
        if sub is None:
            return False
        self._look_who_is_alone(reader)
        self.flush()  # what it was still to be told names it
        if (behind := self._behind.get(reader)) is not None:
            behind.forget(sub_id)
        group = sub.group
        group.subs.remove(sub)
        if sub.level is not None:
            self._loud[group] -= 1
            if not self._loud[group]:
                del self._loud[group]
        if not group.subs:
            del self._groups[group.filter]
            self._broad.pop(group, None)
            for name in group.filter.jobs or ():
                self._named[name].pop(group, None)
                if not self._named[name]:
                    del self._named[name]
        return True

    def _look_who_is_alone(self, reader: Reader) -> None:
        subs = self._subs.get(reader, {}).values()
        for sub in subs:
            sub.alone = len(subs) == 1

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
        """Spread what was published."""
        lines = batch.lines if self._loud else ()
        audience = [self._loud_for(line.job_id) for line in lines]
        for change in batch.changes:
            self._spread(change)
        for line, groups in zip(lines, audience, strict=True):
            # Whoever it belongs to before or after: its end may take a job out of a filter, its start bring it in.
            groups.update(self._loud_for(line.job_id))
            rank = LEVELS.index(line.entry.level)
            wanted: defaultdict[Reader, list[int]] = defaultdict(list)
            for sub in (s for group in groups for s in group.subs):
                if sub.level is not None and rank >= sub.level:
                    wanted[sub.reader].append(sub.id)
            encoded: dict[tuple[int, ...], Message] = {}
            for reader, subs in wanted.items():
                key = tuple(sorted(subs))
                message = encoded.get(key) or encoded.setdefault(key, Message(wire.log(key, line)))
                if (behind := self._lag(reader, batch.seq)) is not None:
                    behind.owe_line(key, message.body)
                else:
                    self._out.put(reader, message)
        self._out.flush_soon()

    def _loud_for(self, job_id: str | None) -> dict[Group, None]:
        return {g: None for g in self._loud if job_id in g.members}

    def _spread(self, change: Change) -> None:
        told: defaultdict[Reader, Told] = defaultdict(Told)
        encode = Encoder(change)
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
            others = group.subs if reason is not None else self._tell_many(group, encode, entering=not was)
            for sub in others:
                self._tell(sub, change, reason, told, entering=not was)
        for reader, what in told.items():
            for message in encode(what):
                self._out.put(reader, message)

    def _tell_many(self, group: Group, encode: Encoder, *, entering: bool) -> list[Sub]:
        """Most readers have one subscription, all of its snapshot, and do not lag: returns the others."""
        others: list[Sub] = []
        messages: dict[int, Message] = {}
        out, behind = self._out, self._behind
        for sub in group.subs:
            reader = sub.reader
            size = out.size(reader)
            if (
                not sub.alone
                or sub.todo
                or size > LAGGING_OVER
                # What is in its transport grows by a flush only: one look between two is enough.
                or (not size and reader.waiting() > LAGGING_OVER)
                or (behind and reader in behind)
            ):
                others.append(sub)
                continue
            message = messages.get(sub.id)
            if message is None:
                message = messages[sub.id] = encode.state(sub.id, whole=entering)
            out.put(reader, message)
        return others

    def _tell(self, sub: Sub, change: Change, reason: str | None, told: dict[Reader, Told], *, entering: bool) -> None:
        job_id, reader = change.job_id, sub.reader
        if job_id in sub.todo:
            if reason is None:
                sub.left.pop(job_id, None)
            elif sub.todo[job_id]:
                sub.left[job_id] = reason
            else:
                del sub.todo[job_id]  # it never knew of it
            return
        if (behind := self._lag(reader, change.seq - 1)) is not None:
            behind.owe(job_id, change.seq, sub.id, reason, entering=entering)
            return
        what = told[reader]
        if reason is None or reason == "filter":
            what.subs.append(sub.id)
            what.whole |= entering or reason is not None
        if reason is not None:
            what.leaves.setdefault(reason, []).append(sub.id)

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

    # -- out

    def send(self, reader: Reader, messages: list[Message]) -> None:
        """Write to one reader, after what it was told before."""
        if messages:
            reader.write(reader.framing([*self._out.take(reader), *messages]))

    def flush(self) -> None:
        """Write what was told."""
        self._out.flush()

    # -- readers that lag

    def _lag(self, reader: Reader, seq: int) -> Backlog | None:
        """The reader's backlog if it lags; it is told everything up to `seq`."""
        behind = self._behind.get(reader)
        if behind is None:
            if self._out.size(reader) > LAGGING_OVER:
                self.flush()  # others were told the same, and share the frame
            if (waiting := reader.waiting()) > LAGGING_OVER:
                behind = self._behind[reader] = Backlog(seq, waiting=waiting, progressed=self._clock())
        return behind

    def sweep(self) -> None:
        """Called every 100 ms: readers that caught up get what they are owed; hopeless ones are given up."""
        self.flush()
        for reader in list(self._subs):
            self.look(reader)

    def look(self, reader: Reader) -> None:
        """See how far one reader is, and go on with it."""
        behind = self._lag(reader, self._hub.seq) if reader in self._subs else None
        if behind is None:
            return
        now, waiting = self._clock(), reader.waiting()
        if waiting < behind.waiting:
            behind.progressed = now
        behind.waiting = waiting
        patience = TOO_SLOW_AFTER if waiting <= MUCH else TOO_SLOW_WITH_MUCH_AFTER
        if waiting >= CAUGHT_UP_UNDER and now - behind.progressed > patience:
            self.leave(reader)
            reader.give_up()
            return
        for _ in range(PARTS_AT_ONCE):
            if reader.waiting() >= CAUGHT_UP_UNDER:
                return
            if not behind:
                del self._behind[reader]
                return
            self.send(reader, behind.take(self._index, self._hub.seq))
            behind.progressed, behind.waiting = now, reader.waiting()
