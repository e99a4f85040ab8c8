"""What a broker sends to the MQTT client: what is kept of each packet, and which packets end the connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain, repeat

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.config.schema import Mqtt
from correlator.config.values import BrokerUrl
from correlator.sinks.mqtt.connection import DEFAULT, LOST, Connector
from correlator.sinks.mqtt.incoming import KEPT
from tests.support.accepting import accepting
from tests.support.eventually import PATIENCE
from tests.support.hostile_broker import nothing, packet, read_packet, retained, text, variable
from tests.support.servers import free_port

LAST = "the/last"
"""The topic of a message that follows what a test sends."""

USER_PROPERTIES = (b"\x26" + text("") + text("")) * 12_000


@contextlib.asynccontextmanager
async def sending(level: int, pieces: Iterable[bytes]) -> AsyncIterator[Connector]:
    """A broker of one version of MQTT. To a SUBSCRIBE it sends `pieces`, and then a message to `LAST`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            _, connect = await read_packet(reader)
            if connect[6] != level:
                writer.write(b"\x20\x02\0\x01")
            else:
                writer.write(packet(0x20, b"\0\0" + nothing(level)))
                _, subscribe = await read_packet(reader)
                suback = packet(0x90, subscribe[:2] + nothing(level) + b"\0")
                for piece in chain((suback,), pieces, (retained(LAST, b"x", level),)):
                    writer.write(piece)
                    await writer.drain()
            await reader.read(-1)

    port = free_port()
    async with accepting(talk, port):
        yield Connector(Mqtt(url=BrokerUrl("127.0.0.1", port, tls=False)), DEFAULT, lambda _: None)


async def received(level: int, pieces: Iterable[bytes]) -> dict[str, bytes]:
    """The messages that the client gets: topic → payload. Raises: one of `LOST`."""
    found: dict[str, bytes] = {}
    is_last = asyncio.Event()

    def on_message(topic: str, payload: bytes, _: bool) -> None:
        found[topic] = payload
        if topic == LAST:
            is_last.set()

    async with sending(level, pieces) as connector, asyncio.timeout(PATIENCE), connector.connection() as client:
        reading = asyncio.ensure_future(client.read(on_message))
        waiting = asyncio.ensure_future(is_last.wait())
        try:
            await client.subscribe("#")
            await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading
        finally:
            waiting.cancel()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    del found[LAST]
    return found


def large(topic: str, size: int, level: int) -> Iterator[bytes]:
    """A message in pieces."""
    head = text(topic) + nothing(level)
    yield b"\x31" + variable(len(head) + size) + head
    yield from repeat(b"y" * 10_000, size // 10_000)
    yield b"y" * (size % 10_000)


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("size", [1, KEPT - 20, KEPT + 1, 100_000_000])
async def test_of_a_message_of_any_size_the_topic_and_a_beginning_are_kept(level: int, size: int):
    tracemalloc.start()
    try:
        found = await received(level, large("a/topic", size, level))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {*found} == {"a/topic"}
    payload = found["a/topic"]
    assert payload == b"y" * len(payload)
    assert min(size, KEPT - 100) <= len(payload) <= size
    assert peak < 4_000_000


@pytest.mark.parametrize("level", [4, 5])
async def test_a_message_of_qos_1_that_was_not_asked_for_is_read_without_its_identifier(level: int):
    """aedes sends retained messages so, whatever QoS was subscribed."""
    sent = packet(0x33, text("a") + b"\0\x01" + nothing(level) + b"x")
    assert await received(level, [sent]) == {"a": b"x"}


@pytest.mark.parametrize("level", [4, 5])
async def test_messages_that_no_daemon_has_written_are_passed_over(level: int):
    odd = [retained("x" * 65_535, b"1", level), retained("", b"1", level), packet(0x31, b"\0\x01\xff" + b"\0" * 9)]
    assert {*await received(level, [*odd, retained("a", b"1", level), retained("empty", b"", level)])} <= {"", "a"}


async def test_the_properties_of_a_message_take_no_time():
    """paho reads them in a time that grows with the square of their number: 10 s for each of these."""
    messages = [retained(f"topic/{n}", b"payload", 5, USER_PROPERTIES) for n in range(100)]
    assert len(await received(5, messages)) == 100


VIOLATIONS = {
    "QoS 2": packet(0x35, text("a") + b"\0\x01\0x"),
    "a second CONNACK": packet(0x20, b"\0\0\0"),
    "PUBREC": packet(0x50, b"\0\x01"),
    "PUBREL": packet(0x62, b"\0\x01"),
    "PUBCOMP": packet(0x70, b"\0\x01"),
    "PINGREQ": packet(0xC0, b""),
    "AUTH": packet(0xF0, b""),
    "SUBSCRIBE": packet(0x82, b"\0\x01\0" + text("a") + b"\0"),
    "SUBACK of nothing": packet(0x90, b"\xff\xff\0\0"),
    "UNSUBACK of nothing": packet(0xB0, b"\xff\xff\0\0"),
    "PUBACK with user properties": packet(0x40, b"\xff\xff\0" + variable(len(USER_PROPERTIES)) + USER_PROPERTIES),
    "DISCONNECT with user properties": packet(0xE0, b"\0" + variable(len(USER_PROPERTIES)) + USER_PROPERTIES),
    "a PINGRESP of 1 MB": packet(0xD0, b"x" * 1_000_000),
    "a topic beyond its packet": b"\x31\x02\xff\xff",
    "properties beyond their packet": packet(0x31, text("a") + b"\xff\x7f"),
    "a length without end": packet(0x31, text("a") + b"\xff\xff\xff\xff"),
    "a malformed PUBACK": packet(0x40, b""),
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_what_a_broker_must_not_send_ends_the_connection(name: str):
    with pytest.raises(aiomqtt.MqttError, match="malformed" if "malformed" in name else "violates MQTT"):
        await received(5, [VIOLATIONS[name]])


@pytest.mark.parametrize("first", [packet(0x31, text("a") + b"\0x"), b"\xd0\0", b"\xf0\0", packet(0x20, b"")])
async def test_a_broker_that_begins_with_anything_but_an_answer_is_given_up_at_once(first: bytes):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(first)
        await reader.read(-1)

    async with accepting(talk, port := free_port()):
        connector = Connector(Mqtt(url=BrokerUrl("127.0.0.1", port, tls=False)), DEFAULT, lambda _: None)
        began = asyncio.get_running_loop().time()
        with pytest.raises(aiomqtt.MqttError):
            async with connector.connection():
                pass
        assert asyncio.get_running_loop().time() - began < DEFAULT.connect_timeout


async def test_an_attempt_that_is_cancelled_at_any_moment_leaves_no_error_behind():
    """The broker refuses it just then."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(packet(0x20, b"\0\x05"))
        await writer.drain()
        await reader.read(-1)

    async with accepting(talk, port := free_port()):
        connector = Connector(
            Mqtt(url=BrokerUrl("127.0.0.1", port, tls=False), version="3.1.1"), DEFAULT, lambda _: None
        )
        for n in range(40):
            attempt = asyncio.create_task(_connect(connector))
            await asyncio.sleep(n * 0.0002)
            attempt.cancel()
            with contextlib.suppress(asyncio.CancelledError, aiomqtt.MqttError):
                await attempt
        await asyncio.sleep(0.05)
        gc.collect()
    assert not problems


async def _connect(connector: Connector) -> None:
    async with connector.connection():
        pass


PACKETS = st.builds(packet, st.integers(0, 255), st.binary(max_size=40)) | st.sampled_from([*VIOLATIONS])
"""Bytes, or the name of a violation, which may have a megabyte: a failure prints the name."""


@given(st.sampled_from([4, 5]), st.lists(PACKETS | st.binary(max_size=20), max_size=5))
def test_whatever_a_broker_sends_the_client_reads_it_or_ends_the_connection(level: int, pieces: list[bytes | str]):
    sent = [VIOLATIONS[piece] if isinstance(piece, str) else piece for piece in pieces]
    problems: list[object] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with sending(level, sent) as connector:
            with contextlib.suppress(*LOST, TimeoutError):
                async with asyncio.timeout(0.1), connector.connection() as client:
                    await client.subscribe("#")
                    await client.read(lambda *_: None)

    asyncio.run(scenario())
    assert not problems
