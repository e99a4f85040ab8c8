"""What docs/guarantees.md promises of every delivery, over the real receivers: MQTT, webhooks, traces, cluster events.

What only one of them promises is in `tests/integration/`, which of its events a bound drops in `tests/unit/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import orjson
import pytest

from correlator.cluster import keys
from correlator.config.schema import Config, Otlp, TracesUrl
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
from tests.support.metric_values import value
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_harness import MqttHarness, TopicWatcher, reading, watch
from tests.support.names import give_addresses
from tests.support.nats import Nats
from tests.support.otlp_receiver import OtlpHarness, OtlpReceiver, attributes
from tests.support.pipeline_harness import NOW
from tests.support.saved_index import kept
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
    host = "127.0.0.1"
    """What the sink calls the host of the receiver."""

    def __init__(self, servers: Servers, stack: contextlib.AsyncExitStack, most: int | None, silence: float) -> None:
        self.servers, self.stack, self.most, self.silence = servers, stack, most, silence

    @classmethod
    @contextlib.asynccontextmanager
    async def at(
        cls, servers: Servers, most: int | None = None, silence: float = PATIENCE, host: str = "127.0.0.1"
    ) -> AsyncIterator[Self]:
        async with contextlib.AsyncExitStack() as stack:
            made = cls(servers, stack, most, silence)
            made.host = host
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
        return [*kept(self.world.event_log).values()]

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
        self.world = MqttHarness(
            self.proxy.port, reading("a"), host=self.host, instance=self.instance, restored=left, sink=options
        )
        if not self.instance:
            self.instance = self.world.instance
            self.watcher: TopicWatcher = await self.stack.enter_async_context(
                watch(self.world, self.servers.mosquitto.port)
            )

    async def arrived(self) -> Arrived:
        seen = [m for m in self.watcher.messages if str(m.topic).endswith("/event")]
        assert not any(m.retain for m in seen)
        found = (orjson.loads(m.payload) for m in seen)
        return [(event["job_id"], event["event_id"]) for event in found]

    def dropped(self) -> float:
        return value(metrics.MQTT_EVENTS_DROPPED)


class WebhookDelivery(Delivery):
    BODY = Template('{"job": "{{event.job_id}}", "number": "{{event.event_id}}"}')

    async def connect(self) -> int:
        self.receiver = await self.stack.enter_async_context(Receiver())
        return self.receiver.port

    async def begin(self, left: Iterable[PersistedEvent]) -> None:
        timings = WebhookTimings(retry_base=0.02, retry_cap=0.05, late_after=LATE, on_time_below=LATE / 2)
        url = f"http://{self.host}:{self.proxy.port}/hook"
        self.world = WebhookHarness(
            webhook(None, url=url, timeout=self.silence, body=self.BODY),
            restored=left,
            timings=timings,
            **({"max_events": self.most} if self.most else {}),
        )

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
        url = TracesUrl.parse(f"http://{self.host}:{self.proxy.port}/v1/traces")
        settings = Otlp(url=url, delay=0.0, timeout=self.silence)
        backoff = Backoff(0.02, 1.0, 0.02)
        self.sink = OtlpSink(Config(otlp=settings), self.exports, backoff=backoff, late_after=LATE, max_spans=4)

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
        return value(metrics.OTLP_DROPPED)


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
            url = f"nats://{self.host}:{self.proxy.port}"
            timings = {"answer_within": min(1.0, self.silence), "unwritten_after": LATE}
            self.world = await self.stack.enter_async_context(
                Collector(url, self.instance, timings=timings).connected()
            )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        bounds = {"max_events": self.most} if self.most else {}
        async with self.world.writing(restored=self.restored, **bounds):
            yield

    async def arrived(self) -> Arrived:
        found = await read_stream(self.direct.connection, keys.EVENTS, f"cor.v1.{self.instance}.event.>")
        events = (orjson.loads(payload) for _, _, payload in found)
        return [(event["job_id"], event["event_id"]) for event in events]

    def dropped(self) -> float:
        return value(cluster_metrics.EVENTS_DROPPED)


DELIVERIES: dict[str, type[Delivery]] = {
    "mqtt": MqttDelivery,
    "webhook": WebhookDelivery,
    "otlp": OtlpDelivery,
    "cluster": ClusterDelivery,
}


@pytest.fixture(scope="module")
def servers(mosquitto: Mosquitto) -> Iterator[Servers]:
    with Nats() as nats:
        yield Servers(mosquitto, nats)


PAHO = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""paho leaves open the socket of a connection that is not made."""


@pytest.fixture(params=[pytest.param(name, marks=PAHO if name == "mqtt" else ()) for name in DELIVERIES])
def kind(request: pytest.FixtureRequest) -> type[Delivery]:
    found: type[Delivery] = DELIVERIES[request.param]
    return found


@pytest.fixture
async def delivery(kind: type[Delivery], servers: Servers) -> AsyncIterator[Delivery]:
    async with kind.at(servers) as one:
        yield one
    gc.collect()


def first(arrived: Arrived) -> dict[str, list[int]]:
    """The events of each job, in the order in which they arrived for the first time."""
    found: dict[str, list[int]] = {}
    for job_id, number in dict.fromkeys(arrived):
        found.setdefault(job_id, []).append(number)
    return found


async def all_arrive(delivery: Delivery, due: dict[str, list[int]], *, repeats: bool) -> None:
    """Wait for all events, in the order of each job. `repeats`: some may arrive again, where none is stored once."""

    async def complete() -> bool:
        arrived = await delivery.arrived()
        assert first(arrived) == due
        return True

    await eventually(complete)
    await delivery.idle()
    assert [*delivery.left()] == []
    if delivery.once or not repeats:
        arrived = await delivery.arrived()
        assert len(arrived) == len({*arrived})


async def test_each_event_arrives_once_and_those_of_a_job_in_their_order(delivery):
    due: dict[str, list[int]] = {}
    async with delivery.running():
        for n in range(90):
            delivery.happen(n, job_id="abc"[n % 3])
            due.setdefault("abc"[n % 3], []).append(n)
            if n % 10 == 0:
                await asyncio.sleep(0.01)
        await all_arrive(delivery, due, repeats=False)


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
async def test_an_outage_is_said_and_what_happens_meanwhile_arrives_once_it_is_over(kind, servers, fault, caplog):
    async with kind.at(servers, silence=0.5) as delivery, delivery.running():
        delivery.happen(1, 2)
        await all_arrive(delivery, {"a": [1, 2]}, repeats=True)
        getattr(delivery.proxy, fault)()
        delivery.happen(*range(3, 30))
        part = await eventually(lambda: (part := delivery.part())["error"] and part)
        assert (part["ok"], part["pending"] > 0, len(delivery.left())) == (False, True, 27)
        assert not (delivery.public and "127.0.0.1" in part["error"]), "readiness needs no token"
        await asyncio.sleep(0.2)
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert all(a != b for a, b in pairwise(said)), "a failure is logged once until it changes"
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [*range(1, 30)]}, repeats=True)
        assert delivery.part().get("ok", True)


async def test_an_outage_is_one_warning_although_the_addresses_of_a_name_take_turns(kind, servers, monkeypatch, caplog):
    name = "receiver.example"
    give_addresses(monkeypatch, name, "::1", "127.0.0.1", "127.0.0.2")
    caplog.set_level(logging.DEBUG, "correlator")
    async with kind.at(servers, silence=0.5, host=name) as delivery, delivery.running():
        delivery.happen(1)
        await all_arrive(delivery, {"a": [1]}, repeats=True)
        caplog.clear()
        delivery.proxy.refuse()
        delivery.happen(2)
        said = (logging.WARNING, logging.DEBUG)
        tries = lambda: Counter((record.name, record.msg) for record in caplog.records if record.levelno in said)  # noqa: E731
        await eventually(lambda: max(tries().values(), default=0) >= 10)
        found = Counter(record.msg for record in caplog.records if record.levelno == logging.WARNING)
        assert max(found.values()) <= 2, caplog.messages  # A connection ends, and then none can be made.
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [1, 2]}, repeats=True)


async def test_connections_that_break_in_the_middle_of_answers_lose_no_event(delivery):
    async with delivery.running():
        for n in range(4):
            await delivery.idle()
            delivery.proxy.cut(after=7 * n)
            delivery.happen(*range(20 * n, 20 * n + 20))
            await eventually(lambda: not delivery.proxy.cutting)
        await all_arrive(delivery, {"a": [*range(80)]}, repeats=True)


async def test_what_a_run_leaves_is_sent_by_the_next_one(delivery):
    async with delivery.running():
        delivery.happen(1)
        await all_arrive(delivery, {"a": [1]}, repeats=False)
        delivery.proxy.refuse()
        delivery.happen(*range(2, 9))
        await eventually(lambda: len(delivery.left()) == 7)
        killed = delivery.left()
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [*range(1, 9)]}, repeats=False)
    await delivery.begin(killed)
    async with delivery.running():
        delivery.happen(9)
        await all_arrive(delivery, {"a": [*range(1, 10)]}, repeats=True)
        times = Counter(await delivery.arrived())
        assert {times["a", n] for n in range(2, 9)} == {1 if delivery.once else 2}, "the checkpoint was an older one"


async def has_arrived(delivery: Delivery, number: int) -> bool:
    return ("a", number) in await delivery.arrived()


async def test_a_stop_neither_loses_nor_repeats_what_is_on_its_way(delivery):
    delivery.proxy.delay = 0.02
    async with delivery.running():
        delivery.happen(1)
        await all_arrive(delivery, {"a": [1]}, repeats=False)
        delivery.happen(*range(2, 100))
        await eventually(lambda: delivery.flushes or has_arrived(delivery, 2), every=0.001)
    left = delivery.left()
    assert not (delivery.flushes and left)
    delivery.proxy.heal()
    await delivery.begin(left)
    async with delivery.running():
        await all_arrive(delivery, {"a": [*range(1, 100)]}, repeats=False)


async def test_of_too_many_events_the_oldest_are_dropped_and_counted(kind, servers):
    async with kind.at(servers, most=5) as delivery:
        before = delivery.dropped()
        async with delivery.running():
            await delivery.idle()
            delivery.proxy.refuse()
            delivery.happen(0)
            await eventually(lambda: delivery.part()["error"])
            for n in range(1, 12):
                delivery.happen(n)
                await asyncio.sleep(0.02)
            await eventually(lambda: len(delivery.left()) == 5)
            delivery.proxy.heal()
            await delivery.idle()
        arrived = first(await delivery.arrived())["a"]
        assert arrived[-4:] == [8, 9, 10, 11], "of the last five one may be older: what is on its way stays"
        assert delivery.dropped() - before == 12 - len(arrived)


async def test_a_receiver_that_is_too_slow_is_said_once_until_it_has_everything(delivery, caplog):
    caplog.set_level("INFO")
    async with delivery.running():
        delivery.happen(0)
        await all_arrive(delivery, {"a": [0]}, repeats=False)
        delivery.proxy.delay = 0.25
        delivery.happen(*range(1, 60))
        slow = ("too slow", "are not in the cluster")
        await eventually(lambda: any(words in str(delivery.part()["error"]) for words in slow))
        assert not delivery.part()["ok"]
        delivery.proxy.heal()
        await all_arrive(delivery, {"a": [*range(60)]}, repeats=False)
        await eventually(lambda: delivery.part().get("ok", True))
    said = [text for text in caplog.messages if "too slow" in text]
    assert len(said) == (0 if delivery.once else 1)
