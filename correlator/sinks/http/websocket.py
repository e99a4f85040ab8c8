"""The websocket endpoint, which implements docs/protocol.md.

A connection needs one socket and a few sets. Frames are written to its transport as a whole, without waiting and
without a task per connection. Only a snapshot is paced: its next part waits for room in the transport's buffer. After
its close frame nothing is written any more; a client that does not answer it is aborted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Final, assert_never

import msgspec
from aiohttp import HttpVersion11, WSCloseCode, WSMsgType, hdrs, web

from correlator.errors import BadRequest, SourceUnavailable, drop_frames
from correlator.model.messages import ClientMessage, CloseCode, Error, Get, Hello, Ping, Pong, Subscribe, Unsubscribe
from correlator.model.parameters import OpenWebsocket, given
from correlator.ops import metrics
from correlator.ops.event_loop import STUCK_AFTER
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobQuery
from correlator.sinks.http.access import (
    CHECKED_AT_ONCE,
    MAX_REASON,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_IDS,
    Access,
    foreign_origin,
)
from correlator.sinks.http.connections import frames_of
from correlator.sinks.http.floods import Floods, Pace
from correlator.sinks.http.frames import (
    MAX_FRAME,
    MAX_MESSAGES_OF_UNKNOWN,
    PING,
    ClientFrames,
    Refusal,
    close_frame,
    decode,
    is_close_code,
    pong_frame,
    split,
    text_frame,
)
from correlator.sinks.http.grants import Denied, Grant, Need, check_job
from correlator.sinks.http.requests import RETRY_AFTER, problem, read
from correlator.sinks.streaming.messages import Framing, Message, Resume
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.subscriptions import Filter
from correlator.sinks.turns import Refused
from correlator.tasks import set_within

VERSION = 1
"""The version of the protocol."""

GET_WITHIN = 5.0
"""Seconds to wait for the database in a `get`. Must be less than `Limits.pong_within`."""

MAX_GETS = 32
"""Messages `get` of one connection that are answered at once. Reading the next frame waits for one of them."""

MAX_BURST = 1000
MAX_RATE = 200.0
"""Messages that a client may send at once, and per second. Pings and pongs count too."""

MAX_SUBSCRIBES = 200
SUBSCRIBE_RATE = 20.0
"""The same for `subscribe`, as each one scans all jobs."""

MAX_BAD_FRAMES = 3
"""Frames with an invalid message before the connection is closed."""

CLOSE_WITHIN = 2.0
"""Seconds to wait for a client to receive its close frame before its transport is aborted."""

SLOW_CLOSE_WITHIN = 120.0
"""The same for a client that was too slow: its close frame follows everything that it has not read."""

MAX_AFTER_CLOSE = 100
"""Frames that are read after the close frame, and ignored. Then no more are read until the transport is aborted."""

TOO_MANY_MESSAGES: Final = f"more than {MAX_RATE:g} messages a second, or {SUBSCRIBE_RATE:g} subscribes"

UPGRADE: Final = {"Upgrade": "websocket", "Connection": "Upgrade, close", "Sec-WebSocket-Version": "13"}
"""Headers of the answer to what is no handshake (RFC 9110, 15.5.22; RFC 6455, 4.4)."""

MAX_PARAMETERS: Final = 10
"""The address of a handshake has fewer, because they are read before anybody is known. Only two have a meaning."""

KEY_SIZE: Final = 16
"""Bytes of `Sec-WebSocket-Key`."""

FRAMES: Final = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG)
"""What the peer sends while a connection is open."""


class Websockets:
    """All websocket connections of one listener.

    `instance`: the appliance of a fleet that `streams` are of; None: of all, or of the only one. `streams_for(grant)`:
    those that show what a grant allows; None: `streams`.
    """

    def __init__(
        self,
        hub: Hub,
        access: Access,
        streams: Streams,
        *,
        instance: str | None = None,
        streams_for: Callable[[Grant], Streams] | None = None,
    ) -> None:
        self._hub = hub
        self._access = access
        self._streams = streams
        self._instance = instance
        self._streams_for = streams_for or (lambda _: streams)
        self._open: dict[WebsocketConnection, None] = {}
        """Includes connections that have not sent `hello` yet."""
        self._floods = Floods(time.monotonic, waiting=streams.limits.max_delayed_handshakes)
        self._turns = streams.work.messages
        self._newcomers = streams.work.newcomers

    async def run(self) -> None:
        """Send pings, and abort connections that do not answer, until cancelled."""
        with self._hub.live.heartbeat("websockets", STUCK_AFTER) as beat:
            while True:
                await asyncio.sleep(1.0 if self._open else self._streams.limits.unused_check_every)
                beat()
                now = time.monotonic()
                for client in [r for r in self._open if r.ready and not r.closing]:
                    if not client.streams.fanout.lags(client) and not client.ping(now):
                        metrics.CLIENTS_CLOSED.labels("gone").inc()
                        client.abort()

    async def drain(self) -> None:
        """Send `bye` to all clients, so that they reconnect, and close their connections."""
        clients = [r for r in self._open if not r.closing]
        for client in clients:
            client.streams.bye(client, CloseCode.RESTART)
            client.streams.remove(client)
            client.end(CloseCode.RESTART, b"restart")
        for client in clients:
            if client.closing is not None:
                with contextlib.suppress(Exception):
                    await client.closing

    def close_revoked(self) -> Iterator[None]:
        """Close the connections whose grant has ended, in steps of at most `CHECKED_AT_ONCE` connections."""
        for number, client in enumerate(list(self._open), 1):
            valid = client.grant is not None and self._access.holds(client.grant)
            if client.ready and not client.closing and not valid and client in self._open:
                metrics.CLIENTS_CLOSED.labels(str(CloseCode.UNAUTHORISED)).inc()
                client.streams.remove(client)
                client.end(CloseCode.UNAUTHORISED, b"this token has ended")
            if number % CHECKED_AT_ONCE == 0:
                yield

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``GET /ws``. Returns when the connection has ended."""
        if (why := _no_handshake(request)) is not None:
            required = problem(HTTPStatus.UPGRADE_REQUIRED, why, dict(UPGRADE))
            required.force_close()  # as its header says
            return required
        if (why := _bad_handshake(request)) is not None:
            bad = problem(HTTPStatus.BAD_REQUEST, why)
            bad.force_close()  # where its next request begins is not certain
            return bad
        address = request.remote or ""
        if not await self._floods.wait(address):
            flood = problem(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY_CONNECTIONS, RETRY_AFTER)
            flood.force_close()
            return flood
        # aiohttp refuses a frame of `max_msg_size` already.
        # No automatic reply to a close frame: it would be written after the daemon's own one.
        # As text, one character of four bytes would make each other one of its message take four in memory.
        ws = _Response(
            compress=False,
            max_msg_size=MAX_FRAME + 1,
            timeout=CLOSE_WITHIN,
            autoping=False,
            autoclose=False,
            decode_text=False,
        )
        await ws.prepare(request)
        ws.headers.clear()  # They have been sent, and would stay in memory.
        if (transport := request.transport) is None:  # The client has gone.
            return ws
        client = WebsocketConnection(transport, address, ws, self._streams, frames_of(request))
        self._open[client] = None
        self._newcomers.enter(address, client.make_room)
        try:
            await self._serve(request, client)
        finally:
            client.streams.remove(client)
            self._open.pop(client, None)
            self._newcomers.leave(address, client.make_room)
            if client.ready:
                assert client.grant is not None
                self._access.leave(address, client.grant)
            if client.frames is not None:
                client.frames.end()
            client.close()
            drop_frames(ws.exception())  # They refer to the websocket.
        return ws

    async def _serve(self, request: web.Request, client: WebsocketConnection) -> None:
        """Handle frames until the connection ends."""
        try:
            if self._hub.draining:
                raise Close(CloseCode.RESTART, "restart")
            if client.frames is not None:
                work = self._streams.work
                client.frames.begin(client.address, work.unknown, work.unhandled, partial(self._refuse, client))
            if not client.closing:
                await self._read(request, client)
        except (Close, Denied, Refused, SourceUnavailable) as error:  # `Refused`: the turn of a frame did not come
            self._close(client, self._closing(error, client))
        if client.closing:
            await client.ignore()

    def _refuse(self, client: WebsocketConnection, refusal: Refusal) -> None:
        """End a connection of which nothing is read any more."""
        self._close(client, (Flood if refusal.code == CloseCode.TOO_MANY else Close)(*refusal))

    def _close(self, client: WebsocketConnection, close: Close) -> None:
        metrics.CLIENTS_CLOSED.labels(str(close.code)).inc()
        if isinstance(close, Flood):
            self._floods.note(client.address)
        client.streams.remove(client)
        if not client.closing:
            client.end(close.code, close.reason)

    def _closing(self, error: Exception, client: WebsocketConnection) -> Close:
        """With what a connection is closed after an error."""
        if isinstance(error, Denied):
            self._access.note(error, client.address)
            return Close(error.close_code, str(error))
        if isinstance(error, SourceUnavailable):  # its appliances are not known yet
            return Close(CloseCode.TRY_LATER, error.public)
        return error if isinstance(error, Close) else Close(CloseCode.TRY_LATER, str(error))

    async def _read(self, request: web.Request, client: WebsocketConnection) -> None:
        """Handle frames until the peer closes the connection, or until the daemon has written its close frame."""
        clock = asyncio.get_running_loop().time
        pace, subscribes = Pace(MAX_BURST, MAX_RATE, clock), Pace(MAX_SUBSCRIBES, SUBSCRIBE_RATE, clock)
        client.grant = await self._admitted(request)
        hello_within = self._streams.limits.hello_within
        deadline = clock() + hello_within
        said = given(read(request, OpenWebsocket).say)
        bad = int(said is not None and not await self._handle_frame(client, said, pace, subscribes, in_address=True))
        while True:
            try:
                async with asyncio.timeout_at(None if client.ready else deadline):
                    message = await client.ws.receive()
            except TimeoutError:
                raise Close(CloseCode.NO_HELLO, f"no hello within {hello_within:g} s") from None
            if message.type is WSMsgType.CLOSE and not client.closing:
                client.write(
                    close_frame(WSCloseCode.OK if is_close_code(message.data) else WSCloseCode.PROTOCOL_ERROR, b"")
                )
            if message.type not in FRAMES:
                return
            client.received_at = time.monotonic()
            await self._turns.round(client.address)  # let other connections run
            if client.closing:
                return
            size = len(message.data)
            bad += not await self._handle_one(client, message.type, message.data, pace, subscribes)
            del message  # Until the next one comes it would stay in memory.
            client.handled(size)
            if bad >= MAX_BAD_FRAMES:
                raise Close(CloseCode.BAD_PROTOCOL, "three bad frames")

    async def _handle_one(
        self, client: WebsocketConnection, kind: WSMsgType, data: bytes, pace: Pace, subscribes: Pace
    ) -> bool:
        """Handle what came as one: messages, a ping or a pong. Returns False if there is an invalid message."""
        if kind in (WSMsgType.TEXT, WSMsgType.BINARY):
            if kind is WSMsgType.TEXT and not _is_text(data):
                raise Close(WSCloseCode.INVALID_TEXT, "a text frame is UTF-8 (RFC 6455, 8.1)")
            return await self._handle_frame(client, data, pace, subscribes)
        if kind is WSMsgType.PING:
            client.pong(data)
        if not pace.allows():
            raise Flood(CloseCode.TOO_MANY, TOO_MANY_MESSAGES)
        return True

    async def _admitted(self, request: web.Request) -> Grant | None:
        """The grant of the handshake; None if `hello` has to bring a token.

        Raises:
            Denied: The page's origin, or the token, is wrong.
        """
        if not self._access.origin_allowed(request):
            raise foreign_origin(request.headers[hdrs.ORIGIN])
        try:
            return await self._access.admit(request)
        except Denied as denied:
            if denied.reason in ("no_token", "ticket"):
                return None
            raise

    async def _handle_frame(
        self,
        client: WebsocketConnection,
        frame: str | bytes,
        pace: Pace,
        subscribes: Pace,
        *,
        in_address: bool = False,
    ) -> bool:
        """Handle the messages of a frame one by one, up to the first that is invalid. Returns False if there is one."""
        if not pace.allows():
            raise Flood(CloseCode.TOO_MANY, TOO_MANY_MESSAGES)
        try:
            for number, raw in enumerate(split(frame)):
                if number and not pace.allows():
                    raise Flood(CloseCode.TOO_MANY, TOO_MANY_MESSAGES)
                if number >= MAX_MESSAGES_OF_UNKNOWN and not client.ready:
                    raise BadRequest(f"say hello among the first {MAX_MESSAGES_OF_UNKNOWN} messages")
                message = decode(raw)
                if isinstance(message, Subscribe) and not subscribes.allows():
                    raise Flood(CloseCode.TOO_MANY, TOO_MANY_MESSAGES)
                await self._handle_message(client, message, in_address=in_address)
                await self._turns.round(client.address)  # let other connections run
        except BadRequest as error:
            client.streams.send(client, Error(error.sub, "bad_request", str(error)))
            await self._turns.round(client.address)
            return False
        return True

    async def _handle_message(
        self, client: WebsocketConnection, message: ClientMessage, *, in_address: bool = False
    ) -> None:
        if isinstance(message, Hello):
            if in_address and message.token:
                raise Close(CloseCode.UNAUTHORISED, "a token in an address is not accepted: send hello in a frame")
            await self._hello(client, message)
        elif not client.ready:
            raise BadRequest('say hello first: {"type":"hello","version":1}')
        elif isinstance(message, Subscribe):
            await self._subscribe(client, message)
        elif isinstance(message, Unsubscribe):
            if not client.streams.fanout.unsubscribe(client, message.id):
                raise BadRequest(f"there is no subscription {message.id}", message.id)
        elif isinstance(message, Get):
            await client.gets.acquire()
            client.received_at = time.monotonic()  # pongs were not read while this waited
            client.streams.start(client, self._get(client, message.job_id))
        elif isinstance(message, Ping):
            client.streams.send(client, Pong())
        else:
            assert_never(message)

    async def _hello(self, client: WebsocketConnection, hello: Hello) -> None:
        if client.ready:
            raise BadRequest("hello was said already")
        if hello.version != VERSION:
            raise Close(CloseCode.BAD_PROTOCOL, f"version {hello.version} is not spoken here; version {VERSION} is")
        if client.grant is None or not self._access.holds(client.grant):
            if not hello.token:
                raise Denied("no_token", "a token is needed in hello")
            client.grant = await self._access.log_in(hello.token, client.address)
        client.grant.check(Need.JOB, self._instance)
        client.streams = self._streams_for(client.grant)
        if (too_many := self._access.join(client.address, client.grant)) is not None:
            raise Close(CloseCode.TOO_MANY, too_many)
        client.ready = True
        self._newcomers.leave(client.address, client.make_room)
        if client.frames is not None:
            client.frames.known()
        client.resume = _resume(hello.resume)
        if (refusal := await client.streams.refusal(client.resume)) is not None:
            raise Close(CloseCode.TRY_LATER, refusal)
        client.streams.welcome(client, client.resume)

    async def _subscribe(self, client: WebsocketConnection, message: Subscribe) -> None:
        known = client.streams.fanout.subs(client)
        most = client.streams.limits.max_subscriptions
        if message.id not in known and len(known) >= most:
            raise Close(CloseCode.TOO_MANY, f"at most {most} subscriptions")
        wanted = Filter(
            JobQuery(
                status=frozenset(message.status or ()),
                job_type=frozenset(message.job_type or ()),
                context_id=frozenset(message.context_id or ()),
                instance=frozenset(message.instance or ()),
            ),
            frozenset(message.jobs) if message.jobs is not None else None,
        )
        assert client.grant is not None
        try:
            wanted = client.grant.narrowed(wanted)
        except Denied as denied:  # other subscriptions of the connection are none of its business
            self._access.note(denied, client.address)
            client.streams.send(client, Error(message.id, "forbidden", str(denied)))
            return
        if not client.streams.fanout.groups.has_room(wanted):
            raise Close(CloseCode.TOO_MANY, TOO_MANY_IDS)
        resuming = bool(message.resume)
        await client.streams.subscribe(
            client, message.id, wanted, message.logs, resume=client.resume if resuming else None, resuming=resuming
        )

    async def _get(self, client: WebsocketConnection, name: str) -> None:
        """Answer a `get`, in its own task, as the database may be slow."""
        code = "unavailable"
        try:
            assert client.grant is not None
            await check_job(client.grant, name, lambda own: client.streams.find(client, own))
            if await client.streams.put(client, name, GET_WITHIN, client.grant.shows_some):
                return
            code, detail = "not_found", f"no job is known by {name!r}"
        except Denied as denied:
            self._access.note(denied, client.address)
            code, detail = "not_found", str(denied)
        except SourceUnavailable as error:
            detail = error.public
        except Refused as error:
            detail = str(error)
        except TimeoutError:
            detail = f"the database did not answer within {GET_WITHIN:g} s"
        finally:
            client.gets.release()
        client.streams.send(client, Error(None, code, detail, name))


class _Response(web.WebSocketResponse):
    """aiohttp's websocket, which ends without a circle if its client has gone before the handler is left."""

    async def write_eof(self) -> None:  # type: ignore[override]
        await super().write_eof()
        drop_frames(self.exception())  # They refer to the websocket.


def _no_handshake(request: web.Request) -> str | None:
    """Why a request is no handshake of the protocol's version 13 (RFC 6455, 4.2.1); None if it is one."""
    headers = request.headers
    options = [option.strip().lower() for option in headers.get(hdrs.CONNECTION, "").split(",")]
    upgrade = headers.get(hdrs.UPGRADE, "").strip().lower()
    if upgrade != "websocket" and "upgrade" not in options:
        return "this is the address of a websocket: connect with a client of RFC 6455; a proxy has to pass Upgrade on"
    if request.version < HttpVersion11:
        return "a websocket needs HTTP/1.1, and this request has an older version: a proxy has to use HTTP/1.1"
    if upgrade != "websocket":
        return "the header Upgrade: websocket is missing: a proxy has to pass it on"
    if "upgrade" not in options:
        return "the header Connection: Upgrade is missing: a proxy has to set it"
    if headers.getall(hdrs.SEC_WEBSOCKET_VERSION, ()) != [UPGRADE["Sec-WebSocket-Version"]]:
        return "only version 13 of the websocket protocol is spoken here: expected one header Sec-WebSocket-Version: 13"
    return None


def _bad_handshake(request: web.Request) -> str | None:
    """What is wrong with a handshake of version 13 (RFC 6455, 4.2.1); None if nothing is."""
    keys = request.headers.getall(hdrs.SEC_WEBSOCKET_KEY, ())
    if len(keys) != 1 or not _is_key(keys[0]):
        return "Sec-WebSocket-Key: expected one header with 16 bytes in base64"
    if hdrs.SEC_WEBSOCKET_PROTOCOL in request.headers:
        return "Sec-WebSocket-Protocol: there are no subprotocols here: connect without one"
    if request.body_exists:
        return "a websocket begins with a request without a body: send messages in frames"
    if request.rel_url.raw_query_string.count("&") >= MAX_PARAMETERS:
        return f"expected fewer than {MAX_PARAMETERS} query parameters; known: say"
    try:
        read(request, OpenWebsocket)
    except BadRequest as error:
        return str(error)
    return None


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_SIZE
    except ValueError:  # it is no base64, or not even ASCII
        return False


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _resume(message: Any) -> Resume | None:
    """The position in a `hello`; None if it is missing or malformed."""
    try:
        return msgspec.convert(message, Resume)
    except msgspec.ValidationError:
        return None


class Close(Exception):
    """Raised to close the connection with `code`. `reason` is cut to `MAX_REASON`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason.encode()[:MAX_REASON]


class Flood(Close):
    """The client sends more than it may."""


class WebsocketConnection:
    """One websocket connection as a `Client` of the fan-out.

    Use it on the event loop's thread. After its close frame nothing is written any more (RFC 6455, 5.5.1).
    """

    transport: ClassVar[str] = "websocket"

    def __init__(
        self,
        transport: asyncio.Transport,
        address: str,
        ws: web.WebSocketResponse,
        streams: Streams,
        frames: ClientFrames | None = None,
    ) -> None:
        self._transport = transport
        self.frames = frames
        self._limits = streams.limits
        self.streams = streams
        """Those that show what the client may see."""
        self.address = address
        self.ws = ws
        self.framing: Framing = framed
        self.received_at = self.pinged_at = time.monotonic()
        self.gets = asyncio.Semaphore(MAX_GETS)
        """Limits the `get`s in progress. A further one waits for it, and so do the frames after it."""
        self.ready = False
        """`hello` has been accepted, and the connection is counted (`Access.join`)."""
        self.grant: Grant | None = None
        """What the client may do; None if `hello` has still to bring a token."""
        self.closing: asyncio.Task[None] | None = None
        """Closes the transport, as the close frame has been written. It may outlive the handler."""
        self._ended: asyncio.Event | None = None
        """Set once the peer has answered the close frame, or has gone. Made for it: an event has 760 bytes."""
        self.resume: Resume | None = None

    @property
    def is_restricted(self) -> bool:
        return self.grant is not None and self.grant.is_restricted

    def write(self, framed: bytes) -> None:
        if self.closing is None and not self._transport.is_closing():
            self._transport.write(framed)

    def waiting(self) -> int:
        size = self._transport.get_write_buffer_size()
        return size if size and not self._transport.is_closing() else 0

    def give_up(self) -> None:
        """Write a close frame behind what the client has not read, and abort the transport if it never reads that."""
        metrics.CLIENTS_CLOSED.labels("slow").inc()
        self._start_closing(close_frame(CloseCode.TOO_SLOW, b"too slow"), self._linger)

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
        self._transport.abort()

    def end(self, code: int, reason: bytes) -> None:
        """Write the close frame. Without an answer, abort the transport after `CLOSE_WITHIN` seconds."""
        self._start_closing(close_frame(code, reason), self._end)

    def close(self) -> None:
        """Close the transport, once its buffer has been sent."""
        if self._ended is not None:
            self._ended.set()
        self._transport.close()

    def handled(self, size: int) -> None:
        """The next message of the client, of `size` bytes, has been handled, and is in memory no longer."""
        if self.frames is not None:
            self.frames.handled(size)

    def make_room(self) -> None:
        """Write a close frame, and close the transport: others are coming, and this client has not said `hello`."""
        metrics.CLIENTS_CLOSED.labels(str(CloseCode.TRY_LATER)).inc()
        self.write(close_frame(CloseCode.TRY_LATER, b"too many websockets without a hello: say it at once"))
        self.close()
        asyncio.get_running_loop().call_later(CLOSE_WITHIN, self.abort)  # It may not read, or not end TLS.

    async def ignore(self) -> None:
        """Read until the peer answers the close frame or goes, and ignore what it sends.

        A peer that goes on sending is not read any more: parsing its frames could take all the time there is.
        """
        for _ in range(MAX_AFTER_CLOSE):
            message = await self.ws.receive()
            if message.type not in FRAMES:
                return
            size = len(message.data)
            del message
            self.handled(size)
            await asyncio.sleep(0)
        if not self._transport.is_closing():
            self._transport.pause_reading()
        if self.closing is not None:
            await self.closing

    def _start_closing(self, frame: bytes, ending: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
        self.write(frame)
        self._ended = asyncio.Event()
        self.closing = asyncio.ensure_future(ending(self._ended))

    async def _end(self, ended: asyncio.Event) -> None:
        await set_within(ended, CLOSE_WITHIN)
        self.abort()

    async def _linger(self, ended: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SLOW_CLOSE_WITHIN):
                while self.waiting():  # noqa: ASYNC110 - a transport has no event to wait for
                    await asyncio.sleep(0.5)
                async with asyncio.timeout(CLOSE_WITHIN):
                    await ended.wait()
        self.abort()


def framed(messages: Sequence[Message]) -> bytes:
    """One text frame: a message, or an array of several."""
    if len(messages) == 1:
        return text_frame(messages[0].body)
    return text_frame(b"[%b]" % b",".join([m.body for m in messages]))
