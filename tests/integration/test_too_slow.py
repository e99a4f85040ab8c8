"""A reader that takes nothing is told that it was too slow when it reads again: the real listener, less patient."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import aiohttp

from correlator import metrics
from correlator.hub import Hub
from correlator.jobs.index import Index
from correlator.jobs.model import JobRecord, Reading
from correlator.sinks import fanout, websocket
from tests.listener import served
from tests.servers import eventually

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
    async with aiohttp.ClientSession(connector=connector) as session, session.ws_connect(f"{url}/ws") as ws:
        await ws.send_json({"type": "hello", "version": 1})
        await ws.send_json({"type": "subscribe", "id": 1})
        yield ws


def change(hub: Hub, text: str) -> None:
    index = hub.index
    record = JobRecord("j", status="running", started_at=NOW, error_message=text)
    hub.publish(index.apply([Reading("j", index.look(), record, ())], NOW))


async def test_a_frozen_websocket_is_closed_with_4508_and_one_that_answers_pings_is_not(monkeypatch):
    monkeypatch.setattr(fanout, "TOO_SLOW_AFTER", 0.5)
    monkeypatch.setattr(fanout, "TOO_SLOW_WITH_MUCH_AFTER", 0.5)
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.2)
    monkeypatch.setattr(websocket, "PONG_WITHIN", 0.5)
    index = Index()
    index.loading = False
    hub = Hub(index)
    hub.loading = None
    before = metrics.READERS_CLOSED.labels("slow")._value.get()
    async with served(hub) as url, connected(url) as frozen, connected(url) as reading:
        task = asyncio.create_task(_read(reading))
        for n in range(120):  # more than the buffers of the kernel hold
            change(hub, f"{n} " + "x" * 300_000)
            await asyncio.sleep(0.005)
        await eventually(lambda: metrics.READERS_CLOSED.labels("slow")._value.get() == before + 1, within=10)
        assert await _read(frozen) == 4508
        await asyncio.sleep(1.5)  # some pings
        assert not task.done()
        change(hub, "end")
        task.cancel()


async def test_a_peer_that_is_gone_without_a_word_is_let_go(monkeypatch):
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.2)
    monkeypatch.setattr(websocket, "PONG_WITHIN", 0.3)
    hub = Hub(Index())
    before = metrics.READERS_CLOSED.labels("gone")._value.get()
    async with served(hub) as url:
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
        await eventually(lambda: metrics.READERS_CLOSED.labels("gone")._value.get() == before + 1, within=10)
        writer.close()


async def _read(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read on; the close code at the end."""
    while True:
        message = await ws.receive()
        if message.type is aiohttp.WSMsgType.CLOSE:
            return int(message.data)
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
            return ws.close_code
