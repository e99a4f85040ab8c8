"""The MQTT sink and the limits of a broker: they are kept, and the broker's reasons are reported in words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from correlator.sinks.mqtt.connection import MqttTimings
from tests.support import hostile_broker
from tests.support.accepting import accepting
from tests.support.background import in_background
from tests.support.eventually import eventually
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt_harness import MqttHarness, drained, reading, watch
from tests.support.servers import free_port


class Broker:
    """Speaks as much MQTT as a publisher needs, and is strict about what it said that it takes.

    `receive_maximum`: messages it takes before the first acknowledgement; each is held back for a moment.
    `closes_above`: bytes of a packet at which it closes, without a word.
    `says`: a DISCONNECT reason to every PUBLISH. `holds`: it acknowledges
    nothing until so many messages were in flight at once. `keep_alive`: Server Keep Alive of its CONNACK, in seconds.
    """

    def __init__(
        self,
        *,
        level: int = 5,
        receive_maximum: int = 0,
        closes_above: int = 1 << 30,
        says: int = 0,
        holds: int = 0,
        keep_alive: int = 0,
    ) -> None:
        self.port = free_port()
        self.level = level
        self.receive_maximum = receive_maximum
        self.closes_above = closes_above
        self.says = says
        self.holds = holds
        self.keep_alive = keep_alive
        self.pings = 0
        self.connections = 0
        self.most = 0
        self.exceeded = 0
        self.retained: dict[str, bytes] = {}
        self.sizes: list[int] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Broker]:
        async with accepting(self._accept, self.port, limit=1 << 24):
            yield self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: list[int] = []
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._packet(reader, writer, waiting):
                pass

    async def _packet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: list[int]) -> bool:
        head, length = await hostile_broker.read_head(reader)
        if head >> 4 == 3:
            self.sizes.append(length)
            if length > self.closes_above:
                return False
        body = await reader.readexactly(length)
        match head >> 4:
            case 1 if body[6] > self.level:
                writer.write(b"\x20\x02\x00\x01")
                return False
            case 1:
                self.connections += 1
                limit = b"\x21" + self.receive_maximum.to_bytes(2, "big") if self.receive_maximum else b""
                limit += b"\x13" + self.keep_alive.to_bytes(2, "big") if self.keep_alive else b""
                writer.write(
                    hostile_broker.packet(0x20, b"\x00\x00" + (bytes([len(limit)]) + limit if self.level == 5 else b""))
                )
            case 3:
                return self._published(head, body, writer, waiting)
            case 8:
                writer.write(
                    hostile_broker.packet(0x90, body[:2] + (b"\x00" if self.level == 5 else b"") + b"\x00\x00")
                )
            case 10:
                writer.write(hostile_broker.packet(0xB0, body[:2] + (b"\x00\x00\x00" if self.level == 5 else b"")))
            case 12:
                self.pings += 1
                writer.write(b"\xd0\x00")
            case 14:
                return False
        return True

    def _published(self, head: int, body: bytes, writer: asyncio.StreamWriter, waiting: list[int]) -> bool:
        if self.says:
            writer.write(hostile_broker.packet(0xE0, bytes([self.says, 0])))
            return False
        size = int.from_bytes(body[:2], "big")
        topic, rest = body[2 : 2 + size].decode(), body[2 + size :]
        if head & 0x06 == 0:
            return True
        number, rest = rest[:2], rest[2:]
        payload = rest[1 + rest[0] :] if self.level == 5 else rest
        waiting.append(1)
        self.most = max(self.most, len(waiting))
        if self.receive_maximum and len(waiting) > self.receive_maximum:
            self.exceeded += 1
            writer.write(hostile_broker.packet(0xE0, b"\x93\x00"))
            return False

        def acknowledge() -> None:
            if self.most < self.holds:
                asyncio.get_running_loop().call_later(0.02, acknowledge)
                return
            waiting.pop()
            if head & 1:
                self.retained[topic] = payload
            writer.write(hostile_broker.packet(0x40, number + (b"\x00\x00" if self.level == 5 else b"")))

        asyncio.get_running_loop().call_later(0.02, acknowledge)
        return True


def said(caplog: pytest.LogCaptureFixture, words: str) -> Callable[[], bool]:
    return lambda: any(words in message for message in caplog.messages)


@pytest.mark.parametrize(("receive_maximum", "most"), [(1, 1), (2, 2), (10, 10), (0, 20)])
async def test_no_more_messages_are_in_flight_than_the_broker_accepts_and_twenty_at_most(receive_maximum, most):
    async with Broker(receive_maximum=receive_maximum, holds=most).running() as broker:
        world = MqttHarness(broker.port, *(reading(f"j{n}", started=n) for n in range(60)))
        async with world.running():
            await eventually(lambda: {world.state(f"j{n}") for n in range(60)} <= set(broker.retained))
        assert (broker.most, broker.exceeded, broker.connections) == (most, 0, 1)


async def test_the_client_pings_a_broker_as_often_as_that_asks_for():
    """MQTT 5, 3.2.2.3.14. paho does so from 2.2 on."""
    async with Broker(keep_alive=1).running() as broker:
        world = MqttHarness(broker.port, reading("a"), sink={"timings": MqttTimings(keepalive=3_600)})
        async with world.running():
            await eventually(lambda: broker.pings >= 2)
        assert broker.connections == 1


@pytest.mark.parametrize(
    ("code", "name", "advice"),
    [
        (0x93, "Receive maximum exceeded (0x93)", "more messages were in flight"),
        (0x97, "Quota exceeded (0x97)", "raise it there"),
        (0x8E, "Session taken over (0x8E)", "mqtt.client_id"),
        (0x87, "Not authorized (0x87)", "allow publishing"),
    ],
)
async def test_the_reason_of_a_broker_s_disconnect_is_reported_in_words(code, name, advice, caplog):
    async with Broker(says=code).running() as broker:
        world = MqttHarness(broker.port, reading("a"))
        async with world.running():
            await eventually(said(caplog, name))
            (first, *_) = [m for m in caplog.messages if name in m]
            assert advice in first
            await eventually(lambda: name in str(world.sink.describe()["error"]))


@pytest.mark.parametrize("level", [4, 5])
async def test_a_message_at_which_a_broker_closes_is_left_out_after_three_times(level, caplog):
    async with Broker(level=level, closes_above=20_000).running() as broker:
        jobs = [reading(f"j{n}", error="x" * 30_000 if n == 5 else None, started=n) for n in range(30)]
        world = MqttHarness(broker.port, *jobs)
        async with world.running():
            small = {world.state(f"j{n}") for n in range(30) if n != 5}
            await eventually(lambda: small <= set(broker.retained))
            await eventually(lambda: world.sink.describe()["pending"] == 0)
            assert sum(size > 20_000 for size in broker.sizes) == 3
            assert world.sink.describe()["skipped"] == 1
            assert sum("is left out until it changes" in m for m in caplog.messages) == 1
            world.change("j5", started=5)
            await eventually(lambda: world.state("j5") in broker.retained)
            await eventually(lambda: world.sink.describe()["skipped"] == 0)


async def test_a_message_over_the_packet_size_of_the_broker_is_left_out_and_no_other():
    with Mosquitto("max_packet_size 20000") as broker:
        world = MqttHarness(broker.port, *(reading(f"j{n}", error="x" * 30_000 if n == 2 else None) for n in range(5)))
        async with world.running(), watch(world, broker.port) as watcher:
            due = world.due()
            del due[world.state("j2")]
            await eventually(lambda: watcher.jobs() == due)
            await eventually(lambda: (world.sink.describe()["pending"], world.sink.describe()["skipped"]) == (0, 1))
            assert world.sink.connected
            assert world.sink.describe()["error"] == "the broker refuses messages: over 20000 bytes"


async def test_a_broker_that_supports_less_is_published_to_all_the_same(caplog):
    with Mosquitto("retain_available false", "max_qos 0") as broker:
        world = MqttHarness(broker.port, reading("a"), reading("b"))
        async with world.running():
            await eventually(lambda: world.sink.connected)
            await eventually(lambda: world.sink.describe()["pending"] == 0)
            error = str(world.sink.describe()["error"])
            assert "retained" in error
            assert "QoS 0" in error
        assert sum("the broker is limited" in m for m in caplog.messages) == 1


async def test_a_broker_that_refuses_each_message_for_another_reason_does_not_fill_the_log(caplog):
    world = MqttHarness(port := free_port(), *(reading(f"j{n}") for n in range(200)))
    async with in_background(hostile_broker.broker("", {}, port=port, attack="refusals")), world.running():
        await eventually(lambda: world.sink.connected and drained(world, 0))
        assert "refuses messages" in world.sink.describe()["error"]
    lines = [record.getMessage() for record in caplog.records if "refuses messages" in record.getMessage()]
    assert len(lines) == len({*lines}) <= 5
