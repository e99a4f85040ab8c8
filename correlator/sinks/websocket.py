"""The websocket endpoint: one connection's talk with us, by the contract of docs/protocol.md.

A reader costs a socket and a few sets. Its frames are written to the transport whole, without waiting and without a
task of its own; only a snapshot is paced, chunk by chunk, by what its transport can take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, assert_never

import msgspec
from aiohttp import WSMsgType, web

from correlator import metrics
from correlator.errors import BadRequest, SourceUnavailable
from correlator.hub import Hub, JobQuery
from correlator.jobs import wire
from correlator.liveness import STUCK_AFTER
from correlator.sinks.access import Pace
from correlator.sinks.fanout import LAGGING_OVER
from correlator.sinks.filters import Filter
from correlator.sinks.frames import (
    MAX_FRAME,
    PING,
    Get,
    Hello,
    Ping,
    Said,
    Subscribe,
    Unsubscribe,
    close_frame,
    decode,
    pong_frame,
    text_frame,
)
from correlator.sinks.messages import Framing, Message
from correlator.sinks.stream import Resume, Streams

if TYPE_CHECKING:
    from correlator.sinks.access import Access

log = logging.getLogger(__name__)

VERSION = 1
PING_SECONDS = 25
HELLO_WITHIN = 10.0
PONG_WITHIN = 12.5
"""Seconds in which a reader answers a ping; one that lags has what is before the ping to read first."""

CLOSE_WITHIN = 2.0
"""Seconds that a reader has to take its close frame before its socket goes."""

SLOW_CLOSE_WITHIN = 120.0
"""The same for one that is too slow: the frame stands behind all that it has not read."""

MAX_BURST = 1000
MAX_RATE = 200.0
"""Messages that a client may send at once, and a second; pings and pongs are some."""

MAX_SUBSCRIBES = 200
SUBSCRIBE_RATE = 20.0
"""The same of subscribes: each looks at every job."""

MAX_BAD_FRAMES = 3

RESTART, LATER, BAD, UNAUTHORISED, FORBIDDEN, NO_HELLO, TOO_MANY, TOO_SLOW = (
    1012,
    1013,
    4400,
    4401,
    4403,
    4408,
    4429,
    4508,
)


class Close(Exception):
    """End the connection with `code`; `reason` is at most 123 bytes (RFC 6455, 5.5)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode()[:123]


def framed(messages: Sequence[Message], /) -> bytes:
    """One text frame for all of `messages`."""
    return text_frame(wire.frame(m.body for m in messages))


class SocketReader:
    """One connection, as the fan-out sees it."""

    transport: ClassVar[str] = "websocket"

    def __init__(self, transport: asyncio.Transport | None, ws: web.WebSocketResponse) -> None:
        self._transport = transport
        self.ws = ws
        self.framing: Framing = framed
        self.tasks: set[asyncio.Task[None]] = set()
        """Its ending: that goes on when the talk is over."""
        self.heard = self.pinged = time.monotonic()
        self.ready = False
        self.closing = False
        """It has had its close frame: nothing may follow that (RFC 6455, 5.5.1)."""
        self.resume: Resume | None = None

    def write(self, framed: bytes) -> None:
        if not self.closing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(framed)

    def waiting(self) -> int:
        size = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return size if size and self._transport is not None and not self._transport.is_closing() else 0

    def give_up(self) -> None:
        """Too slow: it is told so behind what it has not read; where it never reads that, the socket goes."""
        metrics.READERS_CLOSED.labels("slow").inc()
        self.write(close_frame(TOO_SLOW, b"too slow"))
        self.closing = True
        self._keep(self._linger())

    def ping(self, now: float) -> bool:
        """Ask whether it is still there, from time to time; False where it has not answered."""
        if self.heard < self.pinged and now - self.pinged > PONG_WITHIN:
            return False
        if now - max(self.heard, self.pinged) > PING_SECONDS:
            self.pinged = now
            self.write(PING)
        return True

    def pong(self, payload: bytes) -> None:
        """Not behind what it does not read: its next ping is answered."""
        if self.waiting() <= LAGGING_OVER:
            self.write(pong_frame(payload))

    def synced(self) -> None:
        """Nothing changes for it."""

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def end(self, code: int, reason: bytes) -> None:
        self.closing = True
        self._keep(self._end(code, reason))

    def _keep(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(ending)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _end(self, code: int, reason: bytes) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            try:
                async with asyncio.timeout(CLOSE_WITHIN):
                    await self.ws.close(code=code, message=reason)
                    while self.waiting():  # noqa: ASYNC110 - a transport has no event to wait for
                        await asyncio.sleep(0.05)
            except TimeoutError:
                self.abort()

    async def _linger(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOW_CLOSE_WITHIN):
                while self.waiting():  # noqa: ASYNC110 - a transport has no event to wait for
                    await asyncio.sleep(0.5)
                await asyncio.sleep(CLOSE_WITHIN)
        self.abort()


class Websockets:
    """All connections of one listener."""

    def __init__(self, hub: Hub, access: Access, streams: Streams, *, max_subscriptions: int = 100) -> None:
        self._hub = hub
        self._access = access
        self._streams = streams
        self._max_subscriptions = max_subscriptions
        self._open: dict[SocketReader, None] = {}
        """Also those that have not said hello."""

    async def run(self) -> None:
        """Find the readers that are gone without a word, for ever."""
        with self._hub.live.part("websockets", STUCK_AFTER) as beat:
            while True:
                await asyncio.sleep(1.0)
                beat()
                now = time.monotonic()
                for reader in [r for r in self._open if r.ready and not r.closing]:
                    if not self._streams.fanout.lags(reader) and not reader.ping(now):
                        metrics.READERS_CLOSED.labels("gone").inc()
                        reader.abort()

    async def drain(self) -> None:
        """Tell everybody to come back, and close."""
        readers = [r for r in self._open if not r.closing]
        for reader in readers:
            self._streams.say(reader, {"type": "bye", "code": RESTART, "retry_ms": [0, 5000]})
            self._streams.leave(reader)
            reader.end(RESTART, b"restart")
        for reader in readers:
            for task in list(reader.tasks):
                with contextlib.suppress(Exception):
                    await task

    async def handle(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(compress=False, max_msg_size=MAX_FRAME, timeout=2.0, autoping=False)
        try:
            await ws.prepare(request)
        except ValueError as error:  # of text that is no ASCII; any other wrong key aiohttp refuses by itself
            raise BadRequest("Sec-WebSocket-Key: expected 16 bytes in base64") from error
        reader = SocketReader(request.transport, ws)
        self._open[reader] = None
        try:
            with self._access.admitted(request) as admitted:
                if self._hub.draining:
                    raise Close(RESTART, "restart")
                if admitted is not None:
                    raise Close(*admitted)
                await self._talk(request, reader)
        except Close as close:
            metrics.READERS_CLOSED.labels(str(close.code)).inc()
            self._streams.leave(reader)
            reader.closing = True
            await ws.close(code=close.code, message=close.reason)
        finally:
            self._streams.leave(reader)
            self._open.pop(reader, None)
        return ws

    async def _talk(self, request: web.Request, reader: SocketReader) -> None:
        bad = 0
        clock = asyncio.get_running_loop().time
        pace, subscribes = Pace(MAX_BURST, MAX_RATE, clock), Pace(MAX_SUBSCRIBES, SUBSCRIBE_RATE, clock)
        authorised = self._access.authorised(request)
        deadline = asyncio.get_running_loop().time() + HELLO_WITHIN
        while True:
            try:
                async with asyncio.timeout_at(None if reader.ready else deadline):
                    message = await reader.ws.receive()
            except TimeoutError:
                raise Close(NO_HELLO, f"no hello within {HELLO_WITHIN:g} s") from None
            reader.heard = time.monotonic()
            if message.type is WSMsgType.PING:
                reader.pong(message.data)
            elif message.type not in (WSMsgType.PONG, WSMsgType.TEXT, WSMsgType.BINARY):
                return
            if reader.closing:
                continue  # until it closes, or is let go
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                if not pace.allows():
                    raise Close(TOO_MANY, f"more than {MAX_RATE:g} messages a second")
                continue
            if not await self._take(reader, message.data, pace, subscribes, authorised=authorised):
                bad += 1
                if bad >= MAX_BAD_FRAMES:
                    raise Close(BAD, "three bad frames")

    async def _take(
        self, reader: SocketReader, frame: str | bytes, pace: Pace, subscribes: Pace, *, authorised: bool
    ) -> bool:
        """Answer each message of a frame by itself; whether all of them could be understood."""
        good = True
        try:
            messages = decode(frame)
        except BadRequest as error:
            messages = [error]
        for said in messages:
            if not pace.allows() or (isinstance(said, Subscribe) and not subscribes.allows()):
                raise Close(TOO_MANY, f"more than {MAX_RATE:g} messages a second, or {SUBSCRIBE_RATE:g} subscribes")
            try:
                if isinstance(said, BadRequest):
                    raise said
                await self._answer(reader, said, authorised=authorised)
            except BadRequest as error:
                good = False
                self._error(reader, "bad_request", str(error), error.sub)
            await asyncio.sleep(0)  # the others' turn
        return good

    async def _answer(self, reader: SocketReader, said: Said, *, authorised: bool) -> None:
        if isinstance(said, Hello):
            self._hello(reader, said, authorised=authorised)
        elif not reader.ready:
            raise BadRequest('say hello first: {"type":"hello","version":1}')
        elif isinstance(said, Subscribe):
            await self._subscribe(reader, said)
        elif isinstance(said, Unsubscribe):
            if not self._streams.unsubscribe(reader, said.id):
                raise BadRequest(f"there is no subscription {said.id}", said.id)
        elif isinstance(said, Get):
            await self._get(reader, said.job_id)
        elif isinstance(said, Ping):
            self._streams.say(reader, {"type": "pong"})
        else:
            assert_never(said)

    def _hello(self, reader: SocketReader, hello: Hello, *, authorised: bool) -> None:
        if reader.ready:
            raise BadRequest("hello was said already")
        if hello.version != VERSION:
            raise Close(BAD, f"version {hello.version} is not spoken here; version {VERSION} is")
        if not authorised:
            if not hello.token:
                raise Close(UNAUTHORISED, "a token is needed in hello")
            if not self._access.knows(hello.token):
                raise Close(FORBIDDEN, "this token is not known")
        reader.ready = True
        reader.resume = _resume(hello.resume)
        self._streams.join(reader)
        self._streams.say(
            reader,
            {
                "type": "welcome",
                "epoch": self._hub.epoch,
                "seq": self._hub.seq,
                "resumed": self._streams.can_resume(reader.resume),
                "ping_seconds": PING_SECONDS,
            },
        )

    async def _subscribe(self, reader: SocketReader, said: Subscribe) -> None:
        known = self._streams.fanout.subs(reader)
        if said.id not in known and len(known) >= self._max_subscriptions:
            raise Close(TOO_MANY, f"at most {self._max_subscriptions} subscriptions")
        wanted = Filter(
            JobQuery(
                status=frozenset(said.status or ()),
                job_type=frozenset(said.job_type or ()),
                context_id=frozenset(said.context_id or ()),
            ),
            frozenset(said.jobs) if said.jobs is not None else None,
        )
        back = bool(said.resume)
        await self._streams.subscribe(
            reader, said.id, wanted, said.logs, resume=reader.resume if back else None, back=back
        )

    async def _get(self, reader: SocketReader, name: str) -> None:
        try:
            if not await self._streams.put(reader, name):
                self._error(reader, "not_found", f"no job is known by {name!r}")
        except SourceUnavailable as error:
            self._error(reader, "unavailable", str(error))

    def _error(self, reader: SocketReader, code: str, detail: str, sub: int | None = None) -> None:
        """Tell it, also before it has said hello."""
        message = wire.encode({"type": "error", "sub": sub, "code": code, "detail": detail})
        self._streams.fanout.send(reader, [Message(message)])


def _resume(said: Any) -> Resume | None:
    """A position as a client remembers it; whatever else it says is none."""
    try:
        return msgspec.convert(said, Resume)
    except msgspec.ValidationError:
        return None
