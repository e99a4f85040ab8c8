"""The MQTT sink against a real broker: what is retained is what the index says, whatever happens to the broker."""

import asyncio
import time
from typing import Any

import aiomqtt
import pytest

from correlator.jobs.encoding import rfc3339
from correlator.sinks.mqtt import publisher, topics
from correlator.sinks.mqtt.connection import MqttTimings
from tests.support.eventually import eventually
from tests.support.mqtt_harness import MqttHarness, gone, holds, reading, watch
from tests.support.pipeline_harness import NOW


async def test_what_is_retained_is_what_the_index_says(mosquitto):
    jobs = (
        reading("a", "x", "y/1 ä", vm="web/1 +#ä\0"),
        reading("b", "x", started=5, vm="web/1 +#ä\0"),
        reading("c", status="completed", vm="ä" * 1000),
    )
    world = MqttHarness(mosquitto.port, *jobs, sink={"timings": MqttTimings(index_interval=3600.0)})
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        assert watcher.retained[world.ext("x")]["job_id"] == "b"
        world.learn(gone("b"))
        await holds(watcher, world)
        assert [said and said["job_id"] for said in watcher.said(world.ext("x"))] == ["b", "a"]
        assert [said and said.get("deleted") for said in watcher.said(world.state("b"))] == [None, True, None]
        world.change("a", "x", "y/1 ä", status="completed", vm="web/1 +#ä\0")
        world.learn(reading("new", "z", started=20))
        await holds(watcher, world)
        assert watcher.retained[world.topics.status]["state"] == "online"
        assert watcher.retained[world.topics.status]["at"] == rfc3339(NOW)
        # Published at the connect, and again only after the interval. An ID that moves to another job increments seq.
        assert watcher.retained[world.topics.index] == {"epoch": world.hub.epoch, "seq": 4, "count": 3}
        assert world.index.published.seq == 8
        await eventually(lambda: world.sink.describe()["pending"] == 0)
    assert world.sink.describe() == {
        "ok": False, "connected": False, "pending": 0, "age_seconds": 0.0, "error": None, "skipped": 0, "dropped": 0
    }  # fmt: skip


async def test_the_index_topic_is_published_periodically(mosquitto):
    world = MqttHarness(mosquitto.port, reading("a"), sink={"timings": MqttTimings(index_interval=0.05)})
    async with watch(world, mosquitto.port) as watcher, world.running():
        await eventually(lambda: watcher.retained[world.topics.index]["count"] == 1)
        world.learn(reading("b"))
        await eventually(
            lambda: watcher.retained[world.topics.index] == {"epoch": world.hub.epoch, "seq": 2, "count": 2}
        )


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
        first = [str(m.topic) for m in watcher.messages].index(world.state("b"))
        assert first > [str(m.topic) for m in watcher.messages].index(world.topics.status)


@pytest.mark.parametrize(("retention", "expires"), [(3600.0, 3600 + publisher.BACKSTOP), (9e9, publisher.MAX_EXPIRY)])
async def test_mqtt_5_messages_say_what_they_are_and_ended_jobs_expire(mosquitto, retention, expires):
    jobs = reading("a", "x"), reading("b", status="completed")
    world = MqttHarness(mosquitto.port, *jobs, sink={"retention": retention})
    async with watch(world, mosquitto.port) as watcher, world.running():
        await holds(watcher, world)
        world.happen(1)
        await eventually(lambda: watcher.said(world.event("a")))
        assert {m.properties.ContentType for m in watcher.messages} == {"application/json"}
        expiry: dict[str, Any] = {
            str(m.topic): getattr(m.properties, "MessageExpiryInterval", None) for m in watcher.messages
        }
        # A broker counts the time down that it kept the message.
        assert expires - 60 < expiry.pop(world.state("b")) <= expires
        assert set(expiry.values()) == {None}


async def test_what_an_earlier_run_left_is_removed(mosquitto):
    first = MqttHarness(mosquitto.port, reading("a", "x"), reading("b/1", "y", "z"), epoch="e1")
    async with watch(first, mosquitto.port) as watcher:
        async with first.running():
            await holds(watcher, first)
        # The daemon was away for long, and has no memory of what it knew.
        second = MqttHarness(mosquitto.port, reading("a", "x"), reading("c", "z"), instance=first.instance, epoch="e2")
        async with second.running():
            await holds(watcher, second)
            assert watcher.said(first.state("b/1"))[-2:] == [
                {"job_id": "b/1", "deleted": True, "epoch": "e2", "seq": second.index.published.seq}, None,
            ]  # fmt: skip
            assert None not in watcher.said(first.state("a"))
            await eventually(lambda: second.sink.describe()["pending"] == 0)


async def test_a_device_of_home_assistant_exists_while_its_vm_has_jobs_and_the_key_is_set(mosquitto):
    timings = MqttTimings(announce_every=1.0)
    jobs = reading("a", vm="web/1"), reading("b", vm="other")
    world = MqttHarness(mosquitto.port, *jobs, home_assistant=True, sink={"timings": timings})
    topic = world.topics.of(topics.TopicKey("discovery", "web/1"))
    async with watch(world, mosquitto.port) as watcher:
        async with world.running():
            await holds(watcher, world)
            world.learn(gone("b"))
            await holds(watcher, world)
            before = len(watcher.said(topic))
            async with aiomqtt.Client("127.0.0.1", mosquitto.port) as home_assistant:
                await home_assistant.publish("homeassistant/status", b"online")
                await eventually(lambda: len(watcher.said(topic)) == before + 1)
                once = time.monotonic()
                for _ in range(50):
                    await home_assistant.publish("homeassistant/status", b"online")
                await eventually(lambda: len(watcher.said(topic)) >= before + 2)
                assert time.monotonic() - once > 0.5, "a flood of them waits"
                await holds(watcher, world)
                assert len(watcher.said(topic)) == before + 2
        later = MqttHarness(mosquitto.port, reading("a", vm="web/1"), instance=world.instance)
        async with later.running():
            await holds(watcher, later)
            assert watcher.said(topic)[-1] is None


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


async def test_what_an_earlier_run_left_is_removed_in_parts_if_there_is_no_room_for_all(mosquitto):
    timings = MqttTimings(quiet_after=0.2)
    world = MqttHarness(mosquitto.port, reading("a"), sink={"max_left": 50_000, "timings": timings})
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as other, watch(world, mosquitto.port) as watcher:
        for n in range(400):
            await other.publish(world.state(f"left-{n}"), b"{}", retain=True)
        await eventually(lambda: len(watcher.jobs()) == 400)
        async with world.running():
            await holds(watcher, world)
