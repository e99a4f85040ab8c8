"""The cluster sink on an index that the test writes, the lease of its instance, and a reader of the streams."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterable
from typing import Any

import orjson

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, seq_of
from correlator.cluster.fence import Fence, put
from correlator.config.schema import Cluster, NatsUrl
from correlator.jobs.index import Index
from correlator.model.facts import AttributedRow, Entry, Reading
from correlator.model.persisted import PersistedEvent
from correlator.model.published import Outcome
from correlator.model.rows import JobRecord, StepRecord
from correlator.sinks.cluster import documents as stored
from correlator.sinks.cluster.documents import ClusterTimings
from correlator.sinks.cluster.sink import ClusterSink
from correlator.sinks.event_log import EventLog
from tests.support.background import in_background
from tests.support.eventually import PATIENCE, eventually
from tests.support.pipeline_harness import NOW, HubHarness

_holders = itertools.count(1)


def reading(job_id, *, observed_at=1, status="running", error=None, steps=3, metadata=None):
    ended = NOW if status == "completed" else None
    record = JobRecord(
        job_id, operation="unified-live-failover", job_type="failover", status=status, external_job_id=f"ext-{job_id}",
        metadata=metadata, started_at=NOW - 9_000_000, completed_at=ended, error_message=error,
    )  # fmt: skip
    return Reading(
        job_id,
        observed_at,
        record,
        tuple(StepRecord(n, f"step {n}", n, "completed", NOW - n, NOW - n + 1) for n in range(1, steps + 1)),
    )


class Collector(HubHarness):
    """The sink writes the jobs over a connection of its own, while it holds the lease."""

    def __init__(
        self, servers: str, instance: str = "dc1", *, replicas: int = 1, timings: dict[str, float] | None = None
    ):
        super().__init__(Index(max_jobs=100_000))
        self.instance = instance
        self.replicas = replicas
        self.connection = Connection(Cluster(url=NatsUrl.parse(servers), instance=instance), "collector")
        self.read_to = 1 << 62  # What the log has at the start of the sink has been read.
        self.timings = ClusterTimings(
            **{"answer_within": 2.0, "due_every": 0.02, "behind_within": 0.05, **(timings or {})}
        )
        self.lost: list[str] = []

    def change(self, *job_ids, **more):
        """The jobs are others from now on."""
        observed_at = next(self.times)
        self.learn(*(reading(i, observed_at=observed_at, error=f"change {observed_at}", **more) for i in job_ids))

    def remove(self, *job_ids):
        self.learn(*(Reading(job_id, next(self.times)) for job_id in job_ids))

    def log(self, *numbers, job_id="a"):
        """Log rows with these numbers."""
        rows = [Entry(n, NOW, "INFO", f"line {n}", n, job_id) for n in numbers]
        self.hub.publish(Outcome(attributed=[AttributedRow(row, job_id, "column") for row in rows]))

    @contextlib.asynccontextmanager
    async def connected(self):
        async with in_background(self.connection.run()):
            await self.connection.connect(PATIENCE)
            if streams.problem(await streams.infos(self.connection), self.replicas) is not None:
                await streams.create(self.connection, self.replicas)
            yield self

    async def acquire_lease(self, restored: Iterable[PersistedEvent] = (), **more: Any) -> None:
        """Take the lease, and make a sink that continues what an earlier one left."""
        self.event_log = EventLog(restored)
        owner = json.dumps({"holder": next(_holders)}).encode()
        subject = keys.owner(self.instance)
        expected = seq_of(await self.connection.last(keys.STATE, subject))
        seq = await put(self.connection, subject, owner, expected=expected)
        self.fence = Fence(self.connection, keys.STATE, subject, owner, seq)
        self.sink = ClusterSink(
            self.instance,
            self.fence,
            self.lost.append,
            lambda: self.read_to,
            self.event_log,
            timings=self.timings,
            **more,
        )

    @contextlib.asynccontextmanager
    async def writing(self, **more: Any):
        """Hold the lease, and write."""
        await self.acquire_lease(**more)
        async with self.running():
            await asyncio.sleep(0)  # The sink has subscribed.
            yield self.sink

    def due(self):
        """The values that the stream should have."""
        return {shown.job_id: stored.encode(shown) for shown in self.hub.published.all()}

    async def equal(self, within=PATIENCE):
        """Wait until the stream has just the jobs in memory."""

        async def same():
            try:
                found, due = await documents(self.connection, self.instance), self.due()
            except ClusterUnavailable as error:
                raise AssertionError("no answer") from error
            # No comparison by assert: its explanation of thousands of documents takes longer than the wait itself.
            different = [i for i in {*found, *due} if found.get(i) != due.get(i)]
            assert not different, f"{len(different)} documents differ, e.g. {different[:3]}"
            return True

        return await eventually(same, within=within, every=0.1)


@contextlib.asynccontextmanager
async def collector(server, instance="dc1", **more):
    """A connected collector, which writes nothing yet."""
    async with Collector(server.url, instance, **more).connected() as one:
        yield one


async def read_stream(connection, stream, subject):
    """All messages of a stream below a subject, in order: (subject, headers, payload).

    Raises `ClusterUnavailable` if the connection is lost meanwhile: what the server sends then never comes.
    """
    found: list[Any] = []
    arrived = asyncio.Event()

    async def on_message(message):
        if message.reply.startswith(keys.ACK):
            found.append((message.subject, dict(message.headers or {}), message.data))
            arrived.set()

    generation, inbox = connection.generation, connection.client.new_inbox()
    settings = {"filter_subject": subject, "deliver_subject": inbox, "deliver_policy": "all", "ack_policy": "none"}
    request = {"stream_name": stream, "config": settings}
    async with connection.subscribed(inbox, on_message, pending=1 << 30):
        count = (await connection.api(f"CONSUMER.CREATE.{stream}", request))["num_pending"]
        async with asyncio.timeout(PATIENCE):
            while len(found) < count:
                arrived.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await arrived.wait()
                if connection.generation != generation:
                    raise ClusterUnavailable("the connection was lost")
    return found


async def documents(connection, instance):
    """The documents of an instance in the stream, by job ID."""
    found = await read_stream(connection, keys.STATE, keys.jobs(instance))
    named = ((keys.job_of(subject), payload) for subject, headers, payload in found if "KV-Operation" not in headers)
    return {job[1]: payload for job, payload in named if job is not None}


async def last_seq(connection, stream):
    found = await streams.info(connection, stream)
    return 0 if found is None else found["state"]["last_seq"]


async def events(connection, instance):
    """The numbers of the events of an instance in the stream, in order."""
    found = await read_stream(connection, keys.EVENTS, f"cor.v1.{instance}.event.>")
    return [orjson.loads(payload)["event_id"] for _, _, payload in found]


async def epoch_of(connection):
    message = await connection.last(keys.STATE, keys.EPOCH)
    return message.data.decode() if message is not None else None
