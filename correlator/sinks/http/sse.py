"""Server-sent events: one subscription over plain HTTP, for networks that block websockets and for ``curl -N``.

The events are the websocket's messages. From ``synced`` on, their ``id`` is the position. A browser that reconnects
with it gets the changes it missed. One that lost its connection before ``synced`` has no ``id`` and gets a snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, Final

from aiohttp import web

from correlator.errors import BadRequest
from correlator.model.document import MAX_ID
from correlator.model.messages import CloseCode
from correlator.model.parameters import StreamMessages, given
from correlator.model.rows import Level
from correlator.ops import metrics
from correlator.pipeline.hub import Hub
from correlator.sinks.http.access import CHECKED_AT_ONCE, TOO_MANY_IDS
from correlator.sinks.http.grants import GRANT, Grant
from correlator.sinks.http.requests import RETRY_AFTER, RETRY_SECONDS, StreamedResponse, job_query, problem, read
from correlator.sinks.streaming.messages import Framing, Message, Resume
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.streaming.subscriptions import Filter

if TYPE_CHECKING:
    from correlator.sinks.http.access import Access

SUB: Final = 1
"""The ID of the only subscription of an event stream."""


class EventStreamClient:
    """One event stream as a `Client` of the fan-out.

    `positions`: the framing with an ``id`` per position, shared by all streams. It is used after the snapshot.
    """

    transport: ClassVar[str] = "sse"

    def __init__(self, transport: asyncio.Transport, address: str, positions: Framing, grant: Grant) -> None:
        self._transport = transport
        self.address = address
        self.grant = grant
        self._positions = positions
        self.framing: Framing = _without_positions
        self.over = asyncio.Event()

    @property
    def is_restricted(self) -> bool:
        return self.grant.is_restricted

    def write(self, framed: bytes) -> None:
        if not (self.over.is_set() or self._transport.is_closing()):
            self._transport.write(b"%x\r\n%b\r\n" % (len(framed), framed))  # RFC 9112, 7.1: a chunk

    def waiting(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def synced(self) -> None:
        self.framing = self._positions

    def give_up(self) -> None:
        metrics.CLIENTS_CLOSED.labels("slow").inc()
        self._transport.abort()
        self.over.set()


class EventStreams:
    """All event streams of one listener."""

    def __init__(self, hub: Hub, access: Access, streams: Streams) -> None:
        self._hub = hub
        self._access = access
        self._streams = streams
        self._framing = with_positions(hub)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``GET /api/v1/stream``."""
        wanted, level = _wanted(request)
        wanted = request[GRANT].narrowed(wanted)
        with self._access.admitted(request.remote or "", request[GRANT]) as too_many:
            if self._hub.draining:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, "restarting", RETRY_AFTER)
            if too_many is not None:
                return problem(HTTPStatus.TOO_MANY_REQUESTS, too_many)
            response = StreamedResponse(
                headers={
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "Cache-Control": "no-cache, no-transform",
                    "X-Accel-Buffering": "no",
                }
            )
            if request.version >= (1, 1):
                response.enable_chunked_encoding()
            else:
                return problem(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "an event stream needs HTTP/1.1")
            last = request.headers.get("Last-Event-ID") or ""
            full = None if self._streams.fanout.groups.has_room(wanted) else TOO_MANY_IDS
            if (refusal := full or await self._streams.refusal(_position(last))) is not None:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, refusal, RETRY_AFTER)
            await response.prepare(request)
            if (transport := request.transport) is None:  # The client has gone.
                return response
            client = EventStreamClient(transport, request.remote or "", self._framing, request[GRANT])
            try:
                await self._begin(client, wanted, level, last)
                await client.over.wait()
            finally:
                self._streams.remove(client)
            with contextlib.suppress(ConnectionError):
                await response.write_eof()
            return response

    async def drain(self) -> None:
        """Send `bye` to all clients, so that they reconnect, and end their streams."""
        for client in self._open():
            self._end(client, CloseCode.RESTART)

    def _open(self) -> list[EventStreamClient]:
        return [r for r in self._streams.fanout.clients if isinstance(r, EventStreamClient)]

    def close_revoked(self) -> Iterator[None]:
        """End the streams whose grant does not hold any more, in steps of at most `CHECKED_AT_ONCE` streams.

        A client that reconnects with such a token gets 401.
        """
        for number, client in enumerate(self._open(), 1):
            if not self._access.holds(client.grant) and not client.over.is_set():
                metrics.CLIENTS_CLOSED.labels(str(CloseCode.UNAUTHORISED)).inc()
                self._end(client, CloseCode.UNAUTHORISED)
            if number % CHECKED_AT_ONCE == 0:
                yield

    def _end(self, client: EventStreamClient, code: int) -> None:
        self._streams.bye(client, code)
        client.over.set()

    async def _begin(self, client: EventStreamClient, wanted: Filter, level: Level | None, last: str) -> None:
        resume = _position(last)
        client.write(b"retry: %d\n\n" % (RETRY_SECONDS * 1000))
        self._streams.welcome(client, resume)
        if not self._access.holds(client.grant):  # revoked while the response headers were written
            self._end(client, CloseCode.UNAUTHORISED)
            return
        await self._streams.subscribe(client, SUB, wanted, level, resume=resume, resuming=bool(last))


def with_positions(hub: Hub) -> Framing:
    """Return the framing of an event stream that is synced: events with the positions of the hub."""

    def framing(messages: Sequence[Message]) -> bytes:
        # A change may consist of several messages. Its position is reached with the last one.
        last = {m.seq: i for i, m in enumerate(messages) if m.seq is not None}
        epoch = hub.epoch.encode()
        return b"".join(
            b"id: %b:%d\n%b" % (epoch, m.seq, _event(m)) if m.seq is not None and last[m.seq] == i else _event(m)
            for i, m in enumerate(messages)
        )

    return framing


def _without_positions(messages: Sequence[Message]) -> bytes:
    return b"".join(map(_event, messages))


def _event(message: Message) -> bytes:
    """One event. A browser passes an event with a name only to the listeners for that name."""
    return (b"event: event\ndata: %b\n\n" if message.is_event else b"data: %b\n\n") % message.body


def _wanted(request: web.Request) -> tuple[Filter, Level | None]:
    asked = read(request, StreamMessages)
    jobs = frozenset(asked.ids) if asked.ids else None
    if asked.ids == ("",):  # as `"jobs": []` of a websocket: an empty list has no other form in a query
        jobs = frozenset()
    elif "" in asked.ids:
        raise BadRequest(f"id: expected 1 to {MAX_ID} characters")
    return Filter(job_query(asked), jobs), given(asked.logs)


def _position(text: str) -> Resume | None:
    epoch, _, seq = text.rpartition(":")
    return Resume(epoch, int(seq)) if epoch and seq.isascii() and seq.isdigit() and len(seq) < 17 else None
