"""What a connection reads first and says last, in virtual time, on a broker that answers when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
import pytest
from paho.mqtt.client import topic_matches_sub

from correlator.sinks.mqtt.connection import Connector
from correlator.sinks.mqtt.topics import TopicKey
from tests.support.mqtt_harness import MqttHarness
from tests.support.virtual_time import VirtualTimeLoop

OnMessage = Callable[[str, bytes, bool], None]


class Broker:
    """One connection to a broker, which has received `states`."""

    maximum_packet_size, receive_maximum, maximum_qos, retain_available = 0xFFFF_FFFF, 20, 2, True
    retained_at = -math.inf

    def __init__(self) -> None:
        self.states: list[str] = []
        self.acknowledged = {state: asyncio.Event() for state in ("starting", "online", "stopping", "offline")}
        """The states that it acknowledges once their events are set. It acknowledges all other messages."""
        for event in self.acknowledged.values():
            event.set()
        self.ended = ""
        """How the connection has ended: with a DISCONNECT, or dropped, so that the broker publishes the last will."""

    @contextlib.asynccontextmanager
    async def connection(self, will: object) -> AsyncIterator[Broker]:
        del will
        try:
            yield self
        finally:
            self.ended = self.ended or "disconnected"

    async def publish(self, topic: str, payload: bytes, **_: Any) -> None:
        if topic.endswith("/status"):
            state = orjson.loads(payload)["state"]
            self.states.append(state)
            await self.acknowledged[state].wait()

    async def subscribe(self, filters: Sequence[tuple[str, object]]) -> None: ...

    async def unsubscribe(self, _: object) -> None: ...

    async def read(self, on_message: OnMessage) -> None:
        del on_message
        await asyncio.Event().wait()

    def drop(self) -> None:
        self.ended = "dropped"


def connected(loop: VirtualTimeLoop, broker: Broker) -> tuple[MqttHarness, asyncio.Task[None]]:
    """A sink whose daemon reads the past, and the task that runs it."""

    class Connecting(Connector):
        connection: Any = staticmethod(broker.connection)

    world = MqttHarness(1, sink={"connecting": Connecting})
    world.hub.status.loading = True
    return world, loop.create_task(world.sink.run(world.hub))


@pytest.mark.parametrize(
    ("silent", "loads_before", "states"),
    [
        ("offline", False, ["starting", "stopping", "offline"]),
        ("online", True, ["starting", "online", "stopping", "offline"]),
    ],
)
def test_the_goodbye_waits_for_the_state_in_flight_and_no_other_follows_it(loop, silent, loads_before, states):
    """Also if the daemon stops just as it has loaded."""
    broker = Broker()
    world, task = connected(loop, broker)
    broker.acknowledged[silent].clear()
    loop.run(1)
    world.hub.status.loading = not loads_before
    loop.run(1)
    task.cancel()
    loop.run(1)
    world.hub.status.loading = False
    loop.run(1)
    assert broker.states == states[: states.index(silent) + 1]
    broker.acknowledged[silent].set()
    loop.run(1)
    assert (broker.states, broker.ended) == (states, "disconnected")


@pytest.mark.parametrize("is_cancelled_again", [False, True])
@pytest.mark.parametrize("silent_from", ["online", "stopping", "offline"])
def test_without_an_acknowledgement_the_connection_is_dropped_so_that_the_will_says_offline(
    loop, silent_from, is_cancelled_again
):
    broker = Broker()
    world, task = connected(loop, broker)
    loop.run(1)
    broker.acknowledged[silent_from].clear()
    world.hub.status.loading = False
    loop.run(1)
    task.cancel()
    loop.run(6.9)
    assert (broker.ended, task.done()) == ("", False)
    if is_cancelled_again:
        task.cancel()
    loop.run(0.05 if is_cancelled_again else 0.2)
    assert (broker.ended, task.cancelled(), broker.states[-1]) == ("dropped", True, silent_from)


class PausingBroker(Broker):
    """It retains `retained`, and sends at most two of them for a subscription, none for each second one."""

    def __init__(self) -> None:
        super().__init__()
        self.retained: dict[str, bytes] = {}
        self.most = itertools.cycle([2, 0])
        self.on_message: OnMessage = lambda *_: None

    async def publish(self, topic: str, payload: bytes, **more: Any) -> None:
        await super().publish(topic, payload, **more)
        if not payload:
            self.retained.pop(topic, None)

    async def subscribe(self, filters: Sequence[tuple[str, object]]) -> None:
        wanted = [topic for name, _ in filters for topic in self.retained if topic_matches_sub(name, topic)]
        for topic in wanted[: next(self.most)]:
            self.on_message(topic, self.retained[topic], True)

    async def read(self, on_message: OnMessage) -> None:
        self.on_message = on_message
        await asyncio.Event().wait()


def test_devices_that_a_pausing_broker_had_not_sent_are_removed_and_the_marker_after_them(loop):
    broker = PausingBroker()
    world, _ = connected(loop, broker)
    marker = world.topics.of(TopicKey("marker"))
    devices = [world.topics.of(TopicKey("discovery", f"vm{n}")) for n in range(5)]
    broker.retained = dict.fromkeys([marker, *devices], b"{}")
    world.hub.status.loading = False
    for _ in range(1000):
        loop.run(1)
        assert marker in broker.retained or not broker.retained
    assert not broker.retained
