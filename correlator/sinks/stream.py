"""What every streaming reader gets, whatever its connection: snapshots, what it missed, bookmarks, the state behind.

One for the whole listener, so that a change is matched and encoded once for websockets and event streams together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from correlator.backoff import Backoff
from correlator.errors import SourceUnavailable
from correlator.hub import Hub
from correlator.jobs import wire
from correlator.jobs.model import Change, Level, Shown
from correlator.liveness import STUCK_AFTER
from correlator.sinks.fanout import LAGGING_OVER, Fanout, Sub
from correlator.sinks.filters import Filter
from correlator.sinks.messages import Message, Reader

BOOKMARK_EVERY = 8.0
"""Seconds; ten at the most are promised."""

SWEEP_EVERY = 0.1
CHUNK = 32 * 1024
"""Bytes of documents in one message of a snapshot, about."""

MAX_CHUNK = 200
LOOK_UP_WITHIN = 2.0
"""Seconds that the database is given to find the IDs of a subscription that memory does not know."""


class Resume(Struct, frozen=True):
    """How far a reader had come when it was here before: position `seq` of the run `epoch`."""

    epoch: str
    seq: int


class Streams:
    """The streaming readers of one listener."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.fanout = Fanout(hub, time.monotonic, lambda s, f: asyncio.get_running_loop().call_later(s, f))
        self._held: dict[Reader, dict[int, list[str]]] = {}
        self._sending: dict[Reader, set[asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """What all readers need from time to time, for ever."""
        stop = self._hub.listen(self.fanout.hear), self._hub.listen_status(self._status_changed)
        bookmark = time.monotonic() + BOOKMARK_EVERY
        try:
            with self._hub.live.part("readers", STUCK_AFTER) as beat:
                while True:
                    await asyncio.sleep(SWEEP_EVERY)
                    self.fanout.sweep()
                    beat()
                    if time.monotonic() >= bookmark:
                        bookmark = time.monotonic() + BOOKMARK_EVERY
                        self._bookmark()
        finally:
            for leave in stop:
                leave()

    def readers(self) -> dict[str, int]:
        """How many there are, by the kind of their connection."""
        return {"websocket": 0, "sse": 0, **Counter(r.transport for r in self.fanout.readers)}

    def join(self, reader: Reader) -> None:
        self._held[reader], self._sending[reader] = {}, set()
        self.fanout.join(reader)

    def leave(self, reader: Reader) -> None:
        for sub_id in list(self._held.get(reader, ())):
            self._release(reader, sub_id)
        self._held.pop(reader, None)
        self.fanout.leave(reader)
        for task in self._sending.pop(reader, ()):
            task.cancel()

    def say(self, reader: Reader, message: dict[str, Any], seq: int | None = None) -> None:
        self.fanout.send(reader, [Message(wire.encode(message), seq)])

    def can_resume(self, resume: Resume | None) -> bool:
        """Whether what a reader missed since then can be told change by change."""
        return resume is not None and resume.epoch == self._hub.epoch and self._missed(resume) is not None

    async def subscribe(
        self,
        reader: Reader,
        sub_id: int,
        wanted: Filter,
        level: Level | None,
        *,
        resume: Resume | None = None,
        back: bool = False,
    ) -> None:
        """Register a subscription and start to send what it is owed: what it missed since `resume`, else a snapshot.

        `back`: the reader believes that it has something already; where it cannot be told what it missed, it is told
        that all comes anew.
        """
        archived, unasked = await self._look_up(wanted.jobs or ())
        if not self.fanout.knows(reader):
            return  # it left, or was given up, while the database was asked
        index = self._hub.index
        self._release(reader, sub_id)
        missed = self._missed(resume) if resume is not None and resume.epoch == self._hub.epoch else None
        unknown = [n for n in sorted(wanted.jobs or ()) if index.resolve(n) is None and n not in archived]
        if missed is not None:
            sub = self.fanout.resume(reader, sub_id, wanted, level, missed)
            extra = []
        else:
            if back:
                other = resume is not None and resume.epoch != self._hub.epoch
                self.say(reader, {"type": "resync", "reason": "epoch" if other else "gap"})
            sub = self.fanout.subscribe(reader, sub_id, wanted, level)
            extra = [s for n, s in archived.items() if index.resolve(n) is None and wanted.query.matches(s)]
        self._held[reader][sub_id] = unknown
        for name in unknown:
            self._hub.hold(name)
        step = self._replay(reader, sub, unknown) if missed is not None else self._snapshot(reader, sub, unknown, extra)
        self._begin(reader, sub, step)
        if unasked:
            self._start(reader, self._keep_asking(reader, sub, unasked))

    def unsubscribe(self, reader: Reader, sub_id: int) -> bool:
        self._release(reader, sub_id)
        return self.fanout.unsubscribe(reader, sub_id)

    async def put(self, reader: Reader, name: str) -> bool:
        """Send the job that `name` names, whole; False where there is none. Raises `SourceUnavailable`."""
        known = await self._hub.find(name)
        await self._room(reader)
        if known is None or not self.fanout.knows(reader):
            return known is not None
        shown, seq = known[0], self.fanout.position(reader)
        subs = [s.id for s in self.fanout.subs(reader).values() if shown.job_id in s.group.members]
        body = wire.put(subs, seq, shown, wire.encode(wire.document(shown)))
        self.fanout.send(reader, [Message(body, seq)])
        return True

    def _missed(self, resume: Resume) -> list[Change] | None:
        return self._hub.changes_since(resume.seq)

    async def _look_up(self, names: Iterable[str]) -> tuple[dict[str, Shown], list[str]]:
        """What the database knows of names that memory does not, and the names that it could not be asked in time.

        What is recent goes to memory by this.
        """
        found: dict[str, Shown] = {}
        missing = [n for n in sorted(names) if self._hub.index.resolve(n) is None]
        asked = 0
        with contextlib.suppress(TimeoutError, SourceUnavailable):
            async with asyncio.timeout(LOOK_UP_WITHIN):
                for name in missing:
                    if (known := await self._hub.find(name)) is not None:
                        found[name] = known[0]
                    asked += 1
        return found, missing[asked:]

    async def _keep_asking(self, reader: Reader, sub: Sub, names: list[str]) -> None:
        """Ask on for the rest, also when the database comes back; what is found is put, as if it had just appeared."""
        backoff = Backoff(0.5, 2.0, 10.0)
        while names and self._is_current(reader, sub):
            name = names[0]
            try:
                known = await self._hub.find(name)
            except SourceUnavailable:
                await asyncio.sleep(backoff.next())
                continue
            names.pop(0)
            await self._room(reader)
            if known is None or not self._is_current(reader, sub) or self._hub.index.resolve(name) is not None:
                continue  # what is in memory comes by itself
            if sub.group.filter.query.matches(known[0]):
                seq = self.fanout.position(reader)
                body = wire.put([sub.id], seq, known[0], wire.encode(wire.document(known[0])))
                self.fanout.send(reader, [Message(body, seq)])

    def _begin(self, reader: Reader, sub: Sub, step: Iterator[None]) -> None:
        """Take the first step at once, so that a snapshot comes before any change; the rest as the reader takes it."""
        if not self.fanout.lags(reader) and reader.waiting() <= LAGGING_OVER and next(step, self) is self:
            return
        self._start(reader, self._go_on(reader, sub, step))

    def _start(self, reader: Reader, work: Coroutine[Any, Any, None]) -> None:
        """Work on behalf of a reader, which ends with it."""
        task = asyncio.create_task(work)
        self._sending[reader].add(task)
        task.add_done_callback(lambda t: self._sending.get(reader, set()).discard(t))

    async def _go_on(self, reader: Reader, sub: Sub, step: Iterator[None]) -> None:
        await self._room(reader)
        while self._is_current(reader, sub) and next(step, self) is not self:
            await self._room(reader)

    def _snapshot(self, reader: Reader, sub: Sub, unknown: list[str], extra: Sequence[Shown]) -> Iterator[None]:
        """Send what matches now, the newest jobs first, a part at each step."""
        get = self._hub.index.get
        jobs = sorted((s for i in sub.todo if (s := get(i)) is not None), key=lambda s: s.view.age_key, reverse=True)
        order = [s.job_id for s in jobs]
        late = list(extra)
        count, at, more = 0, 0, True
        while more:
            chunk: list[bytes] = []
            size = 0
            while at < len(order) and size < CHUNK and len(chunk) < MAX_CHUNK:
                # As it is now, not as it was: what changed meanwhile was not sent, as it was still to do.
                if order[at] in sub.todo:
                    del sub.todo[order[at]]
                    if (shown := get(order[at])) is not None:
                        chunk.append(wire.encode(wire.document(shown)))
                        size += len(chunk[-1])
                at += 1
            while at == len(order) and late and size < CHUNK:
                chunk.append(wire.encode(wire.document(late.pop(0))))
                size += len(chunk[-1])
            more = at < len(order) or bool(late)
            count += len(chunk)
            self.fanout.send(reader, [Message(wire.snapshot(sub.id, self._hub.seq, chunk, more=more))])
            if more:
                yield
        self._synced(reader, sub, count, unknown)

    def _replay(self, reader: Reader, sub: Sub, unknown: list[str]) -> Iterator[None]:
        """Send what a reader missed while it was away: of each job the newest state, and that it left."""
        count = 0
        while sub.todo:
            part: list[Message] = []
            size, seq = 0, self._hub.seq
            while sub.todo and size < CHUNK:
                job_id = next(iter(sub.todo))
                del sub.todo[job_id]
                reason, shown = sub.left.pop(job_id, None), self._hub.index.get(job_id)
                if shown is not None and reason in (None, "filter"):
                    part.append(Message(wire.put([sub.id], seq, shown, wire.encode(wire.document(shown)))))
                if reason is not None:
                    part.append(Message(wire.delete([sub.id], seq, job_id, reason)))
                size += sum(len(m.body) for m in part[-2:])
                count += 1
            self.fanout.send(reader, part)
            if sub.todo:
                yield
        self._synced(reader, sub, count, unknown)

    def _synced(self, reader: Reader, sub: Sub, count: int, unknown: list[str]) -> None:
        held = [n for n in unknown if self._hub.index.resolve(n) is None]
        seq = self._hub.seq
        sub.todo, sub.left = {}, {}  # both are empty; but a dict that was large keeps its size
        self.fanout.flush()
        reader.synced()
        self.say(reader, {"type": "synced", "sub": sub.id, "seq": seq, "count": count, "unknown": held}, seq)
        self.fanout.send(reader, [self._status()])

    def _is_current(self, reader: Reader, sub: Sub) -> bool:
        """Whether it has neither been replaced nor ended."""
        return self.fanout.subs(reader).get(sub.id) is sub

    async def _room(self, reader: Reader) -> None:
        """Wait until the reader takes more, and is owed nothing: then the position now is true for it."""
        await asyncio.sleep(0)
        while self.fanout.knows(reader) and (reader.waiting() > LAGGING_OVER or self.fanout.lags(reader)):
            await asyncio.sleep(0.01)
            self.fanout.look(reader)

    def _release(self, reader: Reader, sub_id: int) -> None:
        for name in self._held.get(reader, {}).pop(sub_id, ()):
            self._hub.release(name)

    def _bookmark(self) -> None:
        seq = self._hub.seq
        now = wire.rfc3339(time.time_ns() // 1000)
        message = Message(wire.encode({"type": "bookmark", "seq": seq, "at": now}), seq)
        messages = [message] if self._hub.source == "live" else [message, self._status()]
        self.fanout.flush()
        for reader in list(self.fanout.readers):
            if not self.fanout.lags(reader):  # it is owed changes from before this seq
                self.fanout.send(reader, messages)

    def _status_changed(self) -> None:
        message = [self._status()]
        for reader in list(self.fanout.readers):
            self.fanout.send(reader, message)

    def _status(self) -> Message:
        return Message(
            wire.encode({"type": "status", "source": self._hub.source, "lag_seconds": self._hub.lag_seconds})
        )
