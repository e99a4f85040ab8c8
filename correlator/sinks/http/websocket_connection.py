"""One websocket connection as a client of the fan-out: writing, pings and closing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, Final

from aiohttp import WSMsgType, web

from correlator.jobs import job_document
from correlator.model.messages import CloseCode
from correlator.ops import metrics
from correlator.sinks.http.frames import PING, close_frame, pong_frame, text_frame
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.messages import Framing, Message, Resume

FRAMES: Final = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG)
"""What the peer sends while a connection is open."""

MAX_GETS = 32
"""Messages `get` of one connection that are answered at once. Reading the next frame waits for one of them."""

CLOSE_WITHIN = 2.0
"""Seconds to wait for a client to receive its close frame before its transport is aborted."""

MAX_AFTER_CLOSE = 100
"""Frames that are read after the close frame, and ignored. Then no more are read until the transport is aborted."""

SLOW_CLOSE_WITHIN = 120.0
"""The same for a client that was too slow: its close frame follows everything that it has not read."""


def framed(messages: Sequence[Message], /) -> bytes:
    """One text frame that contains all of `messages`."""
    return text_frame(job_document.frame(m.body for m in messages))


class WebsocketConnection:
    """One websocket connection as a `Client` of the fan-out.

    Use it on the event loop's thread. After its close frame nothing is written any more (RFC 6455, 5.5.1).
    """

    transport: ClassVar[str] = "websocket"

    def __init__(
        self, transport: asyncio.Transport | None, address: str, ws: web.WebSocketResponse, limits: Limits
    ) -> None:
        self._transport = transport
        self._limits = limits
        self.address = address
        self.ws = ws
        self.framing: Framing = framed
        self.tasks: set[asyncio.Task[None]] = set()
        """Tasks that close the connection; they may outlive its handler."""
        self.received_at = self.pinged_at = time.monotonic()
        self.gets = asyncio.Semaphore(MAX_GETS)
        """Limits the `get`s in progress. A further one waits for it, and so do the frames after it."""
        self.ready = False
        """`hello` has been accepted."""
        self.token: bytes | None = None
        """The token that admitted the client; None if `hello` has still to bring one."""
        self.closing = False
        """The close frame has been written."""
        self.ended = asyncio.Event()
        """The peer has answered the close frame, or has gone."""
        self.resume: Resume | None = None

    def write(self, framed: bytes) -> None:
        if not self.closing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(framed)

    def waiting(self) -> int:
        size = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return size if size and self._transport is not None and not self._transport.is_closing() else 0

    def give_up(self) -> None:
        """Write a close frame behind what the client has not read, and abort the transport if it never reads that."""
        metrics.CLIENTS_CLOSED.labels("slow").inc()
        self.write(close_frame(CloseCode.TOO_SLOW, b"too slow"))
        self.closing = True
        self._start_closing(self._linger())

    def ping(self, now: float) -> bool:
        """Send a ping if one is due. Returns False if the last one was not answered in time."""
        if self.received_at < self.pinged_at and now - self.pinged_at > self._limits.pong_within:
            return False
        if now - max(self.received_at, self.pinged_at) > self._limits.ping_seconds:
            self.pinged_at = now
            self.write(PING)
        return True

    def pong(self, payload: bytes) -> None:
        """Answer a ping, unless the transport's buffer is full: then a later ping is answered."""
        if self.waiting() <= self._limits.lagging_over:
            self.write(pong_frame(payload))

    def synced(self) -> None:
        """Does nothing: a websocket's messages contain their position from the beginning."""

    def abort(self) -> None:
        """Close the transport without a close frame."""
        if self._transport is not None:
            self._transport.abort()

    def end(self, code: int, reason: bytes) -> None:
        """Write the close frame. Without an answer, abort the transport after `CLOSE_WITHIN` seconds."""
        self.write(close_frame(code, reason))
        self.closing = True
        self._start_closing(self._end())

    def close(self) -> None:
        """Close the transport, once its buffer has been sent."""
        self.ended.set()
        if self._transport is not None:
            self._transport.close()

    async def ignore(self) -> None:
        """Read until the peer answers the close frame or goes, and ignore what it sends.

        A peer that goes on sending is not read any more: parsing its frames could take all the time there is.
        """
        for _ in range(MAX_AFTER_CLOSE):
            if (await self.ws.receive()).type not in FRAMES:
                return
            await asyncio.sleep(0)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        for task in list(self.tasks):
            await task

    def _start_closing(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(ending)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN):
                await self.ended.wait()
        self.abort()

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOW_CLOSE_WITHIN):
                while self.waiting():  # noqa: ASYNC110 - a transport has no event to wait for
                    await asyncio.sleep(0.5)
                async with asyncio.timeout(CLOSE_WITHIN):
                    await self.ended.wait()
        self.abort()
