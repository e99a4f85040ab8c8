"""Websockets of clients that read nothing or answer no ping are closed: the real listener, with short timings."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import aiohttp

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.rows import JobRecord
from correlator.ops import metrics
from correlator.pipeline.local_hub import LocalHub
from correlator.sinks.streaming.limits import Limits
from tests.support.eventually import PATIENCE, eventually
from tests.support.http_listener import served

NOW = time.time_ns() // 1000


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A client with a small window, that pauses as soon as nobody reads from it."""

    def small(info: object) -> socket.socket:
        del info
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return found

    connector = aiohttp.TCPConnector(socket_factory=small)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.ws_connect(f"{url}/ws", autoping=False) as ws,
    ):
        await ws.send_json({"type": "hello", "version": 1})
        await ws.send_json({"type": "subscribe", "id": 1})
        yield ws


def change(hub: LocalHub, text: str) -> None:
    index = hub.index
    record = JobRecord("j", status="running", started_at=NOW, error_message=text)
    hub.publish(index.apply([Reading("j", index.advance_clock(), record, ())], NOW))


async def test_a_frozen_websocket_is_closed_with_4508_and_one_that_answers_pings_is_not():
    # So long that one that answers is no slow one however late this process gets its turn.
    limits = Limits(too_slow_after=2.0, too_slow_with_large_buffer_after=2.0, ping_seconds=0.2, pong_within=PATIENCE)
    index = Index()
    index.loading = False
    hub = LocalHub(index)
    hub.status.loading = False
    before = metrics.CLIENTS_CLOSED.labels("slow")._value.get()
    async with served(hub, limits=limits) as url, connected(url) as frozen, connected(url) as reading:
        pings: list[bytes] = []
        task = asyncio.create_task(_read(reading, pings))
        for n in range(120):  # more than the buffers of the kernel hold
            change(hub, f"{n} " + "x" * 300_000)
            await asyncio.sleep(0.005)
        await eventually(lambda: metrics.CLIENTS_CLOSED.labels("slow")._value.get() == before + 1)
        assert await _read(frozen) == 4508
        await eventually(lambda: len(pings) >= 3)
        assert not task.done()
        change(hub, "end")
        task.cancel()


async def test_a_peer_that_answers_no_ping_is_disconnected():
    hub = LocalHub(Index())
    before = metrics.CLIENTS_CLOSED.labels("gone")._value.get()
    async with served(hub, limits=Limits(ping_seconds=0.2, pong_within=0.3)) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        writer.write(
            f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        hello = b'{"type":"hello","version":1}'
        writer.write(b"\x81" + bytes([0x80 | len(hello)]) + b"\0\0\0\0" + hello)  # a mask of zeros changes nothing
        await eventually(lambda: metrics.CLIENTS_CLOSED.labels("gone")._value.get() == before + 1)
        writer.close()


async def _read(ws: aiohttp.ClientWebSocketResponse, pings: list[bytes] | None = None) -> int | None:
    """Read and answer pings until the end of the connection. Returns the close code."""
    while True:
        message = await ws.receive()
        if message.type is aiohttp.WSMsgType.PING:
            await ws.pong(message.data)
            if pings is not None:
                pings.append(message.data)
        if message.type is aiohttp.WSMsgType.CLOSE:
            return int(message.data)
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            return ws.close_code
