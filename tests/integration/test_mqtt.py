"""The MQTT sink against a real broker: what is retained is what the index says, whatever happens to the broker."""

import asyncio
import functools
from typing import Any

import orjson
import pytest

from correlator.jobs.encoding import rfc3339
from correlator.ops import metrics
from correlator.sinks.mqtt import publisher, topics
from correlator.sinks.mqtt.connection import MqttTimings
from tests.support.eventually import eventually
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_harness import NOW, MqttHarness, drained, gone, holds, reading, watch


async def test_what_is_retained_is_what_the_index_says(mosquitto):
    jobs = reading("a", "x", "y/1 ä"), reading("b", "x", started=5), reading("c", status="completed")
    world = MqttHarness(mosquitto.port, *jobs, sink={"timings": MqttTimings(index_interval=3600.0)})
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        assert watcher.store[world.ext("x")]["job_id"] == "b"
        world.change("a", "x", "y/1 ä", status="completed")
        world.learn(reading("new", "z", started=20))
        await holds(watcher, world)
        assert watcher.store[world.topics.status]["state"] == "online"
        assert watcher.store[world.topics.status]["at"] == rfc3339(NOW)
        # Published at the connect, and again only after the interval. An ID that moves to another job increments seq.
        assert watcher.store[world.topics.index] == {"epoch": world.hub.epoch, "seq": 4, "count": 3}
        assert world.index.published.seq == 6
        await eventually(lambda: world.sink.describe()["pending"] == 0)
    assert world.sink.describe() == {
        "ok": False, "connected": False, "pending": 0, "age_seconds": 0.0, "error": None, "skipped": 0, "dropped": 0
    }  # fmt: skip


async def test_the_index_topic_is_published_periodically(mosquitto):
    world = MqttHarness(mosquitto.port, reading("a"), sink={"timings": MqttTimings(index_interval=0.05)})
    async with watch(world, mosquitto.port) as watcher, world.running():
        await eventually(lambda: watcher.store[world.topics.index]["count"] == 1)
        world.learn(reading("b"))
        await eventually(lambda: watcher.store[world.topics.index] == {"epoch": world.hub.epoch, "seq": 2, "count": 2})


async def test_no_job_is_published_before_the_past_is_read(mosquitto):
    world = MqttHarness(mosquitto.port, reading("a", "x"))
    world.hub.status.loading = True
    async with watch(world, mosquitto.port) as watcher, world.running():
        await eventually(lambda: watcher.states() == ["starting"])
        world.learn(reading("b"))
        world.learn(gone("a"))
        world.hub.status.loading = False
        await holds(watcher, world)
        await eventually(lambda: watcher.states() == ["starting", "online"])
        first = [str(m.topic) for m in watcher.seen].index(world.state("b"))
        assert first > [str(m.topic) for m in watcher.seen].index(world.topics.status)


async def test_mqtt_5_messages_say_what_they_are_and_ended_jobs_expire(mosquitto):
    world = MqttHarness(
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
        assert 3600 + publisher.BACKSTOP - 60 < expiry.pop(world.state("b")) <= 3600 + publisher.BACKSTOP
        assert set(expiry.values()) == {None}


async def test_events_come_in_order_and_are_not_retained(mosquitto):
    world = MqttHarness(mosquitto.port, reading("a"))
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


async def test_events_wait_for_a_broker_that_is_away_until_there_are_too_many(own_mosquitto, monkeypatch):
    own_mosquitto.kill()
    world = MqttHarness(own_mosquitto.port, reading("a"))
    monkeypatch.setattr(world.sink._events, "_max_events", 3)
    before = metrics.MQTT_EVENTS_DROPPED._value.get()
    async with world.running():
        await eventually(lambda: world.sink.describe()["error"])
        world.happen(1, 2, 3, 4, 5)
        assert metrics.MQTT_EVENTS_DROPPED._value.get() - before == 2
        assert world.sink.describe()["pending"] == 3
        pending = [*world.event_log.stored().values()]
        assert [orjson.loads(payload)["event_id"] for _, _, payload in pending] == [3, 4, 5]
    assert not world.sink.connected
    # The next run of the daemon gets the events that this one could not deliver.
    await asyncio.to_thread(own_mosquitto.start)
    later = MqttHarness(own_mosquitto.port, reading("a"), instance=world.instance, restored=pending)
    async with watch(world, own_mosquitto.port) as watcher, later.running():
        await eventually(lambda: len(watcher.said(world.event("a"))) == 3)
        assert [(e["event_id"], e["epoch"]) for e in watcher.said(world.event("a"))] == [
            (n, world.hub.epoch) for n in (3, 4, 5)
        ]


async def test_an_id_moves_to_the_newest_job_and_back(mosquitto):
    world = MqttHarness(mosquitto.port, reading("old", "x"))
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
    world = MqttHarness(mosquitto.port, reading("a", "x"), reading("b"))
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        last = watcher.store[world.state("a")]
        world.learn(gone("a"))
        await holds(watcher, world)
        assert watcher.said(world.state("a"))[-2:] == [
            {**last, "deleted": True, "seq": world.index.published.seq},
            None,
        ]
        assert watcher.said(world.ext("x"))[-1] is None


async def test_what_an_earlier_run_left_is_removed(mosquitto):
    first = MqttHarness(mosquitto.port, reading("a", "x"), reading("b/1", "y", "z"), epoch="e1")
    async with watch(first, mosquitto.port) as watcher:
        async with first.running():
            await holds(watcher, first)
        # The daemon was away for long, and has no memory of what it knew.
        left = watcher.store[first.state("b/1")]
        second = MqttHarness(mosquitto.port, reading("a", "x"), reading("c", "z"), instance=first.instance, epoch="e2")
        async with second.running():
            await holds(watcher, second)
            assert watcher.said(first.state("b/1"))[-2:] == [
                {**left, "deleted": True, "epoch": "e2", "seq": second.index.published.seq}, None,
            ]  # fmt: skip
            assert None not in watcher.said(first.state("a"))
            await eventually(lambda: second.sink.describe()["pending"] == 0)


async def test_a_new_connection_gets_the_newest_jobs_first(own_mosquitto):
    world = MqttHarness(own_mosquitto.port, *(reading(f"j{n}", f"x{n}", started=n * 7 % 20) for n in range(20)))
    async with watch(world, own_mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        states = [str(m.topic) for m in watcher.seen if str(m.topic).endswith("/state")]
        assert states == [world.state(f"j{n}") for n in sorted(range(20), key=lambda n: n * 7 % 20, reverse=True)]


async def test_a_job_that_changes_all_the_time_is_published_four_times_a_second(mosquitto):
    world = MqttHarness(mosquitto.port, reading("a"), reading("quick"))
    loop = asyncio.get_running_loop()
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        known, start = len(watcher.said(world.state("a"))), loop.time()

        def changing():
            world.change("a")
            return loop.time() - start > 2.0 and len(watcher.said(world.state("a"))) >= known + 2

        await eventually(changing, every=0.005)
        world.learn(reading("other"))
        await holds(watcher, world)
        took = loop.time() - start
        published = len(watcher.said(world.state("a"))) - known
        assert published <= took / topics.SPACING + 1
        assert len(watcher.said(world.state("quick"))) == 1


@pytest.mark.timeout(600)
async def test_1500_jobs_are_all_retained():
    with Mosquitto("max_inflight_messages 20") as broker:
        world = MqttHarness(broker.port, *(reading(f"j{n}", f"x{n}", started=n) for n in range(1500)))
        async with world.running():
            await eventually(lambda: world.sink.connected)
            for most in range(2900, -1, -100):  # as long as it gets on, it may take its time
                await eventually(functools.partial(drained, world, most), every=0.1)
            async with watch(world, broker.port) as watcher:
                await eventually(lambda: len(watcher.jobs()) == 3000, every=0.1)
                await holds(watcher, world, every=1.0)


async def test_a_job_too_large_for_the_broker_does_not_hold_up_the_others():
    with Mosquitto("max_packet_size 20000") as broker:
        world = MqttHarness(broker.port, *(reading(f"j{n}", error="x" * 30_000 if n == 2 else None) for n in range(5)))
        async with world.running(), watch(world, broker.port) as watcher:
            due = world.due()
            del due[world.state("j2")]
            await eventually(lambda: watcher.jobs() == due)
            assert world.sink.connected
            assert world.sink.describe()["error"] == "the broker refuses messages: over 20000 bytes"


async def test_ended_jobs_are_published_also_with_a_retention_of_three_centuries(mosquitto):
    world = MqttHarness(mosquitto.port, reading("a", status="completed"), sink={"retention": 9e9})
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
