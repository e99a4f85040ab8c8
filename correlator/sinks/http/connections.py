"""The connections of a listener: how many are open, whose they are, and which of them end when there are too many.

Problem. Each connection is a file descriptor. A client that takes all of them takes those of the database, the broker
and the checkpoint too, and a listener without one fails at every attempt to accept, as often as the loop lets it.

Model. The process keeps `RESERVED` descriptors for itself; the others are the limit of connections. A connection is
idle while no request of it is being answered, or has just come. At the limit a new connection ends the one that has
been idle longest, of the address that has most idle ones: a client that opens connections and asks nothing takes them
from itself. Where none is idle, `SURPLUS` more are accepted, which may only ask for `/health/*`: a probe is answered
whatever clients do. One that asks nothing ends for the next once all of these are taken, and not before: its request
may be on its way. Beyond them nothing is accepted: new connections wait in the kernel's queue. The same holds for one
address at three quarters of the limit, unless it is a trusted proxy; beyond its surplus its connections are closed.

A connection that was accepted begins once its first bytes have come, and in its turn, a few in one round of the event
loop, addresses in turn: its transport, its handshake and its first request cost many times what accepting it does. So
the kernel's queue, which is in order of arrival, is short, and the first bytes show a probe: it begins at once. One of
the surplus that asks for anything else is refused, without aiohttp. With TLS neither can be seen before the handshake.
A turn lasts until the handshake has ended: what many clients of one busy process answer at once would be the work of
one round. One that is far away, or does not answer, delays others by `handshake_turn` seconds only, and by less while
many addresses wait: the turns of all that a client has in IPv6 could take minutes. It goes on after its turn, and keeps
in memory what its client has sent: at a bound the oldest ends for the next. What an end costs is its request's task
with all that it holds: ends that come at once are noticed a few in one round, too.

What requests take in memory is counted, for an address and in all, until they are answered: what a connection may send
is little, and thousands of them would take everything. Beyond the bound the connection is refused.

Invariants. Accepting takes a bounded time, and pauses after an error. Event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import re
import resource
import select
import socket
import ssl
import time
from asyncio import sslproto
from collections import Counter
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast

from aiohttp import web
from aiohttp.http import WebSocketReader
from aiohttp.http_exceptions import LineTooLong

from correlator.bounded import BoundedDict
from correlator.errors import CorrelatorError, drop_frames
from correlator.ops import metrics
from correlator.sinks.http.access import share_of
from correlator.sinks.http.frames import ClientFrames
from correlator.sinks.http.requests import problem
from correlator.sinks.turns import Bursts, Held, Newcomers, Refused, Rounds, Turns

log = logging.getLogger(__name__)

RESERVED: Final = 128
"""Descriptors that are not given to clients: database, broker, NATS, webhooks, checkpoint. At most half of all."""

SURPLUS: Final = 64
"""Connections beyond the limit, for probes: some rounds of accepting, so that the request of each can be read. They are
taken from the reserved descriptors, at most half of these."""

BACKLOG: Final = 1024
"""Connections that wait in the kernel until they are accepted."""

ACCEPTED_AT_ONCE, CROWDED_AT_ONCE = 40, 4
"""Connections that are accepted before the event loop runs other tasks; the second at a limit, where each one ends
another: the request of a probe must be read before that."""

SPOKEN_AT_ONCE, ENDED_AT_ONCE = 32, 16
"""Connections of which the first bytes, and the end, are noticed in one round of the event loop."""

PROBE: Final = re.compile(rb"(?:GET|HEAD|OPTIONS) (?:https?://[^/ ]+)?(?:/i/[^/ ]+)?/health/")
"""How the request of a probe begins: also through an appliance's prefix, or with the whole address."""

PROBE_MOST: Final = 512
"""Bytes that show whether it is one."""

PARSED_AT_ONCE, PARSED_WITHIN = 64, 0.004
"""Pieces of requests that are parsed in one round of the event loop, and the seconds after which no other one begins. A
piece of thousands of short headers or chunks takes a millisecond, and thousands of connections may send one at once."""

UNREAD: Final = 16 << 10
"""Bytes of a request that are read before it is refused: ending a connection with unread bytes loses the answer."""

ASKS_WITHIN: Final = 1.0
"""Seconds for which a connection is not idle whose first bytes had come when it was accepted."""

REST: Final = 0.1
"""Seconds without accepting after the limit, or an error."""

SAY_AGAIN: Final = 600.0
"""Seconds after which it is logged again that an address, or all of them, have too many connections."""

MAX_IDLE_TLS: Final = 4_096
"""Idle connections with TLS. One takes 60 kB, or 130 kB with an unfinished record and an unfinished request."""

HANDSHAKE_WITHIN: Final = 10.0
"""Seconds for a TLS handshake."""

TLS_BUFFER: Final = 16 << 10
"""Bytes of the buffer that asyncio keeps for each connection with TLS: the longest record. Its default is 256 KiB, and
no parameter changes it. It is set for all connections of the process, including those to the database."""

MAX_UNANSWERED: Final = 32 << 10
"""Bytes that a client may send over HTTP ahead of an answer: the lines of a request, and what it sends behind them."""

LINGER: Final = 1.0
"""Seconds for which more than that is read and dropped, until the connection ends."""

ASCII_COST, TEXT_COST = 2, 6
"""Bytes of memory for each byte of a request: it is kept as it came and as text, in which one character can make each
other one take four bytes."""

REQUEST_COST, PARSED_AHEAD = 1 << 10, 32
"""Bytes of memory, besides its own, of each request behind another one: it is parsed before it is due.
aiohttp parses at most so many ahead."""

LINE_COST, FREE_LINES = 100, 64
"""Bytes of memory, besides its own, of each line: a header is several objects, and so is a chunk of a body. Requests of
browsers have fewer lines than those that are not counted."""

UNCOUNTED: Final = 4 << 10
"""Bytes of memory of each request that are not counted: ordinary ones take less, and thousands may come at once."""

END: Final = b"\r\n\r\n"
"""The end of a request without a body. aiohttp's parser accepts no other."""

MAX_REQUESTS, MAX_REQUESTS_EACH = 128 << 20, 96 << 20
"""Bytes of memory for all requests, and for those of one address, from their first byte until they are answered. Behind
one proxy, 10,000 websockets may have headers of 6 kB each, cookies included."""

MAX_FORWARDED_EACH: Final = 16 << 20
"""The same for one client of a trusted proxy: so it leaves most of the proxy's bytes to the others."""

UNREAD_REPLY: Final = 16 << 10
"""Bytes of replies that may wait in a transport for their client without being counted."""

MAX_TARGET, MAX_FIELD = 8190, 8192
"""Bytes of an address, and of a header. They differ, so that aiohttp's error says which of them was too long."""

SERVER: Final = "correlator"
"""The header Server. aiohttp's own names its version and Python's."""


def descriptor_limit() -> int:
    """The number of files that this process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _ended() -> None:
    """What `Peer.end` is before a connection begins and when it has ended."""


class Peer:
    """One connection. `surplus`: it may only ask for `/health/*`. `end()` aborts it.

    `crowded`: it came while its address, or all of them, had as many as they may. `idle`: the idle ones of its address.
    `unanswered`: bytes received since the last answer began or ended. `asked`: requests that wait for their answer.
    `cost`: bytes of memory that they take, without that of their `lines`. `begun`, `begun_lines`: the same of a request
    whose end has not come. `last`: the last bytes of that, as an end may come in two pieces. `counted`: bytes of memory
    that are counted among all.
    """

    __slots__ = (
        "address", "answering", "asked", "begun", "begun_lines", "cost", "counted", "crowded", "end", "forwarded",
        "has_tls", "idle", "last", "lines", "make_room", "surplus", "unanswered",
    )  # fmt: skip

    def __init__(self, address: str, idle: dict[Peer, None], *, crowded: bool, surplus: bool) -> None:
        self.address = address
        self.idle = idle
        self.answering = False
        self.crowded = crowded
        self.surplus = surplus
        self.unanswered = self.asked = self.cost = self.lines = self.begun = self.begun_lines = self.counted = 0
        self.last = b""
        self.forwarded: tuple[str, int] | None = None
        """The client of a proxy whose request is being answered, and the bytes that are counted for it."""
        self.end: Callable[[], object] = _ended
        self.has_tls = False
        self.make_room: Callable[[], object] | None = None
        """Ends the connection for another one, while it is idle and has TLS."""


class Connections:
    """The open connections. It performs no I/O but `Peer.end`. `limit` and `surplus` follow `descriptors`.

    `descriptors()`: how many files the process may open. `is_proxy(address)`: whether many clients share that address.
    """

    def __init__(
        self,
        descriptors: Callable[[], int] = descriptor_limit,
        is_proxy: Callable[[str], bool] = lambda _: False,
        *,
        max_idle_tls: int = MAX_IDLE_TLS,
    ) -> None:
        self._idle_tls = Newcomers(max_idle_tls)
        self._descriptors = descriptors
        self._is_proxy = is_proxy
        self._open: dict[Peer, None] = {}
        self._of: Counter[str] = Counter()
        """By address, without the surplus."""
        self._surplus: Counter[str] = Counter()
        self._idle: dict[bool, dict[str, dict[Peer, None]]] = {False: {}, True: {}}
        """Without the surplus, and the surplus; by address of open ones, those that are idle for longest first."""
        self._requests = Held("bytes of requests", most=MAX_REQUESTS, each=MAX_REQUESTS_EACH)
        self._forwarded = Held("bytes of requests", most=MAX_REQUESTS, each=MAX_FORWARDED_EACH)
        self._full = self._says_full = False
        self._said: BoundedDict[str, float] = BoundedDict(100)
        """Addresses that had too many connections, and when that was logged; the empty one: all together."""

    def __len__(self) -> int:
        return len(self._open)

    @property
    def limit(self) -> int:
        """Connections that may be open, besides `SURPLUS`."""
        return self._descriptors() - self._reserved

    @property
    def surplus(self) -> int:
        """Connections beyond the limit, and beyond that of an address."""
        return min(SURPLUS, self._reserved // 2)

    @property
    def _reserved(self) -> int:
        return min(RESERVED, self._descriptors() // 2)

    @property
    def _ordinary(self) -> int:
        return len(self._open) - self._surplus.total()

    def has_room(self) -> bool:
        """True if one more may be accepted. Ends an idle one for it where that is needed."""
        limit, ordinary = self.limit, self._ordinary
        if self._full and ordinary < limit - limit // 10:
            self._full = False
            if self._says_full:
                log.info("%d connections are open: new ones are accepted again", len(self._open))
        if ordinary < limit and len(self._open) < limit + self.surplus:
            return True
        if not self._full:
            self._full, self._says_full = True, self._is_to_be_said("")
            if self._says_full:
                log.warning(
                    "%d connections are open, the limit of this process: idle ones end for new ones, and others wait."
                    " If these are real clients, raise LimitNOFILE= of the service (now %d, %d for the database).",
                    *(len(self._open), self._descriptors(), self._reserved),
                )
        return (
            self._end_idle(self._most_idle(surplus=False), surplus=False)
            or len(self._open) < limit + self.surplus
            or self._end_idle(self._most_idle(surplus=True), surplus=True)
        )

    def admit(self, address: str) -> Peer | None:
        """Count a connection that was accepted. None: its address has too many, so close it."""
        limit = self.limit
        most = limit if self._is_proxy(address) else limit - limit // 4
        address = share_of(address)
        crowded = self._full
        if self._of[address] >= most:
            crowded = True
            self._end_idle(address, surplus=False)
        beyond = self._of[address] >= most
        if beyond:
            self._say_crowded(address)
            if self._surplus[address] >= self.surplus // 2:
                has_place = self._end_idle(address, surplus=True)
            else:  # Its part of the surplus is of no use to it while others have all of it.
                has_place = self._surplus.total() < self.surplus or self._end_idle(
                    self._most_idle(surplus=True), surplus=True
                )
            if not has_place:
                return None
        surplus = beyond or self._ordinary >= limit
        idle = self._idle[surplus].setdefault(address, {})
        peer = Peer(address, idle, crowded=crowded, surplus=surplus)
        self._open[peer] = None
        (self._surplus if surplus else self._of)[address] += 1
        idle[peer] = None
        return peer

    def lost(self, peer: Peer) -> None:
        """The connection has ended. May be called more than once."""
        if peer not in self._open:
            return
        del self._open[peer]
        self._count_down(peer, 0)
        self._rests(peer, False)
        peer.end = _ended  # What it was refers to the peer: only a full garbage collection would free them.
        peer.idle.pop(peer, None)
        counted = self._surplus if peer.surplus else self._of
        counted[peer.address] -= 1
        if not counted[peer.address]:
            del counted[peer.address]
            del self._idle[peer.surplus][peer.address]

    def begin(self, peer: Peer) -> None:
        """A request of the connection is being answered from now on, until `end`."""
        peer.idle.pop(peer, None)
        self._rests(peer, False)
        peer.answering = True
        peer.unanswered = 0

    def asked_by(self, peer: Peer, client: str) -> None:
        """The request came from `client`. If a proxy passed it on, what it takes is counted for both until `end`.

        Raises:
            Refused: The requests of the client take as much memory as they may.
        """
        if peer.counted and client != peer.address:
            self._forwarded.take(client, peer.counted)
            peer.forwarded = client, peer.counted

    def end(self, peer: Peer) -> None:
        """The request has been answered."""
        if peer.forwarded is not None:
            self._forwarded.give_back(*peer.forwarded)
            peer.forwarded = None
        peer.answering = False
        peer.unanswered = 0
        peer.asked -= 1
        if peer.asked <= 0:
            peer.asked, peer.cost, peer.lines = 0, peer.begun, peer.begun_lines
            self._count_down(peer, max(0, _taken(peer) - UNCOUNTED))
        self.settle(peer)
        if peer.has_tls:
            self._rests(peer, True)

    def received(self, peer: Peer, data: bytes) -> None:
        """Count what came of requests, until the `end` of the last one that has come whole, or until `lost`.

        Raises:
            Refused: All requests, or those of the address, take as much memory as they may.
        """
        peer.unanswered += len(data)
        peer.cost += _bytes_taken(data)
        peer.lines += data.count(b"\n")
        rest, peer.last = data, peer.last + data
        if asked := peer.last.count(END):
            peer.cost += min(asked if peer.asked else asked - 1, PARSED_AHEAD) * REQUEST_COST
            peer.asked += asked
            peer.begun = peer.begun_lines = 0
            rest = peer.last = peer.last[peer.last.rfind(END) + len(END) :]
        peer.begun += _bytes_taken(rest)
        peer.begun_lines += rest.count(b"\n")
        peer.last = peer.last[1 - len(END) :]
        if (more := _taken(peer) - UNCOUNTED - peer.counted) > 0:
            self._requests.take(peer.address, more)
            peer.counted += more

    def secured(self, peer: Peer) -> None:
        """The TLS handshake has ended. A connection takes much memory from now on, so few may be idle."""
        peer.has_tls = True
        if not peer.answering:
            self._rests(peer, True)

    def asks(self, peer: Peer) -> None:
        """The connection is about to ask: it does not end for another one. Call `settle` some time later."""
        peer.idle.pop(peer, None)

    def settle(self, peer: Peer) -> None:
        """The connection is idle again, unless a request of it is being answered."""
        if peer in self._open and not peer.answering:
            peer.idle[peer] = None

    def describe(self) -> dict[str, Any]:
        """The part of readiness."""
        error = (
            "the limit of connections is reached: idle ones end for new ones, and others wait" if self._full else None
        )
        return {"ok": not self._full, "open": len(self._open), "limit": self.limit, "error": error}

    def _rests(self, peer: Peer, rests: bool) -> None:
        """Note whether a connection with TLS is idle."""
        if rests and peer in self._open and peer.make_room is None:
            peer.make_room = partial(self._end, peer)
            self._idle_tls.enter(peer.address, peer.make_room)
        elif not rests and peer.make_room is not None:
            self._idle_tls.leave(peer.address, peer.make_room)
            peer.make_room = None

    def _count_down(self, peer: Peer, rest: int) -> None:
        """Of what the connection takes, count no more than `rest`."""
        if (less := peer.counted - rest) > 0:
            self._requests.give_back(peer.address, less)
            peer.counted -= less

    def _say_crowded(self, address: str) -> None:
        """Log that an address has all the connections that it may have; every `SAY_AGAIN` seconds."""
        if self._is_to_be_said(address):
            log.warning(
                "%s has %d connections, as many as one address may have: further ones may only ask for /health/*",
                *(address, self._of[address]),
            )

    def _is_to_be_said(self, address: str) -> bool:
        """True if it was not logged within `SAY_AGAIN` seconds that this address, or all, have too many."""
        now = time.monotonic()
        if now - self._said.get(address, float("-inf")) < SAY_AGAIN:
            return False
        self._said[address] = now
        return True

    def _most_idle(self, *, surplus: bool) -> str:
        """The address that has most idle connections."""
        by_address = self._idle[surplus]
        return max(by_address, key=lambda a: len(by_address[a]), default="")

    def _end_idle(self, address: str, *, surplus: bool) -> bool:
        """End the connection of this address that is idle for longest. False if it has none."""
        peer = next(iter(self._idle[surplus].get(address, ())), None)
        if peer is None:
            return False
        self._end(peer)
        return True

    def _end(self, peer: Peer) -> None:
        """End an idle connection for another one."""
        end = peer.end
        self.lost(peer)
        metrics.CONNECTIONS_ENDED.labels("idle").inc()
        end()


def _bytes_taken(data: bytes) -> int:
    """Bytes of memory that these bytes of requests take."""
    return len(data) * (ASCII_COST if data.isascii() else TEXT_COST)


def _taken(peer: Peer) -> int:
    """Bytes of memory that the requests of a connection take."""
    return peer.cost + max(0, peer.lines - FREE_LINES) * LINE_COST


class TooMuch(NamedTuple):
    """The responses, as bytes, to requests that take too much memory.

    `lines`, `behind`: one has more than `MAX_UNANSWERED` in its lines, or behind them. `of_address`, `in_all`: those of
    an address take more than `MAX_REQUESTS_EACH`, or those of the listener more than `MAX_REQUESTS`.
    """

    lines: bytes
    behind: bytes
    of_address: bytes
    in_all: bytes


class HttpConnection(web.RequestHandler):
    """aiohttp's connection, which reports its end.

    What it receives of HTTP waits in aiohttp until a request of it is answered: beyond `MAX_UNANSWERED` it is refused.
    No request needs a body. If one comes, it is dropped without being unpacked.
    `frames`: what it receives of a websocket, once it is one.
    """

    __slots__ = (
        "_connections",
        "_endings",
        "_is_over",
        "_is_paused",
        "_parsing",
        "_too_much",
        "_unparsed",
        "frames",
        "peer",
    )

    def __init__(
        self,
        server: web.Server,
        peer: Peer,
        connections: Connections,
        endings: Rounds,
        parsing: Bursts,
        too_much: TooMuch,
        **options: Any,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            server, loop=loop, max_line_size=MAX_TARGET, max_field_size=MAX_FIELD, auto_decompress=False, **options
        )
        self.peer = peer
        self.frames: ClientFrames | None = None
        self._connections = connections
        self._endings = endings
        self._parsing = parsing
        self._is_paused = False
        self._unparsed = 0
        """Pieces of what came that wait in `parsing`."""
        self._too_much = too_much
        self._is_over = False
        """Nothing that comes is parsed any more: a request was refused, or the connection has ended."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.peer.end = transport.abort
        transport.set_write_buffer_limits(UNREAD_REPLY)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self.frames is None:
            try:
                self._connections.received(self.peer, data)
            except Refused as refused:
                self._refuse(self._too_much.in_all if refused.all_clients else self._too_much.of_address)
                return
            if self.peer.unanswered > MAX_UNANSWERED:
                is_body = 0 <= data.find(END) < MAX_UNANSWERED
                self._refuse(self._too_much.behind if is_body else self._too_much.lines)
                return
        self._unparsed += 1
        waits = self._parsing.add(self.peer.address, partial(self._parse, data))
        if waits and self.frames is not None and self.transport is not None and not self._is_paused:
            self._is_paused = True  # What waits here is counted by nobody: of HTTP it has a bound.
            self.transport.pause_reading()

    def _parse(self, data: bytes) -> None:
        self._unparsed -= 1
        if self.transport is None or self._is_over:
            return
        if self._is_paused and not self._unparsed:
            self._is_paused = False
            self.transport.resume_reading()  # Before aiohttp gets the data: it may pause it again.
        super().data_received(data)

    def _refuse(self, answer: bytes) -> None:
        """Send `answer`, unless another one is being sent, and end the connection.

        What follows is read for a while, and dropped: ending a connection with unread bytes loses the answer.
        """
        self._is_over = True
        self.close()
        if self.transport is not None and not self.peer.answering:
            # A request before may have been read and not begun: its answer finds no transport, and is dropped.
            transport, self.transport = self.transport, None
            transport.write(answer)
            if transport.can_write_eof():
                transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER, transport.close)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """The connection has become a websocket."""
        self.frames = ClientFrames(parser)
        if self.transport is not None:
            self.transport.set_write_buffer_limits()
        super().set_parser(cast("WebSocketReader", self.frames), data_received_cb)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._is_over = True
        self._connections.lost(self.peer)
        self.frames = None  # They refer to the parser, which refers to this.
        self._endings.add(partial(super().connection_lost, exc))

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no request. aiohttp has 400 for everything, with its parser's words."""
        drop_frames(exc)  # They refer to the connection, whose messages refer to the error.
        detail = "this is not a valid HTTP request" if status < 500 else "Internal error. See the daemon's log."
        if isinstance(exc, LineTooLong):
            if exc.args[1] == MAX_FIELD:
                status, detail = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a header has more than {MAX_FIELD} bytes"
            else:
                status, detail = HTTPStatus.REQUEST_URI_TOO_LONG, f"the address has more than {MAX_TARGET} bytes"
        super().handle_error(request, status, exc, message)  # It logs what is an error of this program.
        response = problem(status, detail)
        response.force_close()
        response.headers.update({"Server": SERVER, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})
        return response


class Silent:
    """Connections that were accepted, and have sent nothing yet.

    The kernel names those that have sent something, a few in one round of the event loop, through one descriptor:
    with a callback for each, a thousand that send at once are the work of one round. `spoke` gets each of these, and
    when its first request is due; `late` each that has sent nothing for `within` seconds.
    """

    def __init__(
        self,
        spoke: Callable[[socket.socket, Peer, float], None],
        late: Callable[[socket.socket, Peer], None],
        within: float,
    ) -> None:
        self._spoke = spoke
        self._late = late
        self._within = within
        self._epoll = select.epoll()
        self._waiting: dict[int, tuple[socket.socket, Peer, float]] = {}
        """By descriptor, in the order in which they were accepted."""
        self._timer: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(self._epoll, self._read)

    def add(self, accepted: socket.socket, peer: Peer) -> None:
        """Wait for the first bytes. Call `remove` before the connection is closed."""
        loop = asyncio.get_running_loop()
        self._waiting[accepted.fileno()] = accepted, peer, loop.time() + self._within
        self._epoll.register(accepted, select.EPOLLIN)
        if self._timer is None:
            self._timer = loop.call_later(self._within, self._end_late)

    def remove(self, accepted: socket.socket) -> None:
        """Forget a connection. Does nothing if it is none of these."""
        if accepted.fileno() in self._waiting:
            del self._waiting[accepted.fileno()]
            self._epoll.unregister(accepted)

    def close(self) -> None:
        """Close all of them, and wait for none any more."""
        asyncio.get_running_loop().remove_reader(self._epoll)
        self._epoll.close()
        if self._timer is not None:
            self._timer.cancel()
        for accepted, _, _ in self._waiting.values():
            accepted.close()
        self._waiting.clear()

    def _read(self) -> None:
        for descriptor, _ in self._epoll.poll(0, SPOKEN_AT_ONCE):
            accepted, peer, until = self._waiting[descriptor]
            self.remove(accepted)
            self._spoke(accepted, peer, until)

    def _end_late(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        for accepted, peer, until in list(itertools.islice(self._waiting.values(), ENDED_AT_ONCE)):
            if until <= now:
                self._late(accepted, peer)
        if self._waiting:
            _, _, until = next(iter(self._waiting.values()))
            self._timer = loop.call_at(max(until, now + 0.001), self._end_late)


class Acceptor:
    """Accepts the connections of one address, which begin in `turns`.

    `refusal`: the response, as bytes, to a request that may not be made on its connection. `within`: seconds from the
    connection to its first complete request, and between two. `handshake_turn`: seconds after which others may begin
    although a TLS handshake has not ended; less, in proportion, while more addresses than `full_turns` wait. `options`:
    those of `RequestHandler`.
    """

    def __init__(
        self,
        connections: Connections,
        turns: Turns,
        handshakes: Newcomers,
        server: web.Server,
        *,
        refusal: bytes,
        too_much: TooMuch,
        within: float,
        handshake_turn: float,
        full_turns: int,
        **options: Any,
    ) -> None:
        self._connections = connections
        self._turns = turns
        self._handshakes = handshakes
        self._server = server
        self._refusal = refusal
        self._too_much = too_much
        self._within = within
        self._handshake_turn = handshake_turn
        self._full_turns = full_turns
        self._options = options
        self._tls: ssl.SSLContext | None = None
        self._sockets: list[socket.socket] = []
        self._silent = Silent(self._spoke, self._give_up, within)
        self._endings = Rounds(ENDED_AT_ONCE)
        self._parsing = Bursts(PARSED_AT_ONCE, PARSED_WITHIN)
        self._beginning: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> tuple[str, int]:
        """Begin to accept. `port` 0: any free port. Returns the first address that it listens on.

        Raises:
            CorrelatorError: The address cannot be listened on. Call `close` all the same.
        """
        self._tls = tls
        if tls is not None:
            sslproto.SSLProtocol.max_size = TLS_BUFFER
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, address in dict.fromkeys((info[0], info[4]) for info in found):
                self._sockets.append(_listening(family, address))
        except OSError as error:
            why = _LISTEN_ERRORS.get(error.errno or 0, error.strerror or str(error))
            raise CorrelatorError(f"http.listen: {host}:{port} cannot be listened on: {why}") from error
        self._resume()
        name = self._sockets[0].getsockname()
        return str(name[0]), int(name[1])

    def close(self) -> None:
        """Accept no more. Open connections stay."""
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._sockets = []
        self._silent.close()
        for task in self._beginning:
            task.cancel()

    def _resume(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            loop.remove_reader(listening)
        loop.call_later(REST, self._resume)

    def _accept(self, listening: socket.socket) -> None:
        crowded = 0
        for _ in range(ACCEPTED_AT_ONCE):
            if not self._connections.has_room():
                self._pause()
                return
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor or no memory is left, in this process or on the host
                log.warning("no connection can be accepted: %s", error.strerror or error)
                self._pause()
                return
            accepted.setblocking(False)
            peer = self._connections.admit(str(address[0]))
            asks_for_health = _asks_for_health(accepted)
            if peer is None or (asks_for_health is False and self._may_not_ask(peer)):
                self._refuse(accepted, peer)
                continue
            self._start(accepted, peer, asks_for_health)
            crowded += peer.crowded
            if crowded >= CROWDED_AT_ONCE:
                return

    def _may_not_ask(self, peer: Peer) -> bool:
        """True if the connection may ask for nothing but `/health/*`, and its first bytes show what it asks for."""
        return peer.surplus and self._tls is None

    def _refuse(self, accepted: socket.socket, peer: Peer | None) -> None:
        """End a connection, with an answer if its request has come."""
        with contextlib.suppress(OSError):
            if self._tls is None and accepted.recv(UNREAD):
                accepted.send(self._refusal)
        accepted.close()
        metrics.CONNECTIONS_ENDED.labels("refused").inc()
        if peer is not None:
            self._connections.lost(peer)

    def _start(self, accepted: socket.socket, peer: Peer, asks_for_health: bool | None) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if asks_for_health is None:
            peer.end = partial(self._give_up, accepted, peer)
            self._silent.add(accepted, peer)
        else:
            self._arrange(accepted, peer, asyncio.get_running_loop().time() + self._within, asks_for_health)

    def _spoke(self, accepted: socket.socket, peer: Peer, until: float) -> None:
        self._arrange(accepted, peer, until, _asks_for_health(accepted) or False)

    def _arrange(self, accepted: socket.socket, peer: Peer, until: float, asks_for_health: bool) -> None:
        """Let the connection begin, as its first bytes have come. `until`: when its first request is due."""
        if not asks_for_health and self._may_not_ask(peer):
            self._refuse(accepted, peer)
            return
        if asks_for_health or not peer.surplus:
            self._connections.asks(peer)  # Others may come faster than its request is read.
            asyncio.get_running_loop().call_later(ASKS_WITHIN, self._connections.settle, peer)
        task = asyncio.ensure_future(self._begin(accepted, peer, until, asks_for_health))
        peer.end = task.cancel
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        task.add_done_callback(partial(self._begun, accepted, peer))

    async def _begin(self, accepted: socket.socket, peer: Peer, until: float, asks_for_health: bool) -> None:
        """Begin the connection in its turn, which lasts for the TLS handshake."""
        if asks_for_health:
            await self._connect(accepted, peer, until)
            return
        async with self._turns.turn(peer.address):
            connecting = asyncio.ensure_future(self._connect(accepted, peer, until))
            try:
                shorter = min(1.0, self._full_turns / max(1, self._turns.addresses))
                await asyncio.wait([connecting], timeout=self._handshake_turn * shorter)
            except asyncio.CancelledError:
                connecting.cancel()
                raise
        await connecting

    async def _connect(self, accepted: socket.socket, peer: Peer, until: float) -> None:
        """Hand the socket to aiohttp, with TLS after the handshake. Give it up if that fails or its client has gone."""
        loop = asyncio.get_running_loop()
        options = {"keepalive_timeout": max(1.0, until - loop.time()), **self._options}
        connection = HttpConnection(
            self._server, peer, self._connections, self._endings, self._parsing, self._too_much, **options
        )
        make_room = partial(self._end_handshake, peer.end)
        if self._tls is not None:
            self._handshakes.enter(peer.address, make_room)
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_WITHIN if self._tls is not None else None,
            )
        except BaseException as error:
            connection.connection_lost(None)  # It and its parser refer to each other.
            self._give_up(accepted, peer)
            if isinstance(error, asyncio.CancelledError):
                raise
            if not isinstance(error, OSError | Refused):
                log.exception("a connection could not begin")
            drop_frames(error)
        else:
            if self._tls is not None:
                self._connections.secured(peer)
        finally:
            self._handshakes.leave(peer.address, make_room)

    def _end_handshake(self, end: Callable[[], object]) -> None:
        """End a connection, of which `end` is the `Peer.end`, for another one's handshake."""
        metrics.CONNECTIONS_ENDED.labels("handshake").inc()
        end()

    def _begun(self, accepted: socket.socket, peer: Peer, task: asyncio.Task[None]) -> None:
        """Give the connection up if it was ended before it began."""
        if task.cancelled():
            self._give_up(accepted, peer)

    def _give_up(self, accepted: socket.socket, peer: Peer) -> None:
        self._connections.lost(peer)
        self._silent.remove(accepted)
        accepted.close()


def _asks_for_health(accepted: socket.socket) -> bool | None:
    """True if the first bytes that the client has sent are those of a probe. None if nothing has come yet."""
    try:
        return PROBE.match(accepted.recv(PROBE_MOST, socket.MSG_PEEK)) is not None
    except BlockingIOError:
        return None
    except OSError:
        return False


_LISTEN_ERRORS = {
    errno.EADDRINUSE: "another process listens there: end it, or choose another port",
    errno.EADDRNOTAVAIL: "this host has no such address: choose one that it has, or 0.0.0.0 for all",
    errno.EACCES: "the service's user may not: choose a port from 1024 on",
}


def _listening(family: int, address: Any) -> socket.socket:
    listening = socket.create_server(address, family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening


def frames_of(request: web.BaseRequest) -> ClientFrames | None:
    """What the client of a websocket sends; None if no `Acceptor` has accepted its connection."""
    return request.protocol.frames if isinstance(request.protocol, HttpConnection) else None


def peer_of(request: web.BaseRequest) -> Peer | None:
    """The connection of a request; None if no `Acceptor` has accepted it."""
    return request.protocol.peer if isinstance(request.protocol, HttpConnection) else None


def unread(request: web.BaseRequest) -> bool:
    """True if the client has not read all of the replies before."""
    transport = request.transport
    return transport is not None and transport.get_write_buffer_size() > 0
