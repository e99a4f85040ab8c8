"""A delivery: a sink, the jobs that it follows, its receiver behind a proxy, and the faults that all of them know.

The tests of `tests/contract/test_deliveries.py` run over each class of `DELIVERIES`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson

from correlator.cluster import keys
from correlator.config.schema import Config, Otlp
from correlator.config.webhooks import Template
from correlator.jobs.exports import Exports
from correlator.model.facts import Kind
from correlator.model.persisted import PersistedEvent, PersistedExports
from correlator.model.published import Event
from correlator.ops import cluster_metrics, metrics
from correlator.sinks.mqtt.connection import MqttTimings
from correlator.sinks.otlp.sink import OtlpSink
from correlator.sinks.webhooks import WebhookTimings, webhook_id
from correlator.tasks import Backoff
from tests.support.cluster_harness import Collector, collector, read_stream
from tests.support.eventually import PATIENCE, eventually
from tests.support.faults.proxy import Proxy
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_harness import MqttHarness, TopicWatcher, reading, watch
from tests.support.nats import Nats
from tests.support.otlp_receiver import OtlpHarness, OtlpReceiver, attributes
from tests.support.pipeline_harness import NOW
from tests.support.webhook_harness import WebhookHarness, dropped, webhook
from tests.support.webhook_receiver import Receiver

Arrived = list[tuple[str, int]]
"""The job and the number of each event that a receiver has taken, in order, repeated ones too."""

LATE = 0.3
"""Seconds after which each sink takes a receiver for too slow."""


@dataclass
class Servers:
    """The servers that the deliveries of all tests share."""

    mosquitto: Mosquitto
    nats: Nats


class Delivery:
    """Make it with `at`. `running` runs the sink.

    `most`: how many events may wait. `silence`: seconds after which the sink takes the receiver for silent.
    """

    once: ClassVar[bool] = False
    """The receiver stores an event once, however often it is sent."""
    flushes: ClassVar[bool] = False
    """A stop sends all that waits. Otherwise, it waits for the requests that are on their way."""
    public: ClassVar[bool] = True
    """Readiness has neither the receiver's address nor its words."""

    proxy: Proxy
    world: Any
    """The harness of the sink, whose hub the test fills."""

    def __init__(self, servers: Servers, stack: contextlib.AsyncExitStack, most: int | None, silence: float) -> None:
        self.servers, self.stack, self.most, self.silence = servers, stack, most, silence

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, servers: Servers, most: int | None = None, silence: float = PATIENCE) -> AsyncIterator[Self]:
        async with contextlib.AsyncExitStack() as stack:
            made = cls(servers, stack, most, silence)
            made.proxy = await stack.enter_async_context(Proxy(await made.connect()))
            await made.begin(())
            yield made

    async def connect(self) -> int:
        """Return the port of the receiver."""
        raise NotImplementedError

    async def begin(self, left: Any) -> None:
        """Make the sink of a new run of the daemon. `left`: what `left` returned in the last run."""
        raise NotImplementedError

    def running(self) -> contextlib.AbstractAsyncContextManager[Any]:
        running: contextlib.AbstractAsyncContextManager[Any] = self.world.running()
        return running

    def happen(self, *numbers: int, job_id: str = "a") -> None:
        self.world.happen(*numbers, job_id=job_id)

    async def arrived(self) -> Arrived:
        raise NotImplementedError

    def part(self) -> Any:
        """Return the part of readiness: `pending`, and `error`."""
        return {"error": None} | self.world.sink.describe()

    def left(self) -> Sequence[Any]:
        """Return what the checkpoint has of events that wait."""
        return [*self.world.event_log.stored().values()]

    def dropped(self) -> float:
        """Return how many events a bound has dropped, as a metric counts them."""
        raise NotImplementedError

    async def idle(self) -> None:
        """Wait until nothing is left to send, and nothing is wrong."""
        await eventually(lambda: (self.part()["pending"], self.part()["error"]) == (0, None))


class MqttDelivery(Delivery):
    flushes, public = True, False

    async def connect(self) -> int:
        self.instance = ""
        return self.servers.mosquitto.port

    async def begin(self, left: Iterable[PersistedEvent]) -> None:
        timings = MqttTimings(
            publish_timeout=self.silence, connect_timeout=self.silence, keepalive=60, steady_after=0.1,
            call_timeout=PATIENCE,
            late_check_interval=0.05, late_after=LATE, on_time_below=LATE / 2,
            flush_within=PATIENCE / 2, goodbye_within=PATIENCE / 2,
        )  # fmt: skip
        options = {"timings": timings} | ({"max_events": self.most} if self.most else {})
        self.world = MqttHarness(self.proxy.port, reading("a"), instance=self.instance, restored=left, sink=options)
        if not self.instance:
            self.instance = self.world.instance
            self.watcher: TopicWatcher = await self.stack.enter_async_context(
                watch(self.world, self.servers.mosquitto.port)
            )

    async def arrived(self) -> Arrived:
        seen = [m for m in self.watcher.seen if str(m.topic).endswith("/event")]
        assert not any(m.retain for m in seen)
        found = (orjson.loads(m.payload) for m in seen)
        return [(event["job_id"], event["event_id"]) for event in found]

    def dropped(self) -> float:
        return float(metrics.MQTT_EVENTS_DROPPED._value.get())


class WebhookDelivery(Delivery):
    BODY = Template('{"job": "{{event.job_id}}", "number": "{{event.event_id}}"}')

    async def connect(self) -> int:
        self.receiver = await self.stack.enter_async_context(Receiver())
        return self.receiver.port

    async def begin(self, left: Iterable[PersistedEvent]) -> None:
        timings = WebhookTimings(retry_base=0.02, retry_cap=0.05, late_after=LATE, on_time_below=LATE / 2)
        url = f"http://127.0.0.1:{self.proxy.port}/hook"
        self.world = WebhookHarness(
            webhook(None, url=url, timeout=self.silence, body=self.BODY), restored=left, timings=timings
        )
        if self.most:
            self.world.sink._endpoints["w"]._deliveries._max_events = self.most

    def happen(self, *numbers: int, job_id: str = "a") -> None:
        if self.world.index.published.get(job_id) is None:
            self.world.job(job_id)
        for number in numbers:
            self.world.event(number, job_id)

    async def arrived(self) -> Arrived:
        found = [(one.id, orjson.loads(one.body)) for one in self.receiver.accepted]
        assert all(name == webhook_id(Event(Kind.JOB_STARTED, e["job"], NOW, e["number"])) for name, e in found)
        return [(event["job"], event["number"]) for _, event in found]

    def part(self) -> Any:
        # An event that has just happened waits for its body, and is in the checkpoint.
        return self.world.state() | {"pending": len(self.left())}

    def dropped(self) -> float:
        return dropped("full")


class OtlpDelivery(Delivery):
    """An event is the end of a job of its own, whose trace the receiver gets."""

    async def connect(self) -> int:
        self.receiver = await self.stack.enter_async_context(OtlpReceiver().listening())
        self.world = OtlpHarness(max_jobs=self.most or 20_000)
        return int(self.receiver.url.rpartition(":")[2])

    async def begin(self, left: Iterable[str]) -> None:
        saved = PersistedExports(0, dict.fromkeys(left, False)) if left else None
        self.exports = Exports(0.0, 0.0, saved)
        settings = Otlp(url=f"http://127.0.0.1:{self.proxy.port}/v1/traces", delay=0.0, timeout=self.silence)
        backoff = Backoff(0.02, 1.0, 0.02)
        self.sink = OtlpSink(Config(otlp=settings), self.exports, backoff=backoff, late_after=LATE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.world.running(self.sink):
            yield

    def happen(self, *numbers: int, job_id: str = "a") -> None:
        for number in numbers:
            self.world.end(f"{job_id}/{number}", ended=NOW + number)
        self.world.pipeline.expire()

    async def arrived(self) -> Arrived:
        runs = (attributes(span)["cicd.pipeline.run.id"].split("/") for span in self.receiver.spans)
        return [(job_id, int(number)) for job_id, number in runs]

    def part(self) -> Any:
        return self.sink.describe()

    def left(self) -> Sequence[str]:
        self.exports.mark_all()
        return [job_id for job_id, exported in self.exports.changed().jobs.items() if exported is False]

    def dropped(self) -> float:
        return float(metrics.OTLP_DROPPED._value.get())


class ClusterDelivery(Delivery):
    once, flushes, public = True, True, False
    _instances = (f"dc{n}" for n in itertools.count(100))

    async def connect(self) -> int:
        self.instance = next(self._instances)
        return self.servers.nats.port

    async def begin(self, left: Iterable[PersistedEvent]) -> None:
        self.restored = left
        if not hasattr(self, "world"):
            self.direct = await self.stack.enter_async_context(collector(self.servers.nats, self.instance))
            url, timings = f"nats://127.0.0.1:{self.proxy.port}", {"answer_within": min(1.0, self.silence)}
            self.world = await self.stack.enter_async_context(
                Collector(url, self.instance, timings=timings).connected()
            )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.world.writing(restored=self.restored) as sink:
            if self.most:
                sink._events._max_events = self.most
            yield

    async def arrived(self) -> Arrived:
        found = await read_stream(self.direct.connection, keys.EVENTS, f"cor.v1.{self.instance}.event.>")
        events = (orjson.loads(payload) for _, _, payload in found)
        return [(event["job_id"], event["event_id"]) for event in events]

    def dropped(self) -> float:
        return float(cluster_metrics.EVENTS_DROPPED._value.get())


DELIVERIES: dict[str, type[Delivery]] = {
    "mqtt": MqttDelivery,
    "webhook": WebhookDelivery,
    "otlp": OtlpDelivery,
    "cluster": ClusterDelivery,
}
