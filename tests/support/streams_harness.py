"""Streams in one process, without I/O: jobs that a test writes, their fan-out, and clients in memory that fold it.

`DaemonStreams` publishes an index as a daemon does, `GatewayStreams` the same through the messages of a stream.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from msgspec.structs import replace

from correlator.gateway.fleet import RemoteHub, RemoteStatus
from correlator.jobs.index import Index
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.published import Change, Event, Outcome
from correlator.model.rows import LEVELS, JobRecord, Level, StepRecord
from correlator.pipeline.hub import Hub, ResumeRing
from correlator.pipeline.pipeline import LocalHub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.streaming.messages import Framing, Message, Resume
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.subscriptions import Filter
from tests.support.client_fold import ClientFold
from tests.support.documents import document_of, document_text, read_document

NOW = 1_758_550_000_000_000
ALL = Filter()


def frame(messages: Sequence[Message], /) -> bytes:
    return b"[%b]\n" % b",".join([m.body for m in messages])


class StreamClient:
    """A connection in memory. It reads nothing while `frozen`; what it reads goes to `messages` and `fold`."""

    transport: ClassVar[str] = "websocket"
    address: ClassVar[str] = "127.0.0.1"

    def __init__(self, fold: ClientFold | None = None, *, is_restricted: bool = False) -> None:
        self.is_restricted = is_restricted
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


class DaemonStreams:
    """An index, facts for it that a test names or that are random, and the streams of its changes.

    `client`: one that `subscribe` connects where no other one is named. `archive`: the database; None: there is none.
    `clock`: monotonic seconds. `runs`: the test lets `streams.run` follow the jobs.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        resume_ring: ResumeRing | None = None,
        limits: Limits = DEFAULT,
        archive: Any = None,
        clock: Callable[[], float] = time.monotonic,
        runs: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.index = Index()
        self.index.loading = False
        self._archive = archive
        self.hub = self._hub(resume_ring)
        self.streams = Streams(self.hub, limits, clock=clock)
        if not runs:
            self.hub.subscribe(self.streams.fanout.on_batch)
        self.now = NOW
        self.records: dict[str, JobRecord] = {}
        self.events = 0
        self.client = StreamClient()

    def _hub(self, resume_ring: ResumeRing | None) -> Hub:
        hub = LocalHub(self.index, self._archive, resume_ring=resume_ring)
        hub.status.loading = False
        return hub

    def _publish(self, outcome: Outcome) -> None:
        assert isinstance(self.hub, LocalHub)
        self.hub.publish(outcome)

    def publish(self, *facts: Any, events: Sequence[tuple[Kind, str]] = ()) -> None:
        """Apply facts to the index, and publish the changes in one batch with events that have no log row."""
        self.now += 1_000_000
        outcome = self.index.apply(facts, self.now)
        made = [Event(kind, job_id, self.now) for kind, job_id in events]
        self._publish(replace(outcome, events=[*outcome.events, *made]))

    def job(self, job_id: str = "j", status: str = "running", *, started_at: int = NOW, **more: Any) -> None:
        self.publish(self.read(job_id, status, started_at=started_at, **more))

    def read(self, job_id: str = "j", status: str | None = "running", **more: Any) -> Reading:
        """What the table of jobs says; `status` None: nothing, as the row was deleted."""
        record = JobRecord(job_id, status=status, **{"started_at": NOW, **more}) if status is not None else None
        return Reading(job_id, self.index.advance_clock(), record, ())

    def row(self, event_id: int, level: Level = "INFO", job_id: str = "j", message: str = "m") -> Entry:
        return Entry(event_id, NOW, level, message, self.index.advance_clock(), job_id)

    def flush(self) -> list[dict[str, Any]]:
        """The messages to `client` since the last call."""
        self.sweep()
        messages, self.client.messages = self.client.messages, []
        return messages

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
            facts.append(self._reading(job_id))
        if rnd.random() < 0.5:
            facts.append(self._row())
        outcome = self.index.apply(facts, self.now)
        if rnd.random() < 0.1:
            late = Event(Kind.JOB_LATE, f"job{rnd.randrange(12)}", self.now)
            outcome = replace(outcome, events=[*outcome.events, late])
        self._publish(outcome)

    def _reading(self, job_id: str) -> Reading:
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

    def _row(self) -> Entry:
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
        client.fold.connect()
        self.streams.welcome(client, resume)
        return resume if self.streams.can_resume(client, resume) else None

    async def subscribe(
        self,
        sub: int = 1,
        which: Filter = ALL,
        level: Level | None = None,
        *,
        client: StreamClient | None = None,
        resume: Resume | None = None,
    ) -> None:
        client = client or self.client
        if not self.streams.fanout.has(client):
            self.connect(client)
        client.fold.subscribe(sub, resume=resume is not None)
        await self.streams.subscribe(client, sub, which, level, resume=resume, resuming=resume is not None)


class GatewayStreams(DaemonStreams):
    """The same index, published through the messages of a stream, as a gateway does."""

    def _hub(self, resume_ring: ResumeRing | None) -> Hub:
        self.seq, self.marks = 0, Marks()
        status = RemoteStatus(list, lambda: None)
        hub = RemoteHub(RemoteJobs(self.marks), status, epoch="e", resume_ring=resume_ring, clock=lambda: self.now)
        hub.status.loading = False
        return hub

    def _publish(self, outcome: Outcome) -> None:
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
            self.marks.note(self.seq, self.now)
        self.hub.publish(changes, outcome.events, outcome.attributed)
        self.hub.synced()


async def settle(world: DaemonStreams, clients: Sequence[StreamClient] = ()) -> None:
    """Sweep until every client has everything: that of `world`, if none is named."""
    clients = clients or [world.client]
    for _ in range(200):
        world.sweep()
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while any(not c.fold.synced or world.streams.fanout.lags(c) for c in clients):
            world.sweep()
            await asyncio.sleep(0.001)
    world.streams.fanout.flush()
