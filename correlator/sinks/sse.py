"""Server-sent events: one subscription over plain HTTP, for where websockets are blocked, and for ``curl -N``.

The events are the websocket's messages. Their ``id`` is the position, from ``synced`` on: a browser that comes back
with it gets what it missed; one that lost its connection before that has none, and gets a snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, Final, get_args

from aiohttp import web

from correlator import metrics
from correlator.errors import BadRequest
from correlator.hub import Hub, JobQuery
from correlator.jobs.model import LEVELS, Level, Status
from correlator.sinks.filters import Filter
from correlator.sinks.frames import MAX_IDS
from correlator.sinks.messages import Framing, Message
from correlator.sinks.problems import problem
from correlator.sinks.rest import choice, known, values
from correlator.sinks.stream import Resume, Streams

if TYPE_CHECKING:
    from correlator.sinks.access import Access

RETRY_MS = 2000
SUB: Final = 1
"""The one subscription of an event stream."""

_STATUSES: Final = frozenset(s.value for s in Status if s is not Status.SKIPPED)


class EventReader:
    """One stream, as the fan-out sees it.

    `positions`: the framing that tells them, shared by all streams; it holds once the snapshot is complete.
    """

    transport: ClassVar[str] = "sse"

    def __init__(self, transport: asyncio.Transport | None, positions: Framing) -> None:
        self._transport = transport
        self._positions = positions
        self.framing: Framing = _without_positions
        self.over = asyncio.Event()

    def write(self, framed: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(framed), framed))  # RFC 9112, 7.1: a chunk

    def waiting(self) -> int:
        if self._transport is None or self._transport.is_closing():
            return 0
        return self._transport.get_write_buffer_size()

    def synced(self) -> None:
        self.framing = self._positions

    def give_up(self) -> None:
        metrics.READERS_CLOSED.labels("slow").inc()
        if self._transport is not None:
            self._transport.abort()
        self.over.set()


class EventStreams:
    """All event streams of one listener."""

    def __init__(self, hub: Hub, access: Access, streams: Streams) -> None:
        self._hub = hub
        self._access = access
        self._streams = streams
        epoch = hub.epoch.encode()

        def framing(messages: Sequence[Message], /) -> bytes:
            # One change may be several messages: only with the last of them is its position reached.
            last = {m.seq: i for i, m in enumerate(messages) if m.seq is not None}
            return b"".join(
                b"id: %b:%d\ndata: %b\n\n" % (epoch, m.seq, m.body)
                if m.seq is not None and last[m.seq] == i
                else b"data: %b\n\n" % m.body
                for i, m in enumerate(messages)
            )

        self._framing: Framing = framing

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``GET /api/v1/stream``."""
        known(request, ("id", "status", "job_type", "context_id", "logs"))
        wanted, level = _wanted(request), _level(request)
        with self._access.admitted(request) as refused:
            if self._hub.draining:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, "restarting", {"Retry-After": "2"})
            if refused is not None:
                return problem(refused[0] - 4000, refused[1])
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "Cache-Control": "no-cache, no-transform",
                    "X-Accel-Buffering": "no",
                    **self._access.cors(request),
                }
            )
            if request.version >= (1, 1):
                response.enable_chunked_encoding()
            else:
                return problem(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "an event stream needs HTTP/1.1")
            await response.prepare(request)
            reader = EventReader(request.transport, self._framing)
            last = request.headers.get("Last-Event-ID") or ""
            try:
                await self._tell(reader, wanted, level, last)
                await reader.over.wait()
            finally:
                self._streams.leave(reader)
            with contextlib.suppress(ConnectionError):
                await response.write_eof()
            return response

    async def drain(self) -> None:
        """Tell everybody to come back, and end."""
        for reader in [r for r in self._streams.fanout.readers if isinstance(r, EventReader)]:
            self._streams.say(reader, {"type": "bye", "code": 1012, "retry_ms": [0, 5000]})
            reader.over.set()

    async def _tell(self, reader: EventReader, wanted: Filter, level: Level | None, last: str) -> None:
        resume = _position(last)
        reader.write(b"retry: %d\n\n" % RETRY_MS)
        self._streams.join(reader)
        self._streams.say(
            reader,
            {
                "type": "welcome",
                "epoch": self._hub.epoch,
                "seq": self._hub.seq,
                "resumed": self._streams.can_resume(resume),
                "ping_seconds": 25,
            },
        )
        await self._streams.subscribe(reader, SUB, wanted, level, resume=resume, back=bool(last))


def _without_positions(messages: Sequence[Message], /) -> bytes:
    return b"".join(b"data: %b\n\n" % m.body for m in messages)


def _wanted(request: web.Request) -> Filter:
    ids = request.query.getall("id", [])  # any characters: no commas between several
    if len(ids) > MAX_IDS:
        raise BadRequest(f"id: at most {MAX_IDS} of them")
    if any(not 0 < len(i) <= 255 for i in ids):
        raise BadRequest("id: expected 1 to 255 characters")
    status = values(request, "status")
    if wrong := sorted(status - _STATUSES):
        raise BadRequest(f"status={wrong[0]!r}: expected one of {', '.join(sorted(_STATUSES))}")
    query = JobQuery(status=status, job_type=values(request, "job_type"), context_id=values(request, "context_id"))
    return Filter(query, frozenset(ids) if ids else None)


def _level(request: web.Request) -> Level | None:
    text = choice(request, "logs", LEVELS)
    return next((level for level in get_args(Level) if level == text), None)


def _position(text: str) -> Resume | None:
    epoch, _, seq = text.rpartition(":")
    return Resume(epoch, int(seq)) if epoch and seq.isascii() and seq.isdigit() and len(seq) < 17 else None
