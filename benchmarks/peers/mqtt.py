"""Retained states to a broker with QoS 1: by the correlator's sink, or the same messages by aiomqtt alone."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiomqtt
import uvloop
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.facts import now, readings
from correlator.config.schema import Mqtt
from correlator.config.values import BrokerUrl
from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.outbox import MqttEvents, MqttOutbox
from correlator.sinks.mqtt.sink import MqttSink
from correlator.sinks.mqtt.topics import MqttMessage, Topics

WINDOW = 20
STATES = "correlator/v1/+/job/+/state"


def filled(jobs: int) -> LocalHub:
    """A hub with so many jobs of ten steps."""
    index = Index(max_jobs=2 * jobs)
    index.apply(readings(index, jobs), now())
    index.loading = False
    hub = LocalHub(index)
    hub.status.loading = False
    return hub


def messages(hub: LocalHub, instance: str) -> list[MqttMessage]:
    """All that the sink would publish of it."""
    events = MqttEvents(EventLog(), time.monotonic)
    tree = MqttOutbox(Topics(f"correlator/v1/{instance}"), hub.published, hub.epoch, events, time.monotonic)
    for _ in tree.begin():
        pass
    found: list[MqttMessage] = []
    while (parcel := tree.pop_next(time.monotonic())) is not None:
        found += parcel.messages
        tree.acknowledged(parcel.tag)
    return found


async def by_the_sink(port: int, jobs: int) -> float:
    """Seconds from the connection until all is acknowledged."""
    hub = filled(jobs)
    sink = MqttSink(Mqtt(url=BrokerUrl.parse(f"mqtt://127.0.0.1:{port}"), instance="ours"), EventLog())
    running = asyncio.create_task(sink.run(hub))
    while not sink.connected:  # noqa: ASYNC110 - it is measured from outside
        await asyncio.sleep(0.001)
    began = time.perf_counter()
    while sink.describe()["pending"] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0)
    while sink.describe()["pending"]:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - began
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return seconds


async def by_aiomqtt(port: int, messages: list[MqttMessage]) -> float:
    """Seconds to publish what was made before."""
    window = asyncio.Semaphore(WINDOW)
    async with aiomqtt.Client(
        "127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, max_inflight_messages=WINDOW, identifier="theirs"
    ) as client:
        client.pending_calls_threshold = 2 * WINDOW
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"

        async def publish(message: MqttMessage) -> None:
            await client.publish(message.topic, message.payload, qos=1, retain=True, properties=properties)
            window.release()

        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for message in messages:
                await window.acquire()
                tasks.create_task(publish(message))
        return time.perf_counter() - began


async def main(port: int, jobs: int, client: str) -> dict[str, Any]:
    count = len(messages(filled(jobs), "theirs"))
    if client == "sink":
        seconds = await by_the_sink(port, jobs)
    else:
        seconds = await by_aiomqtt(port, messages(filled(jobs), "theirs"))
    return {"rate": count / seconds}


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(main(**json.loads(sys.argv[1])))))
