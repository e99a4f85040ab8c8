"""The MQTT sink against a real broker: what is retained is what the index says, whatever happens to the broker."""

import asyncio
import contextlib
import gc
import itertools
import shutil
import subprocess
import threading
from typing import Any

import aiomqtt
import orjson
import pytest
from paho.mqtt.subscribeoptions import SubscribeOptions

from correlator import metrics
from correlator.backoff import Backoff
from correlator.hub import Hub
from correlator.jobs import wire
from correlator.jobs.index import Index, Outcome
from correlator.jobs.model import Event, JobRecord, Kind, Reading, StepRecord
from correlator.settings import Mqtt, Tls
from correlator.sinks import mqtt, topics
from correlator.sinks.broker import Client
from correlator.sinks.mqtt import MqttSink
from correlator.sinks.topics import Key, Topics
from correlator.values import BrokerUrl, Secret
from tests.servers import Mosquitto, eventually, free_port

NOW = 1_758_553_933_000_000
_instances = (f"instance-{n}" for n in itertools.count())


def reading(job_id, *external, tick=1, started=0, status="running", error=None):
    column, *rest = external or (None,)
    metadata = orjson.dumps({"gui_job_id": rest[0]}).decode() if rest else None
    at = NOW + started * 1_000_000
    record = JobRecord(
        job_id, operation="unified-live-failover", job_type="failover", status=status, external_job_id=column,
        metadata=metadata, started_at=at, completed_at=at if status == "completed" else None, error_message=error,
    )  # fmt: skip
    return Reading(job_id, tick, record, (StepRecord(1, "validate", 1, "completed", at, at),))


def gone(job_id, tick=9):
    return Reading(job_id, tick)


class World:
    """A hub whose past is read, and the sink that follows it on topics of its own."""

    def __init__(self, port, *readings, epoch="", instance="", sink: dict[str, Any] | None = None, **settings):
        self.instance = instance or next(_instances)
        self.topics = Topics(f"correlator/v1/{self.instance}")
        self.index = Index()
        self.index.loading = False
        self.hub = Hub(self.index, epoch=epoch)
        self.hub.loading = None
        self.ticks = itertools.count(10)
        self.learn(*readings)
        url = BrokerUrl("127.0.0.1", port, tls="tls" in settings)
        self.sink = MqttSink(
            Mqtt(url=url, instance=self.instance, **settings),
            **{"backoff": Backoff(0.05, 1.0, 0.05), **(sink or {})},
        )

    def learn(self, *readings):
        self.hub.publish(self.index.apply(readings, NOW))

    def change(self, job_id, *external, **more):
        """The job is another one from now on."""
        tick = next(self.ticks)
        self.learn(reading(job_id, *external, tick=tick, error=f"change {tick}", **more))

    def happen(self, *numbers, job_id="a"):
        """Events, told by their number."""
        found = [Event(Kind.STEP_STARTED, job_id, NOW, event_id=n) for n in numbers]
        self.hub.publish(Outcome(events=found))

    @contextlib.asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.sink.run(self.hub))
        try:
            yield task
            assert not task.done(), task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def stop(self, task):
        task.cancel()
        await asyncio.wait({task}, timeout=15)
        assert task.cancelled()

    def state(self, job_id):
        return self.topics.of(Key("state", job_id))

    def event(self, job_id):
        return self.topics.event(job_id)

    def ext(self, external_id):
        return self.topics.of(Key("ext", external_id))

    def due(self):
        """What should be retained of jobs and IDs."""
        due = {}
        for shown in self.index.shown():
            due[self.state(shown.job_id)] = {**wire.document(shown), "epoch": self.hub.epoch, "seq": shown.rev}
            for name in shown.view.external_ids:
                owner = self.index.resolve(name)
                assert owner is not None
                due[self.ext(name)] = {"external_id": name, "job_id": owner.job_id}
        return due


class Watcher:
    """Another client: all messages in order, and what is retained after them."""

    def __init__(self, topics_: Topics) -> None:
        self.topics = topics_
        self.seen: list[aiomqtt.Message] = []
        self.store: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def on(self, port):
        client = aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5)
        async with client:
            task = asyncio.create_task(self._read(client))
            # Whether a message came from the store or just now, `retain` tells all the same.
            options = SubscribeOptions(1, retainAsPublished=True)
            await client.subscribe(f"{self.topics.root}/#", options=options)
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.wait({task})

    async def _read(self, client):
        async for message in client.messages:
            self.seen.append(message)
            topic = str(message.topic)
            if message.retain and message.payload:
                self.store[topic] = orjson.loads(message.payload)
            elif message.retain:
                self.store.pop(topic, None)

    def said(self, topic):
        return [orjson.loads(m.payload) if m.payload else None for m in self.seen if str(m.topic) == topic]

    def states(self):
        return [status["state"] for status in self.said(self.topics.status)]

    def jobs(self):
        """What is retained of jobs and IDs."""
        return {t: v for t, v in self.store.items() if self.topics.key(t) is not None}


def watch(world, port):
    return Watcher(world.topics).on(port)


class Proxy:
    """Stands before the broker. `cut` ends the connections as a dead network would; `refuses`: nobody gets through.

    With `level` set, it is a broker that knows no newer protocol and answers as `refusal` says.
    """

    def __init__(self, broker: int, level: int = 5, refusal: bytes = b"") -> None:
        self.broker = broker
        self.level = level
        self.refusal = refusal
        self.refuses = False
        self.port = free_port()
        self.levels: list[int] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            self.cut()
            while self._tasks:
                await asyncio.wait(self._tasks)

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if not self.refuses:
                await self._pass(reader, writer)
        writer.transport.abort()
        self._open.discard(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(2)
        while head[-1] & 0x80:  # the packet's length goes on
            head += await reader.readexactly(1)
        name = await reader.readexactly(7)  # "MQTT" behind its length, then the protocol level
        self.levels.append(name[6])
        if name[6] > self.level:
            writer.write(self.refusal)
            await writer.drain()
            await reader.read(1)
            return
        back, forth = await asyncio.open_connection("127.0.0.1", self.broker)
        self._open.add(forth)
        forth.write(head + name)
        try:
            await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        finally:
            forth.transport.abort()
            self._open.discard(forth)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    raise ConnectionResetError


async def holds(watcher: Watcher, world: World, within: float = 5.0) -> None:
    """The broker holds just what it should."""

    def same():
        held, due = watcher.jobs(), world.due()
        # No comparison by assert: its explanation of two thousand documents takes longer than the wait itself.
        different = [t for t in {*held, *due} if held.get(t) != due.get(t)]
        assert not different, f"{len(different)} topics differ, e.g. {different[:3]}"
        return True

    await eventually(same, within=within)


async def test_what_is_retained_is_what_the_index_says(mosquitto):
    world = World(
        mosquitto.port, reading("a", "x", "y/1 ä"), reading("b", "x", started=5), reading("c", status="completed")
    )
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        assert watcher.store[world.ext("x")]["job_id"] == "b"
        world.change("a", "x", "y/1 ä", status="completed")
        world.learn(reading("new", "z", started=20))
        await holds(watcher, world)
        assert watcher.store[world.topics.status]["state"] == "online"
        # It was told at the connect, and is told again after 10 s only. An ID that moves to another job takes a seq.
        assert watcher.store[world.topics.index] == {"epoch": world.hub.epoch, "seq": 4, "count": 3}
        assert world.index.seq == 6
        await eventually(lambda: world.sink.describe()["pending"] == 0)
    assert world.sink.describe() == {"ok": False, "connected": False, "pending": 0, "error": None}


async def test_the_index_is_told_again_and_again(mosquitto, monkeypatch):
    monkeypatch.setattr(mqtt, "INDEX_INTERVAL", 0.05)
    world = World(mosquitto.port, reading("a"))
    async with watch(world, mosquitto.port) as watcher, world.running():
        await eventually(lambda: watcher.store[world.topics.index]["count"] == 1)
        world.learn(reading("b"))
        await eventually(lambda: watcher.store[world.topics.index] == {"epoch": world.hub.epoch, "seq": 2, "count": 2})


async def test_nothing_is_told_of_jobs_before_the_past_is_read(mosquitto):
    world = World(mosquitto.port, reading("a", "x"))
    world.hub.loading = (1, 2)
    async with watch(world, mosquitto.port) as watcher, world.running():
        await eventually(lambda: watcher.states() == ["starting"])
        world.learn(reading("b"))
        world.learn(gone("a"))
        world.hub.loading = None
        await holds(watcher, world)
        await eventually(lambda: watcher.states() == ["starting", "online"])
        first = [str(m.topic) for m in watcher.seen].index(world.state("b"))
        assert first > [str(m.topic) for m in watcher.seen].index(world.topics.status)


async def test_mqtt_5_messages_say_what_they_are_and_ended_jobs_expire(mosquitto):
    world = World(
        mosquitto.port, reading("a", "x"), reading("b", status="completed"), sink={"retention": 3600.0}
    )  # fmt: skip
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        world.happen(1)
        await eventually(lambda: watcher.said(world.event("a")))
        assert {m.properties.ContentType for m in watcher.seen} == {"application/json"}
        expiry: dict[str, Any] = {
            str(m.topic): getattr(m.properties, "MessageExpiryInterval", None) for m in watcher.seen
        }
        # A broker counts the time down that it kept the message.
        assert 3600 + mqtt.BACKSTOP - 60 < expiry.pop(world.state("b")) <= 3600 + mqtt.BACKSTOP
        assert set(expiry.values()) == {None}


async def test_events_come_in_order_and_are_not_retained(mosquitto):
    world = World(mosquitto.port, reading("a"))
    async with watch(world, mosquitto.port) as watcher, world.running():
        await eventually(lambda: world.sink.connected)
        for n in range(200):
            world.happen(2 * n, 2 * n + 1)
            world.change("a")
        await eventually(lambda: len(watcher.said(world.event("a"))) == 400)
        events = watcher.said(world.event("a"))
        assert [event["event_id"] for event in events] == list(range(400))
        assert {event["epoch"] for event in events} == {world.hub.epoch}
        assert not any(m.retain for m in watcher.seen if str(m.topic) == world.event("a"))


async def test_no_event_is_lost_when_connections_break(mosquitto):
    async with Proxy(mosquitto.port).running() as proxy:
        world = World(proxy.port, reading("a"))
        async with watch(world, mosquitto.port) as watcher, world.running():
            numbers = itertools.count()
            await eventually(lambda: world.sink.connected)
            for _ in range(5):
                world.happen(*itertools.islice(numbers, 300))
                known = len(watcher.said(world.event("a")))
                await eventually(lambda known=known: len(watcher.said(world.event("a"))) > known)  # type: ignore[misc]
                proxy.cut()
            await eventually(lambda: watcher.said(world.event("a"))[-1]["event_id"] == 1499, within=10)
            seen = [event["event_id"] for event in watcher.said(world.event("a"))]
            assert list(dict.fromkeys(seen)) == list(range(1500))
            await eventually(lambda: world.sink.owed() == [])


async def test_events_wait_for_a_broker_that_is_away_until_there_are_too_many(own_mosquitto, monkeypatch):
    own_mosquitto.kill()
    world = World(own_mosquitto.port, reading("a"))
    monkeypatch.setattr(world.sink._events, "_bound", 3)
    before = metrics.MQTT_EVENTS_DROPPED._value.get()
    async with world.running():
        await eventually(lambda: world.sink.describe()["error"])
        world.happen(1, 2, 3, 4, 5)
        assert metrics.MQTT_EVENTS_DROPPED._value.get() - before == 2
        assert world.sink.describe()["pending"] == 3
        assert [orjson.loads(owed.payload)["event_id"] for owed in world.sink.owed()] == [3, 4, 5]
    assert not world.sink.connected
    # The next run of the daemon gets what this one still owed.
    await asyncio.to_thread(own_mosquitto.start)
    later = World(own_mosquitto.port, reading("a"), instance=world.instance, sink={"owed": world.sink.owed()})
    async with watch(world, own_mosquitto.port) as watcher, later.running():
        await eventually(lambda: len(watcher.said(world.event("a"))) == 3)
        assert [(e["event_id"], e["epoch"]) for e in watcher.said(world.event("a"))] == [
            (n, world.hub.epoch) for n in (3, 4, 5)
        ]


async def test_an_id_moves_to_the_newest_job_and_back(mosquitto):
    world = World(mosquitto.port, reading("old", "x"))
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        world.learn(reading("new", "x", started=5))
        await holds(watcher, world)
        assert watcher.store[world.ext("x")]["job_id"] == "new"
        world.learn(gone("new"))
        await holds(watcher, world)
        assert watcher.store[world.ext("x")]["job_id"] == "old"
        assert None not in watcher.said(world.ext("x"))


async def test_a_job_that_leaves_says_so_and_its_topics_are_emptied(mosquitto):
    world = World(mosquitto.port, reading("a", "x"), reading("b"))
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        last = watcher.store[world.state("a")]
        world.learn(gone("a"))
        await holds(watcher, world)
        assert watcher.said(world.state("a"))[-2:] == [{**last, "deleted": True, "seq": world.index.seq}, None]
        assert watcher.said(world.ext("x"))[-1] is None


async def test_what_an_earlier_run_left_is_removed(mosquitto):
    first = World(mosquitto.port, reading("a", "x"), reading("b/1", "y", "z"), epoch="e1")
    async with watch(first, mosquitto.port) as watcher:
        async with first.running():
            await holds(watcher, first)
        # The daemon was away for long, and has no memory of what it knew.
        left = watcher.store[first.state("b/1")]
        second = World(mosquitto.port, reading("a", "x"), reading("c", "z"), instance=first.instance, epoch="e2")
        async with second.running():
            await holds(watcher, second, within=10)
            assert watcher.said(first.state("b/1"))[-2:] == [
                {**left, "deleted": True, "epoch": "e2", "seq": second.index.seq}, None,
            ]  # fmt: skip
            assert None not in watcher.said(first.state("a"))
            await eventually(lambda: second.sink.describe()["pending"] == 0)


async def test_a_broker_that_lost_its_store_gets_everything_again(own_mosquitto):
    world = World(own_mosquitto.port, *(reading(f"j{n}", f"x{n}", started=n) for n in range(50)))
    async with world.running():
        async with watch(world, own_mosquitto.port) as watcher:
            await holds(watcher, world)
        own_mosquitto.kill()
        await eventually(lambda: not world.sink.connected)
        await eventually(lambda: world.sink.describe()["error"])
        assert not world.sink.describe()["ok"]
        world.change("j7", "x7")
        world.learn(gone("j8"), reading("new", started=99))
        world.happen(1)
        await asyncio.to_thread(own_mosquitto.start)
        async with watch(world, own_mosquitto.port) as watcher:
            await holds(watcher, world)
            await eventually(lambda: world.sink.describe()["pending"] == 0)
            assert world.sink.describe()["error"] is None
            assert watcher.store[world.topics.status]["state"] == "online"


async def test_a_new_connection_gets_the_newest_jobs_first(own_mosquitto):
    world = World(own_mosquitto.port, *(reading(f"j{n}", f"x{n}", started=n * 7 % 20) for n in range(20)))
    async with watch(world, own_mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        states = [str(m.topic) for m in watcher.seen if str(m.topic).endswith("/state")]
        assert states == [world.state(f"j{n}") for n in sorted(range(20), key=lambda n: n * 7 % 20, reverse=True)]


@pytest.mark.parametrize("busy", [True, False])
async def test_a_frozen_broker_is_noticed_and_comes_back(own_mosquitto, monkeypatch, busy):
    monkeypatch.setattr(mqtt, "KEEPALIVE", 60 if busy else 1)
    monkeypatch.setattr(mqtt, "PUBLISH_TIMEOUT", 1.0 if busy else 60.0)
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT", 1.0)
    world = World(own_mosquitto.port, *(reading(f"j{n}") for n in range(30)))
    async with world.running():
        async with watch(world, own_mosquitto.port) as watcher:
            await holds(watcher, world)
            await eventually(lambda: world.sink.describe()["pending"] == 0)
        own_mosquitto.pause()
        try:
            if busy:
                for n in range(30):
                    world.change(f"j{n}")
                world.happen(*range(100))
            await eventually(lambda: not world.sink.connected, within=8)
            await eventually(lambda: "answer" in str(world.sink.describe()["error"]), within=8)
            for n in range(30):
                world.change(f"j{n}", status="completed")
        finally:
            own_mosquitto.resume()
        async with watch(world, own_mosquitto.port) as watcher:
            await holds(watcher, world, within=15)
            await eventually(lambda: world.sink.describe()["pending"] == 0)
            assert watcher.store[world.topics.status]["state"] == "online"


async def test_the_last_will_is_told_when_the_connection_is_cut(mosquitto):
    async with Proxy(mosquitto.port).running() as proxy:
        world = World(proxy.port, reading("a"), epoch="e1")
        async with watch(world, mosquitto.port) as watcher:
            async with world.running():
                await eventually(lambda: watcher.states() == ["online"])
                proxy.refuses = True
                proxy.cut()
                await eventually(lambda: watcher.states() == ["online", "offline"])
                assert watcher.store[world.topics.status]["epoch"] == "e1"
                assert not world.sink.connected
                proxy.refuses = False
                await eventually(lambda: watcher.states() == ["online", "offline", "online"])
            await eventually(lambda: watcher.states()[3:] == ["stopping", "offline"])


async def test_at_the_end_everything_is_told_and_then_goodbye(mosquitto):
    world = World(mosquitto.port, *(reading(f"j{n}") for n in range(300)))
    async with watch(world, mosquitto.port) as watcher:
        task = asyncio.create_task(world.sink.run(world.hub))
        await holds(watcher, world)
        for n in range(300):
            world.change(f"j{n}", status="completed")
            world.happen(n)
        await world.stop(task)
        await holds(watcher, world)
        await eventually(lambda: watcher.states() == ["online", "stopping", "offline"])
        assert len(watcher.said(world.event("a"))) == 300
        assert str(watcher.seen[-1].topic) == world.topics.status
        again = World(mosquitto.port, instance=world.instance)
        async with again.running():  # had there been a last will, it would have come before this
            await eventually(lambda: watcher.states() == ["online", "stopping", "offline", "online"])


async def test_a_daemon_that_stops_while_the_past_is_read_says_goodbye(mosquitto):
    world = World(mosquitto.port, reading("a"))
    world.hub.loading = (1, 2)
    async with watch(world, mosquitto.port) as watcher:
        task = asyncio.create_task(world.sink.run(world.hub))
        await eventually(lambda: watcher.states() == ["starting"])
        await world.stop(task)
        await eventually(lambda: watcher.states() == ["starting", "stopping", "offline"])
        assert watcher.jobs() == {}


async def test_a_broker_that_is_frozen_at_the_end_does_not_hold_us_up(own_mosquitto, monkeypatch):
    monkeypatch.setattr(mqtt, "GOODBYE_WITHIN", 0.5)
    world = World(own_mosquitto.port, reading("a"))
    task = asyncio.create_task(world.sink.run(world.hub))
    await eventually(lambda: world.sink.connected)
    own_mosquitto.pause()
    start = asyncio.get_running_loop().time()
    await world.stop(task)
    assert asyncio.get_running_loop().time() - start < 3


async def test_a_daemon_that_stops_while_it_connects_does_so_at_once(own_mosquitto):
    own_mosquitto.pause()
    world = World(own_mosquitto.port, reading("a"))
    task = asyncio.create_task(world.sink.run(world.hub))
    await eventually(lambda: any(t.get_name() == "mqtt connection" for t in asyncio.all_tasks()))
    start = asyncio.get_running_loop().time()
    await world.stop(task)
    assert asyncio.get_running_loop().time() - start < 1


@pytest.mark.parametrize(
    "refusal", [b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01"], ids=["as MQTT 5 has it", "as MQTT 3.1.1 has it"]
)
async def test_a_broker_that_knows_no_mqtt_5_gets_3_1_1(mosquitto, refusal, caplog):
    async with Proxy(mosquitto.port, level=4, refusal=refusal).running() as proxy:
        first = World(proxy.port, reading("a", "x"), reading("b", "y", status="completed"))
        async with watch(first, mosquitto.port) as watcher:
            async with first.running():
                await holds(watcher, first)
                first.happen(1)
                first.change("a", "x")
                await holds(watcher, first)
                await eventually(lambda: watcher.said(first.event("a")))
                assert proxy.levels == [5, 4]
                assert not [r for r in caplog.records if r.levelname == "WARNING"]
            second = World(proxy.port, reading("a", "x"), instance=first.instance)
            async with second.running():
                await holds(watcher, second, within=10)
            assert watcher.states() == ["online", "stopping", "offline"] * 2


async def test_a_job_that_changes_all_the_time_is_told_four_times_a_second(mosquitto):
    world = World(mosquitto.port, reading("a"), reading("quick"))
    loop = asyncio.get_running_loop()
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        known, start = len(watcher.said(world.state("a"))), loop.time()

        def changing():
            world.change("a")
            return loop.time() - start > 2.0

        await eventually(changing, every=0.005)
        world.learn(reading("other"))
        await holds(watcher, world)
        took = loop.time() - start
        told = len(watcher.said(world.state("a"))) - known
        assert 6 <= told <= took / topics.SPACING + 1
        assert len(watcher.said(world.state("quick"))) == 1


async def test_1500_jobs_are_all_retained():
    with Mosquitto("max_inflight_messages 20") as broker:
        world = World(broker.port, *(reading(f"j{n}", f"x{n}", started=n) for n in range(1500)))
        async with world.running():
            await eventually(lambda: world.sink.connected)
            await eventually(lambda: world.sink.describe()["pending"] == 0, within=20)
            async with watch(world, broker.port) as watcher:
                await holds(watcher, world, within=20)
                assert len(watcher.jobs()) == 3000


async def test_a_wrong_password_is_a_state_and_not_an_error():
    with Mosquitto(users={"correlator": "right"}) as broker:
        wrong = World(broker.port, username="correlator", password=Secret("wrong"))
        async with wrong.running():
            await eventually(lambda: "ot authori" in str(wrong.sink.describe()["error"]))
            assert not wrong.sink.describe()["ok"]
        right = World(broker.port, username="correlator", password=Secret("right"))
        async with right.running():
            await eventually(lambda: right.sink.connected)
            assert right.sink.describe()["error"] is None


async def test_a_broker_that_refuses_our_topics_is_told_of(tmp_path, caplog):
    (tmp_path / "acl").write_text("topic read #\ntopic write other/#\n")
    (tmp_path / "acl").chmod(0o600)
    with Mosquitto(f"acl_file {tmp_path / 'acl'}") as broker:
        world = World(broker.port, *(reading(f"j{n}") for n in range(30)))
        async with world.running():
            # Mosquitto 2.0 never gives back the quota of what it refuses, and disconnects after a window of them.
            await eventually(lambda: "the broker refuses messages: Not authorized" in caplog.messages)


async def test_a_job_too_large_for_the_broker_does_not_hold_up_the_others():
    with Mosquitto("max_packet_size 20000") as broker:
        world = World(broker.port, *(reading(f"j{n}", error="x" * 30_000 if n == 2 else None) for n in range(5)))
        async with world.running(), watch(world, broker.port) as watcher:
            due = world.due()
            del due[world.state("j2")]
            await eventually(lambda: watcher.jobs() == due)
            assert world.sink.connected
            assert world.sink.describe()["error"] == "the broker refuses messages: over 20000 bytes"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and a certificate of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    assert openssl is not None, "openssl is missing: apt-get install openssl"

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    run(
        "req",
        "-x509",
        *key,
        "-subj",
        "/CN=Test CA",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    )
    run("req", *key[:-2], "-subj", "/CN=broker", "-keyout", "key.pem", "-out", "request.pem")
    extensions = "subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    (folder / "names").write_text(extensions)
    run("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "cert.pem")  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("tls", "connects"),
    [
        ({"ca": "ca.pem"}, True),
        ({"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}, True),
        ({"verify": False}, True),
        ({}, False),
        ({"ca": "missing.pem"}, False),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves open what it cannot shake
async def test_tls_is_checked_as_the_settings_say(certificates, tls, connects):
    port = free_port()
    extra = [
        f"listener {port} 127.0.0.1", f"cafile {certificates / 'ca.pem'}", f"certfile {certificates / 'cert.pem'}",
        f"keyfile {certificates / 'key.pem'}",
    ]  # fmt: skip
    with Mosquitto(*extra, "allow_anonymous true") as broker:
        settings = Tls(**{k: certificates / v if isinstance(v, str) else v for k, v in tls.items()})
        world = World(port, reading("a", "x"), tls=settings)
        async with world.running(), watch(world, broker.port) as watcher:
            if connects:
                await holds(watcher, world)
            else:
                await eventually(lambda: world.sink.describe()["error"])
                assert not world.sink.connected
    gc.collect()  # of the socket that paho leaves open after a handshake that failed


async def test_a_broker_that_closes_before_it_answers_is_asked_again_soon(mosquitto):
    async with Proxy(mosquitto.port).running() as proxy:
        proxy.refuses = True
        world = World(proxy.port, reading("a"))
        async with world.running():
            await eventually(lambda: "before the broker answered" in str(world.sink.describe()["error"]), within=3)
            proxy.refuses = False
            await eventually(lambda: world.sink.connected, within=3)


async def test_a_broker_that_came_to_know_mqtt_5_is_spoken_to_in_it(mosquitto):
    async with Proxy(mosquitto.port, level=4, refusal=b"\x20\x02\x00\x01").running() as proxy:
        world = World(proxy.port, reading("a"))
        async with world.running():
            await eventually(lambda: world.sink.connected)
            proxy.level = 5
            proxy.cut()
            await eventually(lambda: proxy.levels == [5, 4, 5] and world.sink.connected)


async def test_a_connection_that_is_made_too_late_is_dropped(mosquitto, monkeypatch):
    release = threading.Event()
    connect = Client._client_connect

    def late(client):
        release.wait(10)
        connect(client)

    async with Proxy(mosquitto.port).running() as proxy:
        world = World(proxy.port, reading("a"))
        monkeypatch.setattr(Client, "_client_connect", late)
        task = asyncio.create_task(world.sink.run(world.hub))
        await eventually(lambda: any(t.get_name() == "mqtt connection" for t in asyncio.all_tasks()))
        await world.stop(task)
        release.set()
        await eventually(lambda: proxy.levels == [5])
        await eventually(lambda: proxy._open == set())
