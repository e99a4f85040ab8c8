"""A TCP proxy that is a slow link, and counts the round trips that a browser has waited for.

Every byte takes half of a round trip, the link carries so many bytes in a second, and a connection is established after
a whole one. The count needs no time, so it also holds on a link without delay: what a browser sends comes after all
that it has received, on any connection, and the answer is one round trip further. Requests side by side count once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

CHUNK = 1400
UNDER_WAY = 256
"""Chunks of one connection."""


class _Way:
    """One direction of the link, which all connections share."""

    def __init__(self, delay: float, rate: float) -> None:
        self._delay = delay
        self._rate = rate
        self._free_at = 0.0

    def arrival(self, size: int, sent_at: float) -> float:
        """The time at which the last of `size` bytes arrives."""
        self._free_at = max(self._free_at, sent_at) + 8 * size / self._rate
        return self._free_at + self._delay


class SlowLink:
    """Leads to the port `target` of this host. `round_trip`: seconds. `rate`: bits a second, each way.

    `port` 0: any free port.
    """

    def __init__(self, target: int, *, port: int = 0, round_trip: float = 0.0, rate: float = float("inf")) -> None:
        self._target = target
        self._round_trip = round_trip
        self._up, self._down = (_Way(round_trip / 2, rate) for _ in range(2))
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = port
        self.round_trips = 0
        """One after the other, those of handshakes included."""
        self.received = 0
        """Bytes that clients have received."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SlowLink]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        established = self.round_trips + 1
        established_at = asyncio.get_running_loop().time() + self._round_trip
        answered = established

        def sent(data: bytes) -> None:
            nonlocal answered
            answered = max(established, self.round_trips) + 1
            target_writer.write(data)

        def received(data: bytes) -> None:
            self.round_trips = max(self.round_trips, answered)
            self.received += len(data)
            writer.write(data)

        with contextlib.suppress(OSError):
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
            both = [
                asyncio.create_task(_pass(self._up, established_at, reader, sent)),
                asyncio.create_task(_pass(self._down, established_at, target_reader, received)),
            ]
            self._tasks.update(both)
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()
            writer.close()
            target_writer.close()


async def _pass(
    way: _Way, established_at: float, source: asyncio.StreamReader, arrived: Callable[[bytes], None]
) -> None:
    """Call `arrived` with what is read from `source`, each part at its time, until that ends or is closed."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)

    async def read() -> None:
        data = b"-"
        while data:
            data = await source.read(CHUNK)
            await under_way.put((way.arrival(len(data), max(loop.time(), established_at)), data))

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        while True:
            at, data = await under_way.get()
            await asyncio.sleep(at - loop.time())
            if not data:
                return
            arrived(data)
