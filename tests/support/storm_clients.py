"""The storms: what a crowd of clients does, in a process of its own (`tests/support/storms.py`).

Each function runs until it is cancelled, and counts what it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable

import aiohttp


async def requests(url: str, counts: dict[str, int], *, connections: int, path: str) -> None:
    """Connections that repeat a request. ``{n}`` in `path` is another number each time."""
    numbers = itertools.count()
    await _ask(url, counts, connections, lambda: path.replace("{n}", str(next(numbers) % 20)))


async def unread(url: str, counts: dict[str, int], *, connections: int, path: str) -> None:
    """Connections that ask for `path` and read nothing of the reply."""
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            counts["asked"] = counts.get("asked", 0) + 1
        await asyncio.Event().wait()


async def _ask(url: str, counts: dict[str, int], connections: int, path: Callable[[], str]) -> None:
    """Connections that repeat a request, each as soon as it has the reply."""

    async def one() -> None:
        while True:
            try:
                async with session.get(path()) as response:
                    await response.read()
                    key = str(response.status)
            except (OSError, aiohttp.ClientError) as error:
                key = type(error).__name__
                await asyncio.sleep(0.1)
            counts[key] = counts.get(key, 0) + 1

    async with (
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(connections):
            tasks.create_task(one())


async def connects(url: str, counts: dict[str, int], *, connections: int, asking: str = "") -> None:
    """Connections that send `asking`, read what comes, and connect again as soon as they are closed."""
    port = int(url.rpartition(":")[2])

    async def one() -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                counts["connected"] = counts.get("connected", 0) + 1
                try:
                    writer.write(asking.encode())
                    while await reader.read(65_536):
                        pass
                finally:
                    writer.transport.abort()
            except OSError as error:
                key = type(error).__name__
                counts[key] = counts.get(key, 0) + 1
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(one())


async def waits(url: str, counts: dict[str, int], *, connections: int) -> None:
    """Connections that wait 60 s for an ID that no job has, each for another one."""
    numbers = itertools.count()
    await _ask(url, counts, connections, lambda: f"/api/v1/jobs/nobody-1758553933-{next(numbers)}?wait=60")
