"""The last messages of a connection, in virtual time, on a broker that acknowledges when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.support.mqtt_harness import MqttHarness
from tests.support.virtual_time import VirtualTimeLoop


class Broker:
    """One connection to a broker, which has received `states`."""

    maximum_packet_size, receive_maximum, maximum_qos, retain_available = 0xFFFF_FFFF, 20, 2, True

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

    async def subscribe(self, _: object) -> None: ...

    async def unsubscribe(self, _: object) -> None: ...

    async def read(self, _: object) -> None:
        await asyncio.Event().wait()

    def drop(self) -> None:
        self.ended = "dropped"


def connected(loop: VirtualTimeLoop, broker: Broker) -> tuple[MqttHarness, asyncio.Task[None]]:
    """A sink whose daemon reads the past, and the task that runs it."""
    world = MqttHarness(1)
    world.hub.status.loading = True
    connector: Any = world.sink._connector
    connector.connection = broker.connection
    return world, loop.create_task(world.sink.run(world.hub))


def test_no_state_follows_offline_when_the_daemon_stops_just_as_it_has_loaded(loop):
    broker = Broker()
    world, task = connected(loop, broker)
    broker.acknowledged["offline"].clear()
    loop.run(1)
    task.cancel()
    loop.run(1)
    world.hub.status.loading = False
    loop.run(1)
    broker.acknowledged["offline"].set()
    loop.run(1)
    assert (broker.states, broker.ended) == (["starting", "stopping", "offline"], "disconnected")


def test_the_goodbye_waits_for_the_state_in_flight(loop):
    broker = Broker()
    world, task = connected(loop, broker)
    broker.acknowledged["online"].clear()
    loop.run(1)
    world.hub.status.loading = False
    loop.run(1)
    task.cancel()
    loop.run(1)
    assert broker.states == ["starting", "online"]
    broker.acknowledged["online"].set()
    loop.run(1)
    assert (broker.states, broker.ended) == (["starting", "online", "stopping", "offline"], "disconnected")


@pytest.mark.parametrize("silent_from", ["online", "stopping", "offline"])
def test_without_an_acknowledgement_the_connection_is_dropped_so_that_the_will_says_offline(loop, silent_from):
    broker = Broker()
    world, task = connected(loop, broker)
    loop.run(1)
    broker.acknowledged[silent_from].clear()
    world.hub.status.loading = False
    loop.run(1)
    task.cancel()
    loop.run(6.9)
    assert (broker.ended, task.done()) == ("", False)
    loop.run(0.2)
    assert (broker.ended, task.cancelled(), broker.states[-1]) == ("dropped", True, silent_from)


def test_a_stop_that_is_cancelled_again_leaves_offline_to_the_last_will(loop):
    broker = Broker()
    _, task = connected(loop, broker)
    broker.acknowledged["stopping"].clear()
    loop.run(1)
    for _ in range(2):
        task.cancel()
        loop.run(1)
    assert (broker.ended, task.cancelled()) == ("dropped", True)
