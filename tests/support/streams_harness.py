"""Streams in one process, without I/O: an index, its fan-out, and clients in memory that fold what they read."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from correlator.gateway.hub import RemoteHub
from correlator.gateway.status import RemoteStatus
from correlator.jobs import job_document
from correlator.jobs.index import Index
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.published import Change, Event, Outcome
from correlator.model.rows import LEVELS, JobRecord, Level, StepRecord
from correlator.pipeline.hub import Hub
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.queries import JobQuery
from correlator.pipeline.resume_ring import ResumeRing
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.messages import Framing, Message, Resume
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.client_fold import ClientFold
from tests.support.documents import document_of, document_text, read_document

NOW = 1_758_550_000_000_000


def frame(messages: Sequence[Message], /) -> bytes:
    return job_document.frame(m.body for m in messages) + b"\n"


class StreamClient:
    """A connection in memory. It reads nothing while `frozen`; what it reads goes to `messages` and `fold`."""

    transport: ClassVar[str] = "websocket"
    address: ClassVar[str] = "127.0.0.1"

    def __init__(self, fold: ClientFold | None = None) -> None:
        self.framing: Framing = frame
        self.frozen = False
        self.given_up = False
        self.messages: list[dict[str, Any]] = []
        self.fold = fold or ClientFold()
        self._unread: list[bytes] = []

    def write(self, framed: bytes) -> None:
        self._unread.append(framed)
        if not self.frozen:
            self.read()

    def waiting(self) -> int:
        return sum(map(len, self._unread))

    def give_up(self) -> None:
        self.given_up = True

    def synced(self) -> None: ...

    def thaw(self) -> None:
        self.frozen = False
        self.read()

    def read(self, frames: int | None = None) -> None:
        """Read so many frames, or all."""
        count = len(self._unread) if frames is None else frames
        now, self._unread = self._unread[:count], self._unread[count:]
        for text in now:
            parsed = json.loads(text)
            for message in parsed if isinstance(parsed, list) else [parsed]:
                self.messages.append(message)
                self.fold.apply(message)


class RandomIndex:
    """An index that random facts are applied to, and the streams of its changes."""

    def __init__(self, seed: int, resume_ring: ResumeRing | None = None, limits: Limits = DEFAULT) -> None:
        self.random = random.Random(seed)
        self.index = Index()
        self.index.loading = False
        self.hub = self._hub(resume_ring)
        self.streams = Streams(self.hub, limits)
        self.hub.subscribe(self.streams.fanout.on_batch)
        self.now = NOW
        self.records: dict[str, JobRecord] = {}
        self.events = 0

    def _hub(self, resume_ring: ResumeRing | None) -> Hub:
        return LocalHub(self.index, resume_ring=resume_ring)

    def publish(self, outcome: Outcome) -> None:
        assert isinstance(self.hub, LocalHub)
        self.hub.publish(outcome)

    def sweep(self) -> None:
        """Check all clients, as the daemon does regularly."""
        for _ in self.streams.fanout.sweep():
            pass

    def change(self) -> None:
        """Publish something: jobs begin, change, move between filters, share IDs, end, vanish; rows of the log."""
        rnd = self.random
        self.now += rnd.randrange(1, 2_000_000)
        facts: list[Any] = []
        for _ in range(rnd.choice((1, 1, 1, 2, 5))):
            job_id = f"job{rnd.randrange(12)}"
            if rnd.random() < 0.08:
                facts.append(Reading(job_id, self.index.advance_clock()))
                self.records.pop(job_id, None)
                continue
            facts.append(self.reading(job_id))
        if rnd.random() < 0.5:
            facts.append(self.row())
        outcome = self.index.apply(facts, self.now)
        if rnd.random() < 0.1:
            late = Event(Kind.JOB_LATE, f"job{rnd.randrange(12)}", self.now)
            outcome = replace(outcome, events=[*outcome.events, late])
        self.publish(outcome)

    def reading(self, job_id: str) -> Reading:
        rnd = self.random
        status = rnd.choice(("pending", "running", "running", "completed", "failed"))
        record = JobRecord(
            job_id,
            status=status,
            job_type=rnd.choice(("failover", "cleanup")),
            context_id=rnd.choice((None, "c1", "c2")),
            external_job_id=rnd.choice((None, "e1", "e2", "e3")),
            metadata=json.dumps({"vm_name": f"vm{rnd.randrange(3)}", "n": rnd.choice((1, 1.0, True, None, [1], {}))}),
            started_at=NOW - rnd.randrange(5) * 1_000_000,
            completed_at=self.now if status in ("completed", "failed") else None,
        )
        steps = tuple(
            StepRecord(100 * int(job_id[3:]) + n, f"s{n}", n, rnd.choice(("running", "completed")))
            for n in range(rnd.randrange(4))
        )
        self.records[job_id] = record
        return Reading(job_id, self.index.advance_clock(), record, steps)

    def row(self) -> Entry:
        self.events += 1
        job_id = f"job{self.random.randrange(12)}"
        level = self.random.choice(LEVELS)
        return Entry(
            self.events, self.now, level, "x" * 50, self.index.advance_clock(), job_id, by="attrs", attrs={"a": 1}
        )

    def filter(self) -> Filter:
        rnd = self.random
        names = None
        if rnd.random() < 0.5:
            pool = [*(f"job{n}" for n in range(13)), "e1", "e2", "e3", "c1", "c2", "nobody"]
            names = frozenset(rnd.sample(pool, rnd.randrange(1, 5)))
        query = JobQuery(
            status=frozenset(rnd.sample(("running", "pending", "failed"), rnd.choice((0, 0, 1, 2)))),
            job_type=frozenset(rnd.choice(([], [], ["failover"]))),
            context_id=frozenset(rnd.choice(([], [], ["c1"]))),
        )
        return Filter(query, names)

    def wanted(self, which: Filter) -> dict[str, Any]:
        """The documents of a subscription, read from the published jobs themselves."""
        published = self.hub.published
        return {s.job_id: document_of(s) for s in published.all() if which.matches(s, published)}

    def connect(self, client: StreamClient) -> Resume | None:
        """Send `welcome`, as the websocket endpoint does. Returns the client's position if it can be resumed."""
        resume = Resume(*client.fold.position) if client.fold.position is not None else None
        self.streams.add(client)
        resumed = self.streams.can_resume(resume)
        client.fold.connect()
        welcome = {"type": "welcome", "epoch": self.hub.epoch, "seq": self.hub.seq, "resumed": resumed}
        self.streams.send(client, welcome)
        return resume if resumed else None

    async def subscribe(
        self, client: StreamClient, sub: int, which: Filter, level: Level | None, resume: Resume | None = None
    ) -> None:
        client.fold.subscribe(sub, resume=resume is not None)
        await self.streams.subscribe(client, sub, which, level, resume=resume, resuming=resume is not None)


class RandomStream(RandomIndex):
    """The same index, published through the messages of a stream, as a gateway does."""

    def _hub(self, resume_ring: ResumeRing | None) -> Hub:
        self.seq = 0
        status = RemoteStatus(list, lambda: None)
        hub = RemoteHub(RemoteJobs(Marks()), status, epoch="e", resume_ring=resume_ring, clock=lambda: self.now)
        hub.status.loading = False
        return hub

    def publish(self, outcome: Outcome) -> None:
        """Write each changed job as one message, in one batch."""
        assert isinstance(self.hub, RemoteHub)
        jobs, changes = self.hub.published, list[Change]()
        for change in {c.job_id: c for c in outcome.changes if not c.moved}.values():
            self.seq += self.random.choice((1, 2))
            if change.new is None:
                changes += jobs.remove(change.job_id, self.seq, change.reason or "gone")
            else:
                body = document_text(change.new)
                changes += jobs.put(read_document(body, self.seq, "dc1"))
            jobs.advance(self.seq, self.now)
        self.hub.publish(changes, outcome.events, outcome.attributed)


async def settle(world: RandomIndex, clients: list[StreamClient]) -> None:
    """Sweep until every client has everything."""
    for _ in range(200):
        world.sweep()
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while any(not c.fold.synced or world.streams.fanout.lags(c) for c in clients):
            world.sweep()
            await asyncio.sleep(0.001)
    world.streams.fanout.flush()


class StreamsHarness:
    """One client of an index. `publish` applies facts to the index and publishes the changes."""

    def __init__(self, resume_ring: ResumeRing | None = None, limits: Limits = DEFAULT) -> None:
        self.world = RandomIndex(0, resume_ring, limits)
        self.client = StreamClient()
        self.world.connect(self.client)

    async def subscribe(self, sub: int = 1, which: Filter | None = None, level: Level | None = None) -> None:
        await self.world.subscribe(self.client, sub, which or Filter(), level)

    def publish(self, *facts: Any) -> None:
        self.world.now += 1_000_000
        self.world.publish(self.world.index.apply(facts, self.world.now))

    def job(self, job_id: str = "j", status: str = "running", **more: Any) -> None:
        record = JobRecord(job_id, status=status, started_at=NOW, **more)
        self.publish(Reading(job_id, self.world.index.advance_clock(), record, ()))

    def row(self, event_id: int, level: Level = "INFO", job_id: str = "j", message: str = "m") -> Entry:
        return Entry(event_id, NOW, level, message, self.world.index.advance_clock(), job_id)

    def event(self, kind: Kind, *facts: Any, job_id: str = "j") -> None:
        """Publish an event without a log row, in one batch with the changes by `facts`."""
        outcome = self.world.index.apply(facts, self.world.now)
        event = Event(kind, job_id, self.world.now)
        self.world.publish(replace(outcome, events=[*outcome.events, event]))

    def flush(self) -> list[dict[str, Any]]:
        """The messages since the last call."""
        self.world.sweep()
        messages, self.client.messages = self.client.messages, []
        return messages
