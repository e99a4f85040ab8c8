"""A failed attempt leaves nothing that only a full garbage collection frees: these are rare, and attempts go on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from yarl import URL

from correlator.config.schema import Mqtt
from correlator.config.values import BrokerUrl
from correlator.errors import SourceUnavailable
from correlator.jobs.index import Index
from correlator.pipeline.pipeline import LocalHub
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt.sink import MqttSink
from correlator.sinks.receiver import Receiver, open_session
from correlator.sources.db.mariadb import Address, MariaDBDatabase
from correlator.tasks import Backoff
from tests.support.eventually import eventually
from tests.support.servers import free_port

CONNACK = b"\x20\x03\x00\x00\x00"
"""The answer of an MQTT 5 broker that accepts a connection."""


@pytest.fixture(params=["refused", "lost"])
async def port(request) -> AsyncIterator[int]:
    """A port at which nothing listens, or a server that ends each connection after its first bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(CONNACK)
        writer.close()

    if request.param == "refused":
        yield free_port()
        return
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def left(attempt: Callable[[], Awaitable[object]], *kinds: str) -> None:
    """Make some attempts, and wait until no object of these types is left of them, without a garbage collection."""

    def count() -> int:
        return sum(type(one).__name__ in kinds for one in gc.get_objects())

    await attempt()
    gc.collect()
    gc.disable()
    before = count()
    try:
        for _ in range(5):
            await attempt()
        await eventually(lambda: count() <= before)
    finally:
        gc.enable()


class Pauses(Backoff):
    """Nine short pauses between attempts, then a long one."""

    count = 0

    def next(self) -> float:
        self.count += 1
        return 0.01 if self.count < 10 else 3600.0


async def test_connections_to_a_broker_that_fail_leave_nothing(port):
    async def attempts() -> None:
        pauses = Pauses()
        settings = Mqtt(url=BrokerUrl("127.0.0.1", port, tls=False), instance="x")
        running = asyncio.create_task(MqttSink(settings, EventLog(), backoff=pauses).run(LocalHub(Index())))
        await eventually(lambda: pauses.count == 10)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    await left(attempts, "MqttClient")


async def test_requests_to_a_receiver_that_fail_leave_nothing(port):
    receiver = Receiver(URL(f"http://127.0.0.1:{port}/"), {}, None, 5.0)
    async with open_session() as session:
        await left(lambda: receiver.post(session, b"x"), "ClientRequest", "ResponseHandler")


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_connections_to_a_database_that_fail_leave_nothing(port, driver):
    database = MariaDBDatabase(Address(port=port), driver=driver, connect_timeout=0.3)

    async def attempt() -> None:
        with pytest.raises(SourceUnavailable):
            await database.open()

    await left(attempt, "Connection")
