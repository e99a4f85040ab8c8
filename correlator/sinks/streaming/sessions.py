"""The protocol of a stream, independent of the connection: snapshots, resumption, bookmarks and status messages.

A listener has one `Streams` for each hub, so that a change is matched and encoded once for websockets and event streams
together. The messages of a snapshot, or of what a client missed, are built once for all clients at the same place: to
join the documents of 20,000 jobs for each of a hundred pages that reconnect took more CPU time than to write them.

Invariant: a kept part is what would be built now. Nothing but a change of a job makes another part of the same place,
and each change takes the next `seq`, which discards all kept parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from msgspec import Struct

from correlator.errors import SourceUnavailable
from correlator.jobs import encoding
from correlator.jobs.fold import vm_name
from correlator.model.messages import Bookmark, Bye, Resync, SourceStatus, Synced, Welcome
from correlator.model.published import PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import Level
from correlator.ops.event_loop import STUCK_AFTER, timed
from correlator.pipeline.hub import Hub, Shows
from correlator.sinks.streaming.fanout import Fanout
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.messages import Client, Framing, Message, Resume
from correlator.sinks.streaming.subscriptions import EMPTY, Filter, Group, Groups, Sub, TodoPlace
from correlator.sinks.turns import Refused, Work
from correlator.tasks import Backoff, set_within

AHEAD_WITHIN = 2.0
"""Seconds that a client waits at a gateway that has read less of the stream than the client."""

IN_ONE_TURN = 0.001
"""Seconds of a turn after which no further part is begun."""

SWEEP_EVERY, LAGGING_SWEEP_EVERY = 0.25, 0.1
"""Seconds between two sweeps; the second while clients lag, which get their backlogs in sweeps."""

PART_OVERHEAD = 500
"""Approximate bytes of a kept part besides its frame."""

BEHIND = "this gateway has not read yet what this client has got from another one: connect again"
"""Why a stream does not begin."""


class Streams:
    """The streaming clients of one listener. Use it on the event loop's thread. `clock`: monotonic seconds."""

    def __init__(
        self,
        hub: Hub,
        limits: Limits = DEFAULT,
        work: Work | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub = hub
        self.limits = limits
        self.work = work or Work()
        self._clock = clock
        self.fanout = Fanout(hub, limits, clock, lambda s, f: asyncio.get_running_loop().call_later(s, f))
        self._parts = SnapshotParts(hub, self.fanout.groups, limits)
        self._tasks: dict[Client, set[asyncio.Task[None]]] = {}
        self._added = asyncio.Event()

    async def run(self) -> None:
        """Follow the hub, check all clients regularly and send bookmarks, until cancelled. Without clients, rest."""
        subscriptions = (
            self._hub.subscribe(self.fanout.on_batch, self.fanout.wants_lines),
            self._hub.status.subscribe(self._status_changed),
        )
        bookmark = self._clock() + self.limits.bookmark_every
        try:
            with self._hub.live.heartbeat("readers", STUCK_AFTER) as beat:
                while True:
                    if self.fanout.clients:
                        await asyncio.sleep(LAGGING_SWEEP_EVERY if self.fanout.lagging else SWEEP_EVERY)
                    else:
                        await self._first_client()
                    for _ in self.fanout.sweep():
                        beat()  # One sweep over very many clients that lag may take long.
                        await asyncio.sleep(0)
                    beat()
                    if self._clock() >= bookmark:
                        bookmark = self._clock() + self.limits.bookmark_every
                        self._bookmark()
        finally:
            for unsubscribe in subscriptions:
                unsubscribe()

    async def _first_client(self) -> None:
        """Wait for a client, and at most as long as between two bookmarks."""
        self._added.clear()
        await set_within(self._added, self.limits.bookmark_every)

    def clients(self) -> dict[str, int]:
        """Number of clients by transport."""
        return {"websocket": 0, "sse": 0, **Counter(r.transport for r in self.fanout.clients)}

    def add(self, client: Client) -> None:
        """Register a connection."""
        self._tasks[client] = set()
        self.fanout.add(client)
        self._added.set()

    def remove(self, client: Client) -> None:
        """End the subscriptions and tasks of a connection. Does nothing for a client that is not registered."""
        self.fanout.remove(client)
        for task in self._tasks.pop(client, ()):
            task.cancel()

    def send(self, client: Client, message: Struct, seq: int | None = None) -> None:
        self.fanout.send(client, [Message(encoding.encode(message), seq)])

    async def refusal(self, resume: Resume | None) -> str | None:
        """Why a stream cannot begin now, or None if it can. Waits for the position of a client that is ahead.

        A client that is still ahead would get older documents than it has. So it is refused, unless the position
        is none of this stream.
        """
        seq = resume.seq if resume is not None and resume.epoch == self._hub.epoch else 0
        if not await self._hub.reached(seq, AHEAD_WITHIN) and await self._hub.is_behind(seq):
            return self._hub.refusal() or BEHIND
        return self._hub.refusal()

    def welcome(self, client: Client, resume: Resume | None) -> None:
        """Register a connection and send `welcome`. `resume`: the position that the client wants to continue from."""
        self.add(client)
        epoch, seq, resumed = self._hub.epoch, self._hub.seq, self.can_resume(client, resume)
        self.send(client, Welcome(epoch, seq, resumed, int(self.limits.ping_seconds), self._daemon_time()))

    def bye(self, client: Client, code: int) -> None:
        """Send `bye`: the connection ends with this close code, and the client may reconnect within 5 s."""
        self.send(client, Bye(code, [0, 5000]))

    def can_resume(self, client: Client, resume: Resume | None) -> bool:
        """True if every change since that position is still known, and may be told.

        What left a filter since may be a job that the client must not see, or never had: a restricted one gets a
        snapshot, which has only what is in its filter now.
        """
        if client.is_restricted:
            return False
        return resume is not None and resume.epoch == self._hub.epoch and self._hub.reaches(resume.seq)

    async def subscribe(
        self,
        client: Client,
        sub_id: int,
        wanted: Filter,
        level: Level | None,
        *,
        resume: Resume | None = None,
        resuming: bool = False,
    ) -> None:
        """Register a subscription and start to send the changes since `resume`, or a snapshot.

        Args:
            resuming: The client holds state of an earlier connection. If the changes since then are no longer known,
                it gets `resync` before the snapshot, and discards that state.
        """
        shows = partial(_is_of, wanted.query.vm_name) if client.is_restricted and wanted.query.vm_name else None
        archived, not_searched = await self._find_in_database(client, wanted.jobs or (), shows)
        if not await self._turn(client):
            return  # the client was removed meanwhile
        published = self._hub.published
        after = resume.seq if resume is not None and self.can_resume(client, resume) else None
        unknown = [n for n in sorted(wanted.jobs or ()) if self._is_unknown(n, wanted, archived.get(n))]
        sub = self.fanout.subscribe(client, sub_id, wanted, level, after, unknown)
        extra: list[PublishedJob] = []
        if sub.after is None:
            if resuming:
                other = resume is not None and resume.epoch != self._hub.epoch
                self.send(client, Resync("epoch" if other else "gap"))
            extra = [s for n, s in archived.items() if published.resolve(n) is None and wanted.query.matches(s)]
        self._start_sending(client, sub, self._catch_up(client, sub, extra))
        if not_searched:
            self.start(client, self._keep_searching(client, sub, not_searched, shows))

    async def find(self, client: Client, name: str, shows: Shows | None = None) -> tuple[PublishedJob, Resolved] | None:
        """The job that an ID names, in the client's turn. Raises: `SourceUnavailable`, `Refused`."""
        return await self.work.find(self._hub, name, client.address, shows)

    async def put(self, client: Client, name: str, within: float, shows: Shows | None = None) -> bool:
        """Send the whole document of the job that the ID `name` resolves to, if the client may see it (`shows`).

        Returns False if there is no such job.

        Raises:
            SourceUnavailable: The job is not in memory, and the database cannot be queried.
            Refused: The client's turn to query it did not come.
            TimeoutError: The database did not answer within `within` seconds.
        """
        async with asyncio.timeout(within):
            known = await self.find(client, name, shows)
        await self._wait_until_current(client)
        if known is None or not await self._turn(client):
            return known is not None
        shown, seq = known[0], self.fanout.position(client)
        now = self._hub.published.get(shown.job_id)
        subs = [s.id for s in self.fanout.subs(client).values() if s.group.has(shown.job_id, now)]
        body = encoding.put(subs, seq, shown, self._hub.documents.encoded(shown))
        self.fanout.send(client, [Message(body, seq)])
        return True

    async def _find_in_database(
        self, client: Client, names: Iterable[str], shows: Shows | None
    ) -> tuple[dict[str, PublishedJob], list[str]]:
        """Search the database for IDs that are not in memory; recent jobs that it finds are loaded into memory.

        An ID of a job in memory that the client must not see (`shows`) is searched for like one that is not there.

        Returns the jobs by ID, and the IDs that were not searched within `Limits.find_within` seconds.
        """
        found: dict[str, PublishedJob] = {}
        missing = [n for n in sorted(names) if not self._is_in_memory(n, shows)]
        asked = 0
        with contextlib.suppress(TimeoutError, SourceUnavailable, Refused):
            async with asyncio.timeout(self.limits.find_within):
                for name in missing:
                    if (known := await self._find_old(client, name, shows)) is not None:
                        found[name] = known
                    asked += 1
        return found, missing[asked:]

    def _is_in_memory(self, name: str, shows: Shows | None) -> bool:
        published = self._hub.published
        if (resolved := published.resolve(name)) is None:
            return False
        return shows is None or ((found := published.get(resolved.job_id)) is not None and shows(found))

    async def _keep_searching(self, client: Client, sub: Sub, names: list[str], shows: Shows | None) -> None:
        """Search the database for the remaining IDs, with retries, and send each job that is found as a `put`."""
        backoff = Backoff(0.5, 2.0, 10.0)
        while names and self._is_current(client, sub):
            name = names[0]
            try:
                known = await self._find_old(client, name, shows)
            except (SourceUnavailable, Refused):
                await asyncio.sleep(backoff.next())
                continue
            names.pop(0)
            await self._wait_until_current(client)
            if known is None or not self._is_current(client, sub) or self._hub.published.resolve(name) is not None:
                continue  # the fan-out sends jobs that are in memory
            if sub.group.filter.query.matches(known):
                seq = self.fanout.position(client)
                body = encoding.put([sub.id], seq, known, self._hub.documents.encoded(known))
                self.fanout.send(client, [Message(body, seq)])

    async def _find_old(self, client: Client, name: str, shows: Shows | None) -> PublishedJob | None:
        """The job that an ID names, unless memory is about to have it: then the fan-out sends what it became."""
        known = await self.find(client, name, shows)
        return known[0] if known is not None and not self._hub.published.expects(known[0], self._hub.clock()) else None

    def _start_sending(self, client: Client, sub: Sub, step: Iterator[None]) -> None:
        """Send the first part at once, so that the snapshot precedes any change; the others at the client's pace."""
        if not self._is_behind(client) and self._advance(step):
            return
        self.start(client, self._continue_sending(client, sub, step))

    def start(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task that is cancelled when the client is removed."""
        if client not in self._tasks:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks[client].add(task)
        task.add_done_callback(lambda t: self._tasks.get(client, set()).discard(t))

    async def _continue_sending(self, client: Client, sub: Sub, step: Iterator[None]) -> None:
        await self._wait_until_current(client)
        while await self._turn(client) and self._is_current(client, sub):
            until = self._clock() + IN_ONE_TURN  # A kept part costs less than a turn does.
            while not self._is_behind(client) and self._clock() < until:
                if self._advance(step):
                    return
            await self._wait_until_current(client)

    def _advance(self, step: Iterator[None]) -> bool:
        """Run the next step. Returns True after the last one."""
        with timed("snapshot"):
            return next(step, self) is self

    def _catch_up(self, client: Client, sub: Sub, extra: Sequence[PublishedJob]) -> Iterator[None]:
        """Send the snapshot, newest jobs first, or what the client missed; each step sends one part."""
        late = deque(extra)
        count, sent, more = 0, sub.after is not None, True  # a snapshot has one message at least
        while more:
            part = self._parts.pop_next(sub, client.framing, late)
            count, more = count + part.jobs, part.more
            if part.frame and (part.jobs or not sent or not more):
                self.fanout.write(client, part.frame)
                sent = True
            if more:
                yield
        self._synced(client, sub, count)

    def _synced(self, client: Client, sub: Sub, count: int) -> None:
        unknown = [n for n in sub.waiting_ids if self._is_unknown(n, sub.group.filter)]
        seq = self._hub.seq
        sub.todo = EMPTY  # which keeps no order alive
        self.fanout.flush()
        client.synced()
        self.send(client, Synced(sub.id, seq, count, unknown), seq)
        self.fanout.send(client, [self._status()])

    def _is_unknown(self, name: str, wanted: Filter, archived: PublishedJob | None = None) -> bool:
        """True if no job has this ID. Of a VM, its jobs are all that there is: a client may not see any other one.

        `archived`: what the database has.
        """
        resolved = self._hub.published.resolve(name)
        found = self._hub.published.get(resolved.job_id) if resolved is not None else archived
        return found is None or bool(wanted.query.vm_name and not _is_of(wanted.query.vm_name, found))

    def _is_current(self, client: Client, sub: Sub) -> bool:
        """True if the subscription has neither been replaced nor ended."""
        return self.fanout.subs(client).get(sub.id) is sub

    async def _wait_until_current(self, client: Client) -> None:
        """Wait until the client does not lag, so that the hub's current position is its own too."""
        await asyncio.sleep(0)
        while self.fanout.has(client) and self._is_behind(client):
            await asyncio.sleep(0.01)
            self.fanout.check(client)

    def _is_behind(self, client: Client) -> bool:
        return client.waiting() > self.limits.lagging_over or self.fanout.lags(client)

    async def _turn(self, client: Client) -> bool:
        """Wait for the client's turn, which ends with the next await. Returns False if the client was removed."""
        try:
            async with self.work.parts.turn(client.address):
                pass
        except Refused:
            self.fanout.remove(client)
            client.give_up()
        return self.fanout.has(client)

    def _bookmark(self) -> None:
        self._parts.clear()  # what idle pages have no use for
        self.fanout.groups.forget_missed()
        seq = self._hub.seq
        message = Message(encoding.encode(Bookmark(seq, self._daemon_time())), seq)
        messages = [message] if self._hub.status.database == "live" else [message, self._status()]
        self.fanout.flush()
        for client in list(self.fanout.clients):
            if not self.fanout.lags(client):  # a lagging client has still to get changes before this seq
                self.fanout.send(client, messages)

    def _status_changed(self) -> None:
        message = [self._status()]
        for client in list(self.fanout.clients):
            self.fanout.send(client, message)

    def _status(self) -> Message:
        status = self._hub.status
        return Message(encoding.encode(SourceStatus(status.database, status.lag_seconds, status.public_error)))

    def _daemon_time(self) -> str:
        """The daemon's current time (RFC 3339). A client computes the offset of its own clock from it."""
        return encoding.rfc3339(self._hub.clock())


class SnapshotParts:
    """The parts that were built last, up to `Limits.kept_parts` bytes. Call it from the event loop's thread only."""

    def __init__(self, hub: Hub, groups: Groups, limits: Limits) -> None:
        self._hub = hub
        self._groups = groups
        self._limits = limits
        self._kept: OrderedDict[_PartKey, SnapshotPart] = OrderedDict()
        self._seq = 0
        """The position at which the kept parts were built."""
        self.size = 0
        """Bytes of the kept parts."""

    def pop_next(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> SnapshotPart:
        """Remove the next jobs from the subscription's `todo`, then from `late`, and return their message."""
        if self._seq != self._hub.seq:
            self.clear()
        # A filter that names IDs has an order of its own, which no other page follows.
        if late or sub.group.filter.jobs is not None:
            return self._build(sub, framing, late)
        key = _PartKey(sub.todo.place, sub.after, sub.group, sub.id, framing)
        part = self._kept.get(key)
        if part is not None:
            sub.todo.skip_to(part.end)
            return part
        part = self._kept[key] = self._build(sub, framing, late)
        self.size += len(part.frame) + PART_OVERHEAD
        while self.size > self._limits.kept_parts:
            self.size -= len(self._kept.popitem(last=False)[1].frame) + PART_OVERHEAD
        return part

    def clear(self) -> None:
        self._kept.clear()
        self.size, self._seq = 0, self._hub.seq

    def _build(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> SnapshotPart:
        return self._snapshot(sub, framing, late) if sub.after is None else self._missed(sub, framing, sub.after)

    def _snapshot(self, sub: Sub, framing: Framing, late: deque[PublishedJob]) -> SnapshotPart:
        get, has, encoded = self._hub.published.get, sub.group.has, self._hub.documents.encoded
        limits, todo, full = self._limits, sub.todo, self._limits.snapshot_part
        jobs: list[bytes] = []
        size = visited = 0
        while size < full and len(jobs) < limits.max_snapshot_part and visited < limits.max_visited:
            job_id = todo.pop_next()
            if job_id is None:
                break
            visited += 1
            # The state now: changes of a job that is still in `todo` were not sent.
            shown = get(job_id)
            if shown is not None and has(job_id, shown):
                jobs.append(encoded(shown, all_jobs=True))
                size += len(jobs[-1])
        while late and not todo and size < full:
            jobs.append(encoded(late.popleft(), all_jobs=True))
            size += len(jobs[-1])
        more = bool(todo) or bool(late)
        body = encoding.snapshot(sub.id, self._hub.seq, jobs, more=more)
        return SnapshotPart(framing([Message(body)]), len(jobs), todo.place, more)

    def _missed(self, sub: Sub, framing: Framing, after: int) -> SnapshotPart:
        """The newest state of jobs that changed, and a `delete` of each that left the filter."""
        get, group, seq = self._hub.published.get, sub.group, self._hub.seq
        limits, todo, full = self._limits, sub.todo, self._limits.snapshot_part
        messages: list[Message] = []
        jobs = size = visited = 0
        while size < full and jobs < limits.max_snapshot_part and visited < limits.max_visited:
            job_id = todo.pop_next()
            if job_id is None:
                break
            visited += 1
            shown = get(job_id)
            matches = shown is not None and group.has(job_id, shown)
            left = None if matches else self._groups.left(group, job_id, after)
            found: list[bytes] = []
            if shown is not None and (matches or left == "filter"):
                found.append(encoding.put([sub.id], seq, shown, self._hub.documents.encoded(shown)))
            if left is not None:
                reason = "filter" if left == "maybe" else left
                found.append(encoding.delete([sub.id], seq, job_id, reason))
            messages += map(Message, found)
            size += sum(map(len, found))
            jobs += bool(found)
        return SnapshotPart(framing(messages) if messages else b"", jobs, todo.place, bool(todo))


def _is_of(name: str, shown: PublishedJob) -> bool:
    """True if a job is of the VM with this name."""
    return vm_name(shown.view) == name


class SnapshotPart(NamedTuple):
    """One message of a snapshot, or several of what was missed, framed.

    `frame`: empty if no job concerns the client. `jobs`: their number. `end`: the place after it. `more`: more follow.
    """

    frame: bytes
    jobs: int
    end: TodoPlace
    more: bool


class _PartKey(NamedTuple):
    place: TodoPlace
    after: int | None
    group: Group
    sub: int
    framing: Framing
