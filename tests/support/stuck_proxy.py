"""A TCP proxy whose connections can be frozen: it reads no more from them, and closes none. New ones work."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator


class StuckProxy:
    """Passes bytes to a port of this host; its own port is `port`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[StuckProxy]:
        server = await asyncio.start_server(self._accept, sock=self._socket, limit=4096)
        try:
            yield self
        finally:
            server.close()
            self.freeze()
            for writer in self._writers:
                writer.transport.abort()

    def freeze(self) -> None:
        """Read nothing more from the connections there are now."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, target_writer]
        for source, sink in ((reader, target_writer), (target_reader, writer)):
            self._tasks.add(asyncio.create_task(_pass(source, sink)))


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(4096):
            sink.write(data)
            await sink.drain()
        sink.close()
