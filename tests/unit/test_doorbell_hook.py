"""The private attribute of aiomysql on which the doorbell depends: a version that no longer has it fails here.

Checked with aiomysql 0.3.2. After an upgrade fails here, adapt `correlator/sources/doorbell.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

import aiomysql
import pytest

from correlator.sources.doorbell import transport_of
from tests.support.eventually import PATIENCE

GREETING = (
    b"\x0a10.11.0-MariaDB\0" + b"\x07\0\0\0" + b"saltsalt\0" + b"\xff\xf7\x2d\x02\0\xff\x81\x15" + bytes(10)
    + b"saltsaltsalt\0" + b"mysql_native_password\0"
)  # fmt: skip
"""The first packet of a server: version, thread, salt, capabilities, and the plugin that checks the password."""

OK = b"\0\0\0\x02\0\0\0"


def packet(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes((await reader.readexactly(4))[:3], "little"))


@contextlib.asynccontextmanager
async def logged_in() -> AsyncIterator[tuple[aiomysql.Connection, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of aiomysql to a server that admits everybody, and the server's end of it."""
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(packet(0, GREETING))
        await read_packet(reader)
        writer.write(packet(2, OK))
        arrived.put_nowait((reader, writer))

    async with await asyncio.start_server(admit, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = await aiomysql.connect(host="127.0.0.1", port=port, user="u", autocommit=None)
        reader, writer = await arrived.get()
        try:
            yield connection, reader, writer
        finally:
            connection.close()
            writer.close()


class Received(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.arrived = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.arrived.set()


async def test_the_transport_of_a_connection_that_aiomysql_opened_can_be_taken_over():
    async with logged_in() as (connection, reader, writer), asyncio.timeout(PATIENCE):
        try:
            transport = transport_of(connection)
        except AttributeError as error:
            pytest.fail(f"aiomysql {version('aiomysql')} is not as sources/doorbell.py needs it: {error}")
        received = Received()
        transport.set_protocol(received)
        transport.write(packet(0, b"a command"))
        assert await read_packet(reader) == b"a command"
        writer.write(b"an answer")
        await received.arrived.wait()
        assert received.data == b"an answer"
