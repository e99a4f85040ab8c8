"""The websocket endpoint: one connection's talk with us, by the contract of docs/protocol.md.

A reader costs a socket and a few sets. Its frames are written to the transport whole, without waiting and without a
task of its own; only a snapshot is paced, chunk by chunk, by what its transport can take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from correlator import metrics
from correlator.errors import BadRequest, SourceUnavailable
from correlator.hub import Hub, JobQuery
from correlator.jobs import wire
from correlator.jobs.model import Shown
from correlator.sinks.fanout import LAGGING_OVER, Fanout, Filter, Sub
from correlator.sinks.frames import MAX_FRAME, Get, Hello, Ping, Said, Subscribe, Unsubscribe, decode, text_frame

if TYPE_CHECKING:
    from correlator.sinks.access import Access

log = logging.getLogger(__name__)

VERSION = 1
PING_SECONDS = 25
HELLO_WITHIN = 10.0
BOOKMARK_EVERY = 10.0
SWEEP_EVERY = 0.1
CHUNK = 50
"""Jobs in one message of a snapshot."""

CLOSE_WITHIN = 2.0
"""Seconds that a reader has to take its close frame before its socket goes."""

MAX_BAD_FRAMES = 3
LOOK_UP_WITHIN = 2.0
"""Seconds that the database is given to find the IDs of a subscription that memory does not know."""

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


class SocketReader:
    """One connection, as the fan-out sees it."""

    def __init__(self, transport: asyncio.Transport | None, ws: web.WebSocketResponse) -> None:
        self._transport = transport
        self.ws = ws
        self.held: dict[int, list[str]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        """Its ending: that goes on when the talk is over."""
        self.snapshots: set[asyncio.Task[None]] = set()
        self.ready = False

    def write(self, messages: list[bytes]) -> None:
        if messages and self._transport is not None and not self._transport.is_closing():
            self._transport.write(text_frame(wire.frame(messages)))

    def say(self, message: dict[str, Any]) -> None:
        self.write([wire.encode(message)])

    def waiting(self) -> int:
        if self._transport is None or self._transport.is_closing():
            return 0
        return self._transport.get_write_buffer_size()

    def give_up(self) -> None:
        """Too slow: a close frame would only queue behind what it does not read, so the socket goes soon after."""
        metrics.READERS_CLOSED.labels("slow").inc()
        self.end(TOO_SLOW, b"too slow")

    def end(self, code: int, reason: bytes) -> None:
        task = asyncio.ensure_future(self._end(code, reason))
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
                if self._transport is not None:
                    self._transport.abort()


class Websockets:
    """All connections of one listener."""

    def __init__(self, hub: Hub, access: Access, *, max_subscriptions: int = 100) -> None:
        self._hub = hub
        self._access = access
        self._max_subscriptions = max_subscriptions
        self._fanout = Fanout(hub, time.monotonic)

    async def run(self) -> None:
        """What all connections need from time to time, for ever."""
        stop = self._hub.listen(self._fanout.hear), self._hub.listen_status(self._status_changed)
        bookmark = time.monotonic() + BOOKMARK_EVERY
        try:
            while True:
                await asyncio.sleep(SWEEP_EVERY)
                self._fanout.sweep()
                if time.monotonic() >= bookmark:
                    bookmark = time.monotonic() + BOOKMARK_EVERY * 0.8
                    self._bookmark()
        finally:
            for leave in stop:
                leave()

    async def drain(self) -> None:
        """Tell everybody to come back, and close."""
        bye = wire.encode({"type": "bye", "code": RESTART, "retry_ms": [0, 5000]})
        readers = [r for r in self._fanout.readers if isinstance(r, SocketReader)]
        for reader in readers:
            reader.write([bye])
            reader.end(RESTART, b"restart")
        for reader in readers:
            for task in list(reader.tasks):
                with contextlib.suppress(Exception):
                    await task

    async def handle(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(
            heartbeat=PING_SECONDS, compress=False, max_msg_size=MAX_FRAME, timeout=2.0, autoping=True
        )
        await ws.prepare(request)
        reader = SocketReader(request.transport, ws)
        try:
            with self._access.admitted(request) as admitted:
                if self._hub.draining:
                    raise Close(RESTART, "restart")
                if admitted is not None:
                    raise Close(*admitted)
                await self._talk(request, reader)
        except Close as close:
            metrics.READERS_CLOSED.labels(str(close.code)).inc()
            await ws.close(code=close.code, message=close.reason)
        finally:
            self._leave(reader)
        return ws

    async def _talk(self, request: web.Request, reader: SocketReader) -> None:
        bad = 0
        authorised = self._access.authorised(request)
        deadline = asyncio.get_running_loop().time() + HELLO_WITHIN
        while True:
            try:
                async with asyncio.timeout_at(None if reader.ready else deadline):
                    message = await reader.ws.receive()
            except TimeoutError:
                raise Close(NO_HELLO, f"no hello within {HELLO_WITHIN:g} s") from None
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            try:
                for said in decode(message.data):
                    await self._answer(reader, said, authorised=authorised)
            except BadRequest as error:
                bad += 1
                sub = getattr(error, "sub", None)
                reader.say({"type": "error", "sub": sub, "code": "bad_request", "detail": str(error)})
                if bad >= MAX_BAD_FRAMES:
                    raise Close(BAD, "three bad frames") from None

    async def _answer(self, reader: SocketReader, said: Said, *, authorised: bool) -> None:
        if isinstance(said, Hello):
            self._hello(reader, said, authorised=authorised)
        elif not reader.ready:
            raise BadRequest('say hello first: {"type":"hello","version":1}')
        elif isinstance(said, Subscribe):
            await self._subscribe(reader, said)
        elif isinstance(said, Unsubscribe):
            self._release(reader, said.id)
            if not self._fanout.unsubscribe(reader, said.id):
                raise BadRequest(f"there is no subscription {said.id}")
        elif isinstance(said, Get):
            await self._get(reader, said.job_id)
        elif isinstance(said, Ping):
            reader.say({"type": "pong"})

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
        self._fanout.join(reader)
        reader.say(
            {
                "type": "welcome",
                "epoch": self._hub.epoch,
                "seq": self._hub.seq,
                "resumed": False,
                "ping_seconds": PING_SECONDS,
            }
        )

    async def _subscribe(self, reader: SocketReader, said: Subscribe) -> None:
        known = self._fanout.subs(reader)
        if said.id not in known and len(known) >= self._max_subscriptions:
            raise Close(TOO_MANY, f"at most {self._max_subscriptions} subscriptions")
        archived = await self._look_up(said.jobs or ())
        wanted = Filter(
            JobQuery(
                status=frozenset(said.status or ()),
                job_type=frozenset(said.job_type or ()),
                context_id=frozenset(said.context_id or ()),
            ),
            frozenset(said.jobs) if said.jobs is not None else None,
        )
        self._release(reader, said.id)
        sub = self._fanout.subscribe(reader, said.id, wanted)
        unknown = [
            n for n in dict.fromkeys(said.jobs or ()) if self._hub.index.resolve(n) is None and n not in archived
        ]
        reader.held[said.id] = unknown
        for name in unknown:
            self._hub.hold(name)
        extra = [s for n, s in archived.items() if self._hub.index.resolve(n) is None and wanted.query.matches(s)]
        task = asyncio.create_task(self._snapshot(reader, sub, unknown, extra))
        reader.snapshots.add(task)
        task.add_done_callback(reader.snapshots.discard)

    async def _look_up(self, names: Iterable[str]) -> dict[str, Shown]:
        """What the database knows of names that memory does not; what is recent goes to memory by this."""
        found: dict[str, Shown] = {}
        missing = [n for n in dict.fromkeys(names) if self._hub.index.resolve(n) is None]
        with contextlib.suppress(TimeoutError, SourceUnavailable):
            async with asyncio.timeout(LOOK_UP_WITHIN):
                for name in missing:
                    if (known := await self._hub.find(name)) is not None:
                        found[name] = known[0]
        return found

    async def _snapshot(self, reader: SocketReader, sub: Sub, unknown: list[str], extra: list[Shown]) -> None:
        """Send what matches now, the newest jobs first, as fast as the reader takes it."""
        get = self._hub.index.get
        jobs = sorted((s for i in sub.todo if (s := get(i)) is not None), key=lambda s: s.view.age_key, reverse=True)
        order = [s.job_id for s in jobs]
        count, at = 0, 0
        while self._fanout.subs(reader).get(sub.id) is sub:  # else it was replaced, or unsubscribed
            chunk: list[Shown] = []
            while at < len(order) and len(chunk) < CHUNK:
                # As it is now, not as it was: what changed meanwhile was not sent, as it was still to do.
                if order[at] in sub.todo:
                    del sub.todo[order[at]]
                    if (shown := get(order[at])) is not None:
                        chunk.append(shown)
                at += 1
            more = at < len(order)
            if not more:
                chunk += extra
            count += len(chunk)
            reader.say(
                {
                    "type": "snapshot",
                    "sub": sub.id,
                    "seq": self._hub.seq,
                    "more": more,
                    "jobs": [wire.document(s) for s in chunk],
                }
            )
            if not more:
                held = [n for n in unknown if self._hub.index.resolve(n) is None]
                reader.say({"type": "synced", "sub": sub.id, "seq": self._hub.seq, "count": count, "unknown": held})
                reader.write([self._status()])
                return
            await asyncio.sleep(0)
            while reader.waiting() > LAGGING_OVER:  # noqa: ASYNC110 - a transport has no event to wait for
                await asyncio.sleep(0.01)

    async def _get(self, reader: SocketReader, name: str) -> None:
        try:
            known = await self._hub.find(name)
        except SourceUnavailable as error:
            reader.say({"type": "error", "sub": None, "code": "unavailable", "detail": str(error)})
            return
        if known is None:
            reader.say({"type": "error", "sub": None, "code": "not_found", "detail": f"no job is known by {name!r}"})
            return
        shown = known[0]
        subs = [s.id for s in self._fanout.subs(reader).values() if shown.job_id in s.group.members]
        reader.write([wire.put(subs, self._hub.seq, shown, wire.encode(wire.document(shown)))])

    def _release(self, reader: SocketReader, sub_id: int) -> None:
        for name in reader.held.pop(sub_id, ()):
            self._hub.release(name)

    def _leave(self, reader: SocketReader) -> None:
        for sub_id in list(reader.held):
            self._release(reader, sub_id)
        self._fanout.leave(reader)
        for task in reader.snapshots:
            task.cancel()

    def _bookmark(self) -> None:
        message = wire.encode({"type": "bookmark", "seq": self._hub.seq, "at": wire.rfc3339(time.time_ns() // 1000)})
        messages = [message] if self._hub.source == "live" else [message, self._status()]
        for reader in self._fanout.readers:
            if not self._fanout.lags(reader):  # it is owed changes from before this seq
                reader.write(messages)

    def _status_changed(self) -> None:
        message = [self._status()]
        for reader in self._fanout.readers:
            reader.write(message)

    def _status(self) -> bytes:
        return wire.encode({"type": "status", "source": self._hub.source, "lag_seconds": self._hub.lag_seconds})
