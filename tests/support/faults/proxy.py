"""A TCP proxy that breaks what goes through it: between the daemon and a server, on a port of its own.

A fault lasts until `heal`, and concerns this proxy alone: direct connections to the server are not affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.servers import free_port

CHUNK = 65_536
WAY = 256
"""Pieces on their way in one direction of a connection."""


@dataclass(eq=False)
class Link:
    """One connection, to the client and, once there is one, to the server."""

    writers: list[asyncio.StreamWriter]
    passing: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """In front of the server at `target`, a port of 127.0.0.1; clients connect to `port`."""

    def __init__(self, target: int, *, receive_buffer: int | None = None) -> None:
        """`receive_buffer`: bytes that the kernel takes from a client while the proxy does not read."""
        self.target = target
        self.port = free_port()
        self._receive_buffer = receive_buffer
        self.delay = 0.0
        """Seconds that each piece is on its way, in both directions."""
        self.rate: float | None = None
        """Bytes a second, in each direction, which all connections share; None for as fast as it goes."""
        self._free_at = {True: 0.0, False: 0.0}
        """When all that was read before has passed, by direction: down, and up."""
        self.answer: Callable[[bytes], bytes | None] | None = None
        """What the first piece of a connection gets before the connection ends; None: it passes to the server."""
        self._refusing = False
        self._cut_after: int | None = None
        self._hole_from: bytes | None = None
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self.links: dict[asyncio.Task[None], Link] = {}

    @property
    def cutting(self) -> bool:
        """Whether a `cut` is still to come."""
        return self._cut_after is not None

    @property
    def waiting(self) -> bool:
        """Whether a `black_hole_from` is still to come."""
        return self._hole_from is not None

    def black_hole_from(self, sent: bytes) -> None:
        """A black hole as soon as a client sends a piece that contains this: the piece is the first in it."""
        self._hole_from = sent

    def black_hole(self) -> None:
        """Nothing passes any more, nothing is read and nothing is closed. A new connection gets no answer.

        Connections of before stay in it for ever, as behind a gateway that has forgotten them. After `heal`, which may
        follow at once, new ones pass.
        """
        self._passing.clear()
        for link in self.links.values():
            link.passing.clear()

    def reset(self) -> None:
        """An RST for every connection that is open."""
        for link in self.links.values():
            for writer in link.writers:
                _abort(writer)

    def refuse(self) -> None:
        """An RST for every connection, and for every new one."""
        self._refusing = True
        self.reset()

    def cut(self, after: int) -> None:
        """So many bytes more from the server, then the connection that carries them ends in the middle of a packet."""
        self._cut_after = after

    def heal(self) -> None:
        """All goes through again."""
        self.delay, self.rate = 0.0, None
        self._refusing, self._cut_after, self._hole_from = False, None, None
        self._passing.set()

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self.port))
        if self._receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self._server = await asyncio.start_server(self._accept, sock=listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self.links:
            task.cancel()
        await asyncio.gather(*self.links, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _abort(writer)
            return
        link = Link([writer])
        task = asyncio.get_running_loop().create_task(self._link(reader, link))
        self.links[task] = link
        task.add_done_callback(self.links.pop)

    async def _link(self, reader: asyncio.StreamReader, link: Link) -> None:
        try:
            await self._passing.wait()
            first = await reader.read(CHUNK) if self.answer is not None else b""
            if self.answer is not None and (answer := self.answer(first)) is not None:
                link.writers[0].write(answer)
                return
            upstream, writer = await asyncio.open_connection("127.0.0.1", self.target)
            link.writers.append(writer)
            writer.write(first)
            link.passing.set()
            up = asyncio.create_task(self._pump(reader, link, down=False))
            down = asyncio.create_task(self._pump(upstream, link, down=True))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except OSError:
            _abort(link.writers[0])  # nobody listens there
        finally:
            for each in link.writers:
                each.close()

    async def _pump(self, source: asyncio.StreamReader, link: Link, *, down: bool) -> None:
        """`delay` holds each piece back and lets others follow it closely; `rate` spaces them."""
        clock = asyncio.get_running_loop().time
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAY)
        sink = link.writers[0 if down else 1]
        taking = asyncio.create_task(self._read(source, link, way, down))
        try:
            while (piece := await way.get())[1]:
                arrives, data = piece
                await asyncio.sleep(max(0.0, arrives - clock()))
                if not down and self._hole_from is not None and self._hole_from in data:
                    self._hole_from = None
                    self.black_hole()
                await link.passing.wait()
                if down and self._cut_after is not None:
                    data, self._cut_after = data[: self._cut_after], self._cut_after - len(data)
                    if self._cut_after <= 0:
                        self._cut_after = None
                        sink.write(data)
                        return
                self._send(link, data, down=down)
                await sink.drain()
        finally:
            taking.cancel()
            await asyncio.wait([taking])

    def _send(self, link: Link, data: bytes, *, down: bool) -> None:
        link.writers[0 if down else 1].write(data)

    async def _read(
        self, source: asyncio.StreamReader, link: Link, way: asyncio.Queue[tuple[float, bytes]], down: bool
    ) -> None:
        """What comes from `source`, with the time at which it arrives; no bytes at its end."""
        clock = asyncio.get_running_loop().time
        data = b"-"
        while data:
            await link.passing.wait()
            try:
                data = await source.read(CHUNK if self.rate is None else max(1, int(self.rate / 20)))
            except OSError:
                data = b""
            if self.rate is not None:
                self._free_at[down] = max(self._free_at[down], clock()) + len(data) / self.rate
                await asyncio.sleep(self._free_at[down] - clock())
            await way.put((clock() + self.delay, data))


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with an RST: a linger time of zero sends no FIN."""
    if (sock := writer.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
