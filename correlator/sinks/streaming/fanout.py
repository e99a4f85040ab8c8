"""Fan-out: from one published change to every subscription that matches it, for websockets and event streams.

Problem: thousands of connections follow the same jobs. A change must be matched and encoded once instead of once per
connection. A slow connection must neither delay the others nor use unbounded memory. A client must see neither a gap
nor a repetition between its snapshot and the live stream.

Model: subscriptions with equal filters form a `Group`, and a change is matched once per group. The clients of a group
are found once for all changes of a batch, and get its messages together (`_Audience`). A message is encoded once for
all clients that get the same one (`Encoder`). Clients with equal pending messages share one `Outbox` and the bytes of
one frame, so a change creates no object per client (docs/decisions/0021-shared-outboxes.md). A client with more than
`Limits.lagging_over` bytes in its transport lags. It gets a `Backlog` instead of messages: the newest state of each
job, and log lines up to a bound.

Invariants:

- A job that the snapshot of a subscription has still to send (`Sub.todo`) is not sent as a change. The snapshot will
  contain it at its newest revision.
- A subscription holds a job at the revision before the job's next change, so a delta is sufficient.
- A client that has got position `seq` has got every change up to `seq` that matches its synced subscriptions.
- `send` writes the messages that are pending for the client first, so the order of messages never changes.

All methods run on the event loop's thread and never wait.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from correlator.jobs import encoding
from correlator.jobs.directory import JobDirectory
from correlator.jobs.encoding import Documents
from correlator.model.facts import AttributedRow, Kind
from correlator.model.published import Change, Event, PublishedJob
from correlator.model.rows import LEVELS, Level
from correlator.ops import metrics
from correlator.ops.event_loop import timed
from correlator.pipeline.hub import Batch, Hub
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Client, Framing, Message
from correlator.sinks.streaming.subscriptions import EMPTY, Filter, Group, Groups, Sub

_HEAD = struct.Struct(">II")
"""Stored before each line: its length, and the number of its tuple of subscriptions."""

MAX_TOGETHER = 100
"""Subscriptions of one job that share a message, at most."""


class LineBuffer:
    """Log lines in order, in a ring buffer of `capacity` bytes. When it is full, the oldest lines are dropped.

    The buffer is anonymous mapped memory. Small objects that live long would fragment the heap, and a mapping returns
    to the operating system when it is released.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: mmap.mmap | None = None
        self._start = self.size = 0
        self._keys: dict[tuple[int, ...], int] = {}
        self._by_number: list[tuple[int, ...]] = []

    def __bool__(self) -> bool:
        return self.size > 0

    def add(self, subs: tuple[int, ...], line: bytes, dropped: dict[tuple[int, ...], int]) -> int:
        """Append a line. Lines that are dropped for it are counted in `dropped`, by their subscriptions.

        Returns the number of dropped lines.
        """
        if (number := self._keys.get(subs)) is None:
            number = self._keys[subs] = len(self._by_number)
            self._by_number.append(subs)
        record = _HEAD.pack(len(line), number) + line
        if len(record) > self.capacity:
            dropped[subs] = dropped.get(subs, 0) + 1
            return 1
        count = 0
        while self.size + len(record) > self.capacity:
            length, number = self._read_head()
            self._skip(_HEAD.size + length)
            key = self._by_number[number]
            dropped[key] = dropped.get(key, 0) + 1
            count += 1
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, self.capacity)
        at = (self._start + self.size) % self.capacity
        if (first := self.capacity - at) >= len(record):
            self._buffer[at : at + len(record)] = record
        else:
            self._buffer[at:] = record[:first]
            self._buffer[: len(record) - first] = record[first:]
        self.size += len(record)
        return count

    def pop_oldest(self) -> tuple[tuple[int, ...], bytes] | None:
        """Remove the oldest line. Returns its subscriptions and its text, or None when there is none."""
        if not self.size:
            return None
        length, key = self._read_head()
        self._skip(_HEAD.size)
        line = self._read(length)
        self._skip(length)
        return self._by_number[key], line

    def _read_head(self) -> tuple[int, int]:
        assert self._buffer is not None
        if self._start + _HEAD.size <= self.capacity:
            length, key = _HEAD.unpack_from(self._buffer, self._start)
        else:
            length, key = _HEAD.unpack(self._read(_HEAD.size))
        return length, key

    def _read(self, length: int) -> bytes:
        assert self._buffer is not None
        first = min(length, self.capacity - self._start)
        return self._buffer[self._start : self._start + first] + self._buffer[: length - first]

    def _skip(self, length: int) -> None:
        self._start = (self._start + length) % self.capacity
        self.size -= length


class PendingState(NamedTuple):
    """The pending newest state of a job for one subscription.

    `left`: the reason for which the job left the filter; None if it matches. `new`: the client does not have it yet.
    """

    seq: int
    left: str | None
    new: bool


@dataclass(slots=True)
class Backlog:
    """What is pending for one client that lags: the newest state of each job, and log lines up to a bound.

    Its size is bounded in jobs and in bytes, however long the client lags. States are kept in the order of their last
    change, separately for each subscription. So the client always has every change up to the position of the last
    message that it got.

    `seq`: the position up to which the client has every change. `waiting`: bytes in its transport at the last check;
    `progressed`: monotonic seconds of the last check that found fewer.
    """

    seq: int
    lines: LineBuffer
    waiting: int = 0
    progressed: float = 0.0
    jobs: OrderedDict[tuple[str, int], PendingState] = field(default_factory=OrderedDict)
    """By job and subscription, in the order of the last change that concerns both. Finding the first entry of a plain
    dict would visit the place of every entry that has been removed."""
    dropped: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.lines or self.dropped)

    def add(self, job_id: str, seq: int, sub: int, reason: str | None, *, entering: bool) -> None:
        """Replace the pending state of a job for subscription `sub`; it moves to the end of the order."""
        pending = self.jobs.pop((job_id, sub), None)
        new = pending.new if pending is not None else entering
        if reason is None or not new:  # a client that has never had the job needs no delete
            self.jobs[job_id, sub] = PendingState(seq, reason, new)

    def add_line(self, subs: tuple[int, ...], line: bytes) -> int:
        """Keep a log line. Lines that are dropped for it are counted in `dropped`. Returns their number."""
        return self.lines.add(subs, line, self.dropped)

    def add_dropped(self, subs: tuple[int, ...], count: int) -> None:
        """Count lines that were lost before they came here."""
        self.dropped[subs] = self.dropped.get(subs, 0) + count

    def remove_subscription(self, sub: int) -> None:
        """Discard what is pending for a subscription that has ended."""
        self.jobs = OrderedDict((key, pending) for key, pending in self.jobs.items() if key[1] != sub)
        lines, self.lines = self.lines, LineBuffer(self.lines.capacity)
        while (line := lines.pop_oldest()) is not None:
            if left := tuple(i for i in line[0] if i != sub):
                self.lines.add(left, line[1], {})  # there is room for it
        dropped: dict[tuple[int, ...], int] = {}
        for subs, count in self.dropped.items():
            if left := tuple(i for i in subs if i != sub):
                dropped[left] = dropped.get(left, 0) + count
        self.dropped = dropped

    def pop_next(self, published: JobDirectory, documents: Documents, now_at: int, size: int) -> list[Message]:
        """Remove and return the next messages: states, then the numbers of dropped lines, then lines.

        `now_at`: the current position of the hub, which the client has reached when no state is pending any more.
        `size`: bytes of the messages, about.
        """
        messages: list[Message] = []
        while self.jobs and size > 0:
            job_id, seq = next((job_id, pending.seq) for (job_id, _), pending in self.jobs.items())
            subs: dict[int, str | None] = {}
            for key, pending in list(islice(self.jobs.items(), MAX_TOGETHER)):
                if key[0] != job_id or pending.seq != seq:
                    break
                subs[key[1]] = pending.left
                del self.jobs[key]
            self.seq = seq
            part = list(_newest(published, documents, job_id, seq, subs))
            messages += part
            size -= sum(len(m.body) for m in part)
        if not self.jobs:
            self.seq = max(self.seq, now_at)
            messages += [Message(encoding.dropped(subs, count)) for subs, count in self.dropped.items()]
            self.dropped.clear()
            while size > 0 and (line := self.lines.pop_oldest()) is not None:
                messages.append(Message(line[1]))
                size -= len(line[1])
        return messages


def _newest(
    published: JobDirectory, documents: Documents, job_id: str, seq: int, subs: dict[int, str | None]
) -> Iterable[Message]:
    shown = published.get(job_id)
    puts = [s for s, left in subs.items() if left is None or left == "filter"]
    if shown is not None and puts:
        yield Message(encoding.put(puts, seq, shown, documents.encoded(shown)), seq)
    for reason in sorted({left for left in subs.values() if left is not None}):
        yield Message(encoding.delete([s for s, left in subs.items() if left == reason], seq, job_id, reason), seq)


# -- the fan-out


STREAMED: Final = frozenset({Kind.JOB_LATE, Kind.JOB_OVERDUE})
"""The kinds of events that streaming clients get. All others they see in the documents."""

TOGETHER_BYTES: Final = 16 * 1024
"""Bytes of messages that are put together. Then it is checked again which clients lag."""

TOGETHER = 0.02
"""Seconds for which messages are collected under load, at most."""

REST = 1.0
"""After a flush that took t seconds, wait min(20 ms, REST × t) before the next.

Messages that arrive meanwhile share frames.
"""


class Fanout:
    """The subscriptions, outboxes and backlogs of all clients of a listener.

    Args:
        clock: Monotonic seconds.
        call_later: `call_later(delay_s, fn)` schedules `fn`.
    """

    def __init__(
        self,
        hub: Hub,
        limits: Limits,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._hub = hub
        self._published = hub.published
        self._limits = limits
        self._clock = clock
        self.groups = Groups(hub, limits)
        self._log_groups: Counter[Group] = Counter()
        """How many subscriptions of a group get log lines. Those of which none does are not here."""
        self._subs: dict[Client, dict[int, Sub]] = {}
        self._backlogs: dict[Client, Backlog] = {}
        self._outboxes = Outboxes(clock, call_later)
        self._spreading = timed("fanout")

    @property
    def clients(self) -> Collection[Client]:
        return self._subs.keys()

    @property
    def lagging(self) -> int:
        return len(self._backlogs)

    def has(self, client: Client) -> bool:
        """True from `add` until `remove`, or until the client was disconnected because it was too slow."""
        return client in self._subs

    def lags(self, client: Client) -> bool:
        return client in self._backlogs

    def position(self, client: Client) -> int:
        """The `seq` up to which the client has every change of its synced subscriptions."""
        backlog = self._backlogs.get(client)
        return backlog.seq if backlog is not None else self._hub.seq

    def add(self, client: Client) -> None:
        self._subs[client] = {}

    def remove(self, client: Client) -> None:
        self._backlogs.pop(client, None)
        for sub_id in list(self._subs.get(client, ())):
            self.unsubscribe(client, sub_id)
        self._subs.pop(client, None)
        self._outboxes.pop(client)

    def subs(self, client: Client) -> dict[int, Sub]:
        return self._subs.get(client, {})

    def subscribe(
        self,
        client: Client,
        sub_id: int,
        wanted: Filter,
        level: Level | None = None,
        after: int | None = None,
        waiting_ids: Sequence[str] = (),
    ) -> Sub:
        """Register a subscription. Its `todo` lists the jobs of its snapshot as of this moment.

        The source queries often for `waiting_ids`, until the subscription ends.

        `after`: the client has every change up to this position, so `todo` lists the jobs that changed since. If these
        are too many, it gets a snapshot, and `Sub.after` is None.
        """
        self.unsubscribe(client, sub_id)
        with timed("subscribe" if after is None else "resume"):
            group = self.groups.of(wanted)
            sub = Sub(client, sub_id, group, LEVELS.index(level) if level else None, waiting_ids)
            todo = self.groups.missed(group, after) if after is not None else None
            sub.todo, sub.after = (todo, after) if todo is not None else (self.groups.snapshot(group), None)
        group.subs[sub] = None
        if sub.level is not None:
            self._log_groups[group] += 1
        for name in waiting_ids:
            self._hub.waiting_ids.watch_id(name)
        self._subs[client][sub_id] = sub
        self._update_alone(client)
        return sub

    def unsubscribe(self, client: Client, sub_id: int) -> bool:
        """End a subscription. Returns False if there is none with this ID."""
        sub = self._subs.get(client, {}).pop(sub_id, None)
        if sub is None:
            return False
        self._update_alone(client)
        self._write_pending(client)  # these messages name this subscription
        if (backlog := self._backlogs.get(client)) is not None:
            backlog.remove_subscription(sub_id)
        group = sub.group
        del group.subs[sub]
        if sub.level is not None:
            self._log_groups[group] -= 1
            if not self._log_groups[group]:
                del self._log_groups[group]
        for name in sub.waiting_ids:
            self._hub.waiting_ids.unwatch_id(name)
        if not group.subs:
            self.groups.remove(group)
        return True

    def _update_alone(self, client: Client) -> None:
        subs = self._subs.get(client, {}).values()
        for sub in subs:
            sub.alone = len(subs) == 1

    # -- live

    def on_batch(self, batch: Batch) -> None:
        """Send a batch of the hub to the subscriptions that match. The hub's subscriber callback."""
        with self._spreading:
            self._spread_batch(batch)

    def wants_lines(self) -> bool:
        """True if a subscription gets log lines."""
        return bool(self._log_groups)

    def _spread_batch(self, batch: Batch) -> None:
        lines = batch.lines if self._log_groups else ()
        # A line goes to groups that match before or after the batch: its end may take a job out of a filter, and its
        # start may bring it in.
        before = {c.job_id: c.old for c in reversed(batch.changes) if not c.goes_on} if lines else {}
        wrote = before.keys() & {line.job_id for line in lines}
        groups = {job_id: self._line_groups(job_id, before[job_id]) for job_id in wrote}
        audiences: dict[Group, _Audience] = {}
        for change in batch.changes:
            self._spread(change, audiences)
        self._put(audiences)
        for job_id, found in groups.items():
            found.update(self._line_groups(job_id, self._published.get(job_id)))
        if lines:
            self._send_lines(lines, groups, batch.seq)
        if batch.dropped:
            self._send_dropped(batch)
        for event in batch.events:
            if event.kind in STREAMED:
                self._send_event(event, batch.seq)
        self._outboxes.flush_soon()

    def _line_groups(self, job_id: str, shown: PublishedJob | None) -> dict[Group, None]:
        """The groups that have the job and get log lines. `shown`: the job at the moment in question."""
        return {group: None for group in self._log_groups if group.has(job_id, shown)}

    def _send_lines(self, lines: Sequence[AttributedRow], groups: dict[str, dict[Group, None]], seq: int) -> None:
        """Send log lines. `groups`: for some jobs, the groups that get theirs.

        The clients of a line are computed once for each job and level. Lines with the same clients, one after the
        other, are put together.
        """
        keys: dict[tuple[str, Level], _LineClients] = {}
        found: dict[tuple[Group | Level, ...], _LineClients] = {}
        last: _LineClients = {}
        messages: dict[tuple[int, ...], list[Message]] = {}
        size = dropped = 0
        for line in lines:
            job_id, level = line.job_id, line.entry.level
            if job_id is None:
                continue
            clients = keys.get((job_id, level))
            if clients is None:
                concerned = groups.get(job_id)
                if concerned is None:
                    concerned = self._line_groups(job_id, self._published.get(job_id))
                clients = found.get((level, *concerned))
                if clients is None:
                    clients = found[level, *concerned] = _line_clients(level, concerned)
                keys[job_id, level] = clients
            if clients is not last or size > TOGETHER_BYTES:
                dropped += self._put_lines(last, messages, seq)
                last, messages, size = clients, {subs: [] for subs in clients}, 0
            for subs, some in messages.items():
                message = Message(encoding.log(subs, line))
                some.append(message)
                size += len(message.body)
        dropped += self._put_lines(last, messages, seq)
        if dropped:
            metrics.DROPPED_LINES.inc(dropped)

    def _put_lines(self, clients: _LineClients, messages: Mapping[tuple[int, ...], list[Message]], seq: int) -> int:
        """Returns the number of lines for which a backlog has no room."""
        dropped = 0
        for subs, some in clients.items():
            current: list[Client] = []
            for client in some:
                if (backlog := self._lag(client, seq)) is None:
                    current.append(client)
                    continue
                for message in messages[subs]:
                    dropped += backlog.add_line(subs, message.body)
            self._outboxes.put_all(current, messages[subs])
        return dropped

    def _send_dropped(self, batch: Batch) -> None:
        """Send the number of lines that were lost on their way here. Nobody knows which jobs of their appliance."""
        for client, subs in self._subs.items():
            if key := tuple(sorted(sub.id for sub in subs.values() if _may_have_lost(sub, batch.dropped_by))):
                if (backlog := self._lag(client, batch.seq)) is not None:
                    backlog.add_dropped(key, batch.dropped)
                else:
                    self._outboxes.put(client, Message(encoding.dropped(key, batch.dropped)))

    def _send_event(self, event: Event, seq: int) -> None:
        """Send an event to the subscriptions that have its job, after the changes of its batch.

        Others lose it: a client that lags, and a subscription that has still to get the job. The document that they get
        has the state.
        """
        shown = self._published.get(event.job_id)
        wanted: defaultdict[Client, list[int]] = defaultdict(list)
        for group in self.groups.concerned(shown):
            if group.has(event.job_id, shown):
                for sub in group.subs:
                    if event.job_id not in sub.todo:
                        wanted[sub.client].append(sub.id)
        encoded: dict[tuple[int, ...], Message] = {}
        for client, subs in wanted.items():
            if self._lag(client, seq) is None:
                key = tuple(sorted(subs))
                if key not in encoded:
                    encoded[key] = Message(encoding.stream_event(key, seq, event), seq, is_event=True)
                self._outboxes.put(client, encoded[key])

    def _spread(self, change: Change, audiences: dict[Group, _Audience]) -> None:
        job_id, new = change.job_id, change.new
        recipients: defaultdict[Client, Recipients] = defaultdict(Recipients)
        encode = Encoder(change, self._hub.documents)
        if change.old is None:
            self.groups.added(job_id)
        for group in self.groups.concerned(change.old, new):
            was, now = self._moved(group, change)
            if (was and now and change.moved) or not (was or now):
                continue
            if not now:
                self._put(audiences)
                reason = change.reason or group.left_by(new)
                for sub in group.subs:
                    self._send_or_defer(sub, change, reason, recipients, entering=False)
                continue
            audience = audiences.get(group)
            if audience is not None and audience.size > TOGETHER_BYTES:
                self._put(audiences)
                audience = None
            if audience is None:
                audience = audiences[group] = self._audience(group)
            for sub_id, (_, messages) in audience.current.items():
                message = encode.state(sub_id, whole=not was)
                messages.append(message)
                audience.size += len(message.body)
            for sub in audience.others:
                self._send_or_defer(sub, change, None, recipients, entering=not was)
        for client, recipient in recipients.items():
            for message in encode(recipient):
                self._outboxes.put(client, message)

    def _moved(self, group: Group, change: Change) -> tuple[bool, bool]:
        """Whether the group had the job before the change, and has it now."""
        job_id, new = change.job_id, change.new
        was = group.has(job_id, change.old)
        if change.goes_on:
            return was, was
        now = new is not None and group.matches(new) and group.filter.names(new, self._published)
        if group.filter.jobs is not None:
            (group.members.add if now else group.members.discard)(job_id)
        return was, now

    def _audience(self, group: Group) -> _Audience:
        """The subscriptions that get the next changes of a group: computed once for all changes of a batch."""
        current: dict[int, tuple[list[Client], list[Message]]] = {}
        others: list[Sub] = []
        outboxes, backlogs, lagging_over = self._outboxes, self._backlogs, self._limits.lagging_over
        last, clients = -1, list[Client]()
        for sub in group.subs:
            client = sub.client
            if outboxes and outboxes.size(client) > lagging_over:
                self.flush()
            if (
                not sub.alone
                or (sub.todo is not EMPTY and sub.todo)
                or client.waiting() > lagging_over
                or (backlogs and client in backlogs)
            ):
                others.append(sub)
                continue
            if sub.id != last:
                last, clients = sub.id, current.setdefault(sub.id, ([], []))[0]
            clients.append(client)
        return _Audience(current, others)

    def _put(self, audiences: dict[Group, _Audience]) -> None:
        """Put what was collected, before something else is put for the same clients."""
        for audience in audiences.values():
            for clients, messages in audience.current.values():
                self._outboxes.put_all(clients, messages)
        audiences.clear()

    def _send_or_defer(
        self, sub: Sub, change: Change, reason: str | None, recipients: dict[Client, Recipients], *, entering: bool
    ) -> None:
        job_id, client = change.job_id, sub.client
        if job_id in sub.todo:
            return
        if (backlog := self._lag(client, change.seq - 1)) is not None:
            backlog.add(job_id, change.seq, sub.id, reason, entering=entering)
            return
        recipient = recipients[client]
        if reason is None or reason == "filter":
            recipient.subs.append(sub.id)
            recipient.whole |= entering or reason is not None
        if reason is not None:
            recipient.leaves.setdefault(reason, []).append(sub.id)

    # -- writing

    def send(self, client: Client, messages: list[Message]) -> None:
        """Write messages to one client, after those that are pending for it."""
        if messages:
            client.write(client.framing([*self._outboxes.pop(client), *messages]))

    def write(self, client: Client, framed: bytes) -> None:
        """Write a frame to one client, after the messages that are pending for it."""
        self._write_pending(client)
        client.write(framed)

    def _write_pending(self, client: Client) -> None:
        if pending := self._outboxes.pop(client):
            client.write(client.framing(pending))

    def flush(self) -> None:
        """Write the pending messages of all clients."""
        self._outboxes.flush()

    # -- lagging clients

    def _lag(self, client: Client, seq: int) -> Backlog | None:
        """The client's backlog if it lags. A new backlog begins at `seq`, up to which everything has been written."""
        backlog = self._backlogs.get(client)
        if backlog is None:
            if self._outboxes.size(client) > self._limits.lagging_over:
                self.flush()  # for all clients, so that equal messages share a frame
            if (waiting := client.waiting()) > self._limits.lagging_over:
                has_room = len(self._backlogs) < self._limits.max_line_buffers
                lines = LineBuffer(self._limits.line_buffer if has_room else 0)
                backlog = Backlog(seq, lines, waiting=waiting, progressed=self._clock())
                self._backlogs[client] = backlog
        return backlog

    def check(self, client: Client) -> int:
        """Send a lagging client the next parts of its backlog if it has caught up; disconnect it if it is too slow.

        Returns the number of parts.
        """
        backlog = self._lag(client, self._hub.seq) if client in self._subs else None
        if backlog is None:
            return 0
        limits, now, waiting = self._limits, self._clock(), client.waiting()
        if waiting < backlog.waiting:
            backlog.progressed = now
        backlog.waiting = waiting
        large = waiting > limits.large_buffer
        patience = limits.too_slow_with_large_buffer_after if large else limits.too_slow_after
        most = min(limits.max_waiting_states, limits.max_waiting_states_of_all // len(self._backlogs))
        if len(backlog.jobs) > most or (waiting >= limits.caught_up_under and now - backlog.progressed > patience):
            self.remove(client)
            client.give_up()
            return 0
        for sent in range(limits.backlog_parts_at_once):
            if client.waiting() >= limits.caught_up_under:
                return sent
            if not backlog:
                del self._backlogs[client]
                return sent
            part = backlog.pop_next(self._published, self._hub.documents, self._hub.seq, limits.backlog_part)
            self.send(client, part)
            backlog.progressed, backlog.waiting = now, client.waiting()
        return limits.backlog_parts_at_once

    def sweep(self) -> Iterator[None]:
        """Check all clients in steps, as many that lag have more to get than one call may send.

        Let the event loop run between the steps.
        """
        clients, limits = deque(self.clients), self._limits
        self.flush()
        while clients:
            with timed("sweep"):
                parts = 0
                for _ in range(min(len(clients), limits.swept_at_once)):
                    parts += self.check(clients.popleft())
                    if parts >= limits.backlog_parts_at_once:
                        break
            yield


_LineClients: TypeAlias = Mapping[tuple[int, ...], Sequence[Client]]
"""Clients by the IDs of their subscriptions that get a line."""


def _line_clients(level: Level, groups: Iterable[Group]) -> _LineClients:
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


@dataclass(slots=True, eq=False)
class _Audience:
    """The subscriptions that get the changes of a group, and the messages that are collected for them.

    `current`: by the ID of the subscription, the clients that have only this one, have no more to get of its snapshot,
    and do not lag, as most; all get the same messages. `others`: the other subscriptions. `size`: bytes collected.
    """

    current: dict[int, tuple[list[Client], list[Message]]]
    others: list[Sub]
    size: int = 0


@dataclass(slots=True)
class Recipients:
    """The subscriptions of one client that a change concerns.

    `subs`: those that the job matches. `whole`: one of them does not have the job yet, so the whole document is sent.
    `leaves`: those that the job leaves, by reason.
    """

    subs: list[int] = field(default_factory=list)
    whole: bool = False
    leaves: dict[str, list[int]] = field(default_factory=dict)


class Encoder:
    """Encodes the messages of one change. A call yields the messages for one client, each encoded only once."""

    __slots__ = ("_change", "_documents", "_known", "_patch")

    def __init__(self, change: Change, documents: Documents) -> None:
        self._change = change
        self._documents = documents
        self._known: dict[tuple[str, tuple[int, ...]], Message] = {}
        self._patch: bytes | None = None

    def state(self, sub: int, *, whole: bool) -> Message:
        """The message for a client with one subscription, which the job matches."""
        return self._message("put" if whole else "delta", (sub,))

    def __call__(self, recipients: Recipients) -> Iterator[Message]:
        if recipients.subs and self._change.new is not None:
            yield self._message("put" if recipients.whole else "delta", tuple(recipients.subs))
        for reason in sorted(recipients.leaves):
            yield self._message(reason, tuple(recipients.leaves[reason]))

    def _message(self, kind: str, subs: tuple[int, ...]) -> Message:
        """`kind`: put or delta; else the reason for which the job leaves."""
        message = self._known.get((kind, subs))
        if message is None:
            message = self._known[kind, subs] = Message(self._encoded(kind, subs), self._change.seq)
        return message

    def _encoded(self, kind: str, subs: tuple[int, ...]) -> bytes:
        old, new, seq = self._change.old, self._change.new, self._change.seq
        if new is not None and old is not None and kind == "delta":
            if self._patch is None:
                self._patch = self._documents.patch(old, new, goes_on=self._change.goes_on)
            return encoding.delta(subs, seq, new, old.rev, self._patch)
        if new is not None and kind in ("put", "delta"):
            return encoding.put(subs, seq, new, self._documents.encoded(new))
        return encoding.delete(subs, seq, self._change.job_id, kind)


class Outboxes:
    """Pending messages per client.

    Args:
        clock: Monotonic seconds.
        call_later: `call_later(delay_s, fn)` schedules `fn`.
    """

    def __init__(self, clock: Callable[[], float], call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._clock = clock
        self._call_later = call_later
        self._writing = timed("write")
        self._out: dict[Client, Outbox] = {}
        self._steps: dict[tuple[int, int], Outbox] = {}
        """Outboxes by the identities of `before` and of what was put; shared by clients until the next flush."""
        self._next = 0.0
        """Monotonic seconds before which `flush_soon` does not write."""
        self._flushing = False

    def __bool__(self) -> bool:
        """True if messages are pending for any client."""
        return bool(self._out)

    def size(self, client: Client) -> int:
        """Bytes that are pending for a client."""
        outbox = self._out.get(client)
        return outbox.size if outbox is not None else 0

    def put(self, client: Client, message: Message) -> None:
        """Append a message to a client's outbox."""
        self._append((client,), (message,), id(message))

    def put_all(self, clients: Sequence[Client], messages: Sequence[Message]) -> None:
        """Append all `messages`, a sequence that does not change any more, to the outbox of each of `clients`."""
        if messages:
            self._append(clients, messages, id(messages))

    def _append(self, clients: Sequence[Client], messages: Sequence[Message], identity: int) -> None:
        out, first, step = self._out, None, None
        for client in clients:
            before = out.get(client)
            if step is None or before is not first:  # else it is as for the previous client
                first, key = before, (id(before), identity)
                step = self._steps.get(key)
                if step is None:
                    size = sum([len(message.body) for message in messages], before.size if before is not None else 0)
                    step = self._steps[key] = Outbox(before, messages, size)
            out[client] = step

    def pop(self, client: Client) -> list[Message]:
        """Remove and return the pending messages of a client."""
        outbox = self._out.pop(client, None)
        return outbox.messages() if outbox is not None else []

    def flush(self) -> None:
        """Write all pending messages. Clients with equal messages and the same framing get the same frame."""
        self._flushing = False
        out, self._out = self._out, {}
        self._steps = {}
        if not out:
            return
        with self._writing:
            self._write(out)

    def _write(self, out: dict[Client, Outbox]) -> None:
        began = self._clock()
        framed: dict[tuple[Framing, int], bytes] = {}
        last, last_framing, frame = None, None, b""
        for client, outbox in out.items():
            framing = client.framing
            if outbox is not last or framing is not last_framing:
                last, last_framing, key = outbox, framing, (framing, id(outbox))
                frame = framed.get(key) or framed.setdefault(key, framing(outbox.messages()))
            client.write(frame)
        ended = self._clock()
        self._next = ended + min(TOGETHER, REST * (ended - began))

    def flush_soon(self) -> None:
        """Flush now, or schedule a flush if the previous one was too recent (see `REST`)."""
        if self._flushing or not self._out:
            return
        wait = self._next - self._clock()
        if wait <= 0:
            self.flush()
        else:
            self._flushing = True
            self._call_later(wait, self.flush)


class Outbox(Struct, frozen=True, eq=False):
    """A linked list of pending messages: those of `before`, then those of `last`. `size`: bytes of all bodies."""

    before: Outbox | None
    last: Sequence[Message]
    size: int

    def messages(self) -> list[Message]:
        found: list[Sequence[Message]] = []
        step: Outbox | None = self
        while step is not None:
            found.append(step.last)
            step = step.before
        return list(chain.from_iterable(reversed(found)))


def _may_have_lost(sub: Sub, instance: str) -> bool:
    """True if a line of this appliance may have been one for the subscription."""
    instances = sub.group.filter.query.instance
    return sub.level is not None and (not instances or instance in instances)
