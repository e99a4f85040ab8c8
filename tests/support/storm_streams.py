"""Storms of streaming clients, each a function that `tests.support.storms` runs in a process of its own.

The clients speak the websocket themselves, over bare connections: a library would use more of the machine than the
daemon under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from tests.support import raw_http
from tests.support.daemon import HELLO

frame = partial(raw_http.frame, mask=bytes(4))
"""A frame from a client. A mask of zeros changes nothing."""


def messages(*said: dict[str, Any]) -> bytes:
    return frame(json.dumps(said).encode())


class Raw:
    """A websocket over a bare connection, after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
        self.reader = reader
        self.writer = writer
        self._limit = limit

    async def until(self, text: bytes) -> bytes:
        """Read until the bytes `text` come. Returns what came before them in this call.

        Raises:
            EOFError: The connection was closed.
        """
        found, searched = bytearray(), 0
        while found.find(text, searched) < 0:
            searched = max(0, len(found) - len(text))
            if len(found) > 1 << 20:
                del found[:searched]
                searched = 0
            part = await self.reader.read(self._limit)
            if not part:
                raise EOFError
            found += part
        return bytes(found)


@contextlib.asynccontextmanager
async def raw(url: str, limit: int = 1 << 16) -> AsyncIterator[Raw]:
    """A websocket of the daemon at `url`, which reads up to `limit` bytes at once."""
    where = urlsplit(url)
    assert where.port is not None
    tls = ssl._create_unverified_context() if where.scheme == "https" else None
    async with raw_http.connected(where.port, tls, limit) as (reader, writer):
        writer.write(raw_http.upgrade())
        await reader.readuntil(b"\r\n\r\n")
        yield Raw(reader, writer, limit)


async def position(url: str) -> tuple[str, int]:
    """Where the stream is."""
    async with raw(url) as ws:
        ws.writer.write(messages(HELLO))
        welcome = await ws.until(b'"ping_seconds"')
        found = json.loads(welcome[welcome.index(b"{") :].partition(b',"resumed"')[0] + b"}")
        return found["epoch"], found["seq"]


async def resumes(url: str, counts: dict[str, int], *, clients: int, back: int, repeat: bool = False) -> None:
    """Clients of one job each that were cut at the same moment, `back` changes ago, and resume at once.

    `repeat`: each does it again, as soon as it is synced. Else each stays until all are.
    """
    epoch, seq = await position(url)
    begun = asyncio.get_running_loop().time()
    all_synced = asyncio.Event()

    async def client(number: int) -> None:
        while True:
            hello = {**HELLO, "resume": {"epoch": epoch, "seq": max(seq - back, 1)}}
            wanted = {"type": "subscribe", "id": 1, "jobs": [f"gui-{number}"], "resume": True}
            with contextlib.suppress(OSError, EOFError):
                async with raw(url) as ws:
                    ws.writer.write(messages(hello, wanted))
                    counts["snapshots"] = counts.get("snapshots", 0) + (b'"resync"' in await ws.until(b'"synced"'))
                    counts["synced"] = counts.get("synced", 0) + 1
                    took = asyncio.get_running_loop().time() - begun
                    counts["last_ms"] = max(counts.get("last_ms", 0), int(took * 1000))
                    if counts["synced"] == clients and not repeat:
                        all_synced.set()
                    if not repeat:
                        await all_synced.wait()
                        return

    await asyncio.gather(*(client(n) for n in range(clients)))


async def waves(url: str, counts: dict[str, int], *, clients: int, repeat: int) -> None:
    """Clients of one job each that come at once, stay until all are synced, and leave; `repeat` times."""

    async def client(number: int) -> None:
        async with raw(url) as ws:
            ws.writer.write(messages(HELLO, {"type": "subscribe", "id": 1, "jobs": [f"gui-{number}"]}))
            await ws.until(b'"synced"')
            counts["synced"] = counts.get("synced", 0) + 1
            await together.wait()

    for _ in range(repeat):
        together = asyncio.Barrier(clients)
        await asyncio.gather(*(client(n) for n in range(clients)))


async def pings(url: str, counts: dict[str, int], *, clients: int) -> None:
    """Clients that send pings without end, read nothing, and come back when they have been closed."""
    flood = frame(b"", 9) * 5_000

    async def client() -> None:
        while True:
            with contextlib.suppress(OSError, EOFError):
                async with raw(url) as ws:
                    ws.writer.write(messages(HELLO))
                    counts["connected"] = counts.get("connected", 0) + 1
                    closed = asyncio.ensure_future(ws.until(b"\0never"))
                    while not closed.done():
                        if not ws.writer.is_closing() and ws.writer.transport.get_write_buffer_size() < 1 << 16:
                            ws.writer.write(flood)
                        await asyncio.sleep(0.001)
                    closed.result()

    await asyncio.gather(*(client() for _ in range(clients)))


async def long_messages(url: str, counts: dict[str, int], *, clients: int) -> None:
    """Clients that are all there before each sends long messages without end, and until it is closed.

    One character of four bytes makes each other one of its message take four in memory, as text.
    """
    long = frame(b'{"type":"ping","x":"' + "😀".encode() + b"x" * 65_000 + b'"}')
    together, connecting = asyncio.Barrier(clients), asyncio.Semaphore(50)

    async def client() -> None:
        with contextlib.suppress(OSError, EOFError):
            async with contextlib.AsyncExitStack() as stack:
                async with connecting:
                    ws = await stack.enter_async_context(raw(url))
                    ws.writer.write(messages(HELLO))
                    await ws.until(b"welcome")
                counts["connected"] = counts.get("connected", 0) + 1
                await together.wait()
                while not ws.writer.is_closing():
                    ws.writer.write(long)
                    await ws.writer.drain()
                    counts["sent"] = counts.get("sent", 0) + 1
                    await asyncio.sleep(0.005)
        await asyncio.Event().wait()

    await asyncio.gather(*(client() for _ in range(clients)))


async def subscribers(url: str, counts: dict[str, int], *, clients: int, rate: float) -> None:
    """Clients that each subscribe and unsubscribe `rate` times a second, with filters that differ."""

    async def client(number: int) -> None:
        kinds: list[dict[str, Any]] = [{}, {"status": ["running"]}, {"context_id": [f"ctx-{number % 20}"]}]
        kinds.append({"jobs": [f"gui-{number}"]})
        turn = number
        async with raw(url) as ws:
            ws.writer.write(messages(HELLO))
            reading = asyncio.ensure_future(ws.until(b"\0never"))
            while not reading.done():
                wanted = kinds[turn % len(kinds)]
                turn += 1
                ws.writer.write(messages({"type": "subscribe", "id": 1, **wanted}))
                await asyncio.sleep(0.5 / rate)
                ws.writer.write(messages({"type": "unsubscribe", "id": 1}))
                counts["subscribed"] = counts.get("subscribed", 0) + 1
                await asyncio.sleep(0.5 / rate)
            reading.result()

    await asyncio.gather(*(client(n) for n in range(clients)))


async def readers_of_nothing(url: str, counts: dict[str, int], *, clients: int) -> None:
    """Clients that ask for all log lines and read nothing after the snapshot has begun."""

    async def client() -> None:
        async with raw(url) as ws:
            ws.writer.write(messages(HELLO, {"type": "subscribe", "id": 1, "logs": "DEBUG"}))
            ws.writer.transport.pause_reading()  # type: ignore[attr-defined]
            counts["connected"] = counts.get("connected", 0) + 1
            await asyncio.Event().wait()

    await asyncio.gather(*(client() for _ in range(clients)))
