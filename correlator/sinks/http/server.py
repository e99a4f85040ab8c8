"""The HTTP listener: address, access rules and certificate, the checks before each request, the page, and shutdown.

Access rules and certificate can be reloaded while it serves; a configuration that cannot be used changes nothing. The
page and its files are served from memory; only files of the package are served. Shutdown: refuse new streams, send
`bye` to streaming clients and end requests that wait, then close the listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.typedefs import Handler
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from correlator.config.schema import Config
from correlator.errors import BadRequest, CorrelatorError
from correlator.ops import metrics
from correlator.pipeline.hub import Hub
from correlator.sinks.http.access import Access, Rules, foreign_origin
from correlator.sinks.http.connections import (
    MAX_UNANSWERED,
    SERVER,
    UNREAD_REPLY,
    Acceptor,
    Connections,
    TooMuch,
    peer_of,
    unread,
)
from correlator.sinks.http.endpoints import Appliances, HubEndpoints, InstanceEndpoints, local, of_process
from correlator.sinks.http.grants import GRANT, Denied, Need, Route, Routes, grants_of
from correlator.sinks.http.requests import (
    ACCEPTED_WITHIN,
    RETRY_AFTER,
    REVALIDATED,
    as_problem,
    file_response,
    give_up,
    json_response,
    problem,
    refused,
    server_log,
)
from correlator.sinks.streaming.limits import DEFAULT, Limits
from correlator.sinks.turns import HANDSHAKES, NEWCOMERS, Work
from correlator.tasks import set_within
from correlator.tls import default_context
from correlator.web import files

if TYPE_CHECKING:
    from aiohttp.http import StreamWriter

log = logging.getLogger(__name__)

KEPT = "public, max-age=31536000, immutable"

_HASH = re.compile(r"-[0-9a-f]{20}(?=\.\w+$)")


class Static:
    """Serves the files without a token, compressed for clients that accept it.

    Browsers keep a file whose address has the hash of its content, and revalidate the others with each request. At an
    address with another hash they get the file of this version: during an upgrade, a balancer may send the request of a
    page to a gateway of another version.

    Pages of every origin may load the browser client, which is the same everywhere: then it can say on such a page that
    the daemon refuses it, and why. What it asks for is bound by the origins that are allowed.

    `work`: bounds what clients do not read. `gateway`: the page shows the appliances of a fleet from the start, even
    before any of them has a job.
    """

    def __init__(self, work: Work, *, gateway: bool = False) -> None:
        self._work = work
        found = files(gateway=gateway)
        self._current = {path for path, file in found.items() if file.is_hashed}
        self._files = {_any_version(path): file for path, file in found.items()}

    def routes(self) -> Iterable[Route]:
        return [Route(path.replace("*", "{hash:[0-9a-f]{20}}"), self.file, Need.HOST) for path in self._files]

    async def file(self, request: web.Request) -> web.Response:
        self._work.open_replies.check(request.remote or "")
        path = local(request.path)
        found = self._files[_any_version(path)]
        response = file_response(request, found, KEPT if path in self._current else REVALIDATED)
        if found.is_for_others:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        return response


def _any_version(path: str) -> str:
    """The path with ``-*`` in place of the hash of the page's script, which is sent at its address of any version.

    Other scripts belong to the page of one version: an open page of another one must not load them.
    """
    return _HASH.sub("-*", path) if path.startswith("/page-") else path


# -- the listener


TICKET_PATH = "/api/v1/ticket"

EXPIRED_WITHIN = 1.0
"""Seconds between two checks whether grants have expired."""

PREFLIGHT_SECONDS = "600"
"""Seconds for which a browser need not ask again whether a request of another origin is allowed. Chromium's limit is
7,200; a change of `http.allowed_origins` takes effect for what a browser has asked within this time."""

PART = 96 << 10
"""Bytes of a larger reply that are written at once, and must be accepted within `Listener.accepted_within`."""

OPEN_PART = UNREAD_REPLY
"""The same for a reply that needs no token."""

FULL = (HTTPStatus.SERVICE_UNAVAILABLE, "the limit of connections is reached: repeat the request later", RETRY_AFTER)
"""The answer on a connection beyond the limit."""

LONG_HEADERS = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"the lines of a request have at most {MAX_UNANSWERED >> 10} kB: send shorter headers",
)
LONG_BODY = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    f"a request and what follows it have at most {MAX_UNANSWERED >> 10} kB until it is answered: send no body",
)
"""The answers to more than that."""

MANY_OF_ADDRESS = (HTTPStatus.TOO_MANY_REQUESTS, "too many long requests of this address: repeat it later", RETRY_AFTER)
MANY_REQUESTS = (HTTPStatus.SERVICE_UNAVAILABLE, "too many long requests: repeat it later", RETRY_AFTER)
"""The answers where requests take too much memory together."""

HEADERS = CIMultiDict(
    {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    }
)
"""Those of every response, besides Server. One multidict extends another in a fifth of the time of a dict."""

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Those of TLS 1.2: with forward secrecy and authenticated encryption. TLS 1.3 has no others."""


@dataclass(frozen=True, slots=True)
class Listener:
    """The address to listen on. `port` 0: any free port. `tls`: serve HTTPS.

    `request_within`: seconds that a connection may be open without a complete request, whether its headers are slow or
    it is idle. aiohttp's own default is an hour; proxies keep their connections for 60 s. `accepted_within`: seconds in
    which a client must accept a part of a reply. `handshake_turn`, `full_turns`: see `Acceptor`. `newcomers`,
    `handshakes`: see `Work`.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    request_within: float = 75.0
    accepted_within: float = ACCEPTED_WITHIN
    handshake_turn: float = 0.01
    full_turns: int = 30
    newcomers: int = NEWCOMERS
    handshakes: int = HANDSHAKES


class HttpSink:
    """The HTTP sink; satisfies `correlator.sinks.Sink`.

    `unknown_id_wait`: see `FailoverStatus`. `on_ready`: called with the base URL when the listener accepts connections.
    `fleet`: the appliances of a gateway, each of which is also served below ``/i/{instance}``.
    """

    def __init__(
        self,
        listener: Listener,
        access: Access,
        *,
        unknown_id_wait: float = 3.0,
        limits: Limits = DEFAULT,
        on_ready: Callable[[str], None] = lambda _: None,
        fleet: Appliances | None = None,
    ) -> None:
        self._listener = listener
        self._access = access
        self._work = Work(newcomers=listener.newcomers, handshakes=listener.handshakes)
        self._endpoints_of = partial(
            HubEndpoints, access=access, limits=limits, work=self._work, unknown_id_wait=unknown_id_wait
        )
        self._connections = Connections(is_proxy=access.is_proxy)
        self._on_ready = on_ready
        self._fleet = fleet
        self._static = Static(self._work, gateway=fleet is not None)
        self._disconnect = asyncio.Event()

    def application(self, hub: Hub) -> web.Application:
        """Make the endpoints of a hub, and `routes`, which says what each of them needs."""
        self._instances = InstanceEndpoints(hub, self._fleet, self._endpoints_of)
        shared = [
            Route(TICKET_PATH, self._ticket, Need.JOB, method="POST"),
            *of_process(hub, lambda: [one.streams for one in self._instances.all]),
            *self._static.routes(),
        ]
        app = web.Application(middlewares=[self._answer])
        app.on_response_prepare.append(self._add_headers)
        self.routes = Routes(self._instances.routes(shared), app.router)
        return app

    async def run(self, hub: Hub) -> None:
        """Serve until cancelled.

        Raises:
            CorrelatorError: The address cannot be bound.
        """
        runner = web.AppRunner(self.application(hub), handler_cancellation=True, shutdown_timeout=2.0)
        hub.watchers["streaming"] = lambda: self._access.connections
        hub.readiness["connections"] = self._connections.describe
        metrics.CONNECTIONS.set_function(lambda: len(self._connections))
        await runner.setup()
        assert runner.server is not None
        runner.server.request_factory = partial(_request, runner.server.request_factory)
        acceptor = Acceptor(
            self._connections,
            self._work.connections,
            self._work.handshakes,
            runner.server,
            refusal=_as_bytes(problem(*FULL)),
            too_much=TooMuch(
                *(_as_bytes(problem(*answer)) for answer in (LONG_HEADERS, LONG_BODY, MANY_OF_ADDRESS, MANY_REQUESTS))
            ),
            within=self._listener.request_within,
            handshake_turn=self._listener.handshake_turn,
            full_turns=self._listener.full_turns,
            access_log=None,
            logger=server_log,
        )
        background = asyncio.gather(self._instances.run(), self._close_revoked(), self._disconnect_all())
        try:
            self._on_ready(await self._listen(acceptor))
            await background
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    for one in self._instances.all:
                        await one.close()
            background.cancel()
            acceptor.close()
            await asyncio.gather(background, return_exceptions=True)
            await runner.cleanup()

    def disconnect(self) -> None:
        """Disconnect all streaming clients, so that they connect again: their positions have become invalid."""
        self._disconnect.set()

    async def _disconnect_all(self) -> None:
        while True:
            await self._disconnect.wait()
            self._disconnect.clear()
            for one in self._instances.all:
                await one.disconnect()

    async def _close_revoked(self) -> None:
        """Close the connections whose grants have ended, until cancelled.

        That is checked when the access rules have changed, and each second while a grant may expire.
        """
        while True:
            await set_within(self._access.changed, EXPIRED_WITHIN if self._access.may_expire else None)
            self._access.changed.clear()
            for one in self._instances.all:
                for _ in one.close_revoked():
                    await asyncio.sleep(0)

    async def _listen(self, acceptor: Acceptor) -> str:
        tls = self._listener.tls
        host, port = await acceptor.listen(self._listener.host, self._listener.port, tls)
        url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("serving at %s", url)
        return url

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request in its turn, if it is admitted; every error becomes a problem.

        Its connection counts as busy until the response is complete, or waits in small buffers. It is one function:
        each costs a tenth of an answer from memory, and half a kilobyte of a websocket.
        """
        peer, request = peer_of(request), self._access.client(request)
        surplus = peer is not None and peer.surplus
        ends = surplus or request.method == hdrs.METH_CONNECT or hdrs.UPGRADE in request.headers
        if peer is not None:
            self._connections.begin(peer)
        try:
            try:
                if peer is not None:
                    self._connections.asked_by(peer, request.remote or "")
                if request.version < HttpVersion11 and hdrs.TRANSFER_ENCODING in request.headers:
                    ends = True
                    raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
                need = self.routes.need(request)
                probe = need is Need.NOTHING
                if surplus and not probe:
                    response: web.StreamResponse = problem(*FULL)
                else:
                    await (self._work.probes if probe else self._work.begin).round(request.remote or "")
                    response = await self._admitted(request, need) or await handler(request)
            except Denied as denied:
                self._access.note(denied, request.remote or "")
                response = refused(denied)
            except Exception as error:  # noqa: BLE001 - every exception becomes a response
                response = as_problem(error, request)
            if ends and not response.prepared:
                response.force_close()
            if not isinstance(response, web.Response) or response.prepared:
                return response
            body = b"" if request.method == "HEAD" else bytes(response.body or b"")  # type: ignore[arg-type]
            if len(body) > UNREAD_REPLY or unread(request):
                await self._send(request, response, body)
            return response
        finally:
            if peer is not None:
                self._connections.end(peer)

    async def _send(self, request: web.Request, response: web.Response, body: bytes) -> None:
        """Write a reply part by part, because its client may not read it. Until it has, its bytes count.

        Headers without a body have the deadline too, for which aiohttp has none: a client that asks for many, and reads
        nothing, would keep its connection for as long as it likes.

        Who has no token takes nothing from those who have: such replies are files, which all clients share, so that
        they are counted apart, and only by what waits in the transport.
        """
        if GRANT in request:
            held, part, size = self._work.replies, PART, len(body)
        else:
            held, part, size = self._work.open_replies, OPEN_PART, min(len(body), UNREAD_REPLY + OPEN_PART)
        if body:
            response.headers["Content-Length"] = str(len(body))
            response.body = None
        with held.holding(request.remote or "", size):
            try:
                writer = cast("StreamWriter", await response.prepare(request))
                for at in range(0, len(body), part):
                    await writer.write(memoryview(body)[at : at + part], drain=False)
                    if request.protocol.writing_paused:
                        async with asyncio.timeout(self._listener.accepted_within):
                            await writer.drain()
                async with asyncio.timeout(self._listener.accepted_within):
                    await response.write_eof()
            except TimeoutError:
                give_up(request)
            except ConnectionError:
                pass  # The client has gone. aiohttp would log it as an error of this program.

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that every response has, also one that is written in parts, before it is sent."""
        headers = response.headers
        headers[hdrs.SERVER] = SERVER  # instead of that of aiohttp
        headers.extend(HEADERS)
        if hdrs.CACHE_CONTROL not in headers:
            headers[hdrs.CACHE_CONTROL] = "no-store"
        if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in headers:
            headers.extend(self._access.cors(request))  # beside another Vary

    async def _admitted(self, request: web.Request, need: Need) -> web.Response | None:
        """Admit a request, or answer it. `need`: that of its route. `Websockets` checks its tokens itself.

        Raises: `Denied`.
        """
        access, probe = self._access, need is Need.NOTHING
        host_allowed = probe or access.hosts_allowed(request)
        is_preflight = request.method == "OPTIONS" and hdrs.ORIGIN in request.headers
        if host_allowed and is_preflight and access.origin_allowed(request):
            return web.Response(status=HTTPStatus.NO_CONTENT, headers={"Access-Control-Max-Age": PREFLIGHT_SECONDS})
        if probe:
            return None
        if not host_allowed:
            raise Denied("host", "this Host is not served here: add its name to http.allowed_hosts if it is yours")
        if need is Need.HOST:
            return None
        if not access.origin_allowed(request):
            raise foreign_origin(request.headers[hdrs.ORIGIN])
        is_ticket = local(request.path) == TICKET_PATH
        grant = await access.admit(request, tickets=not is_ticket)  # a ticket must not create the next
        if access.is_foreign(request, grant):
            raise Denied("origin", "a page of another site sent this request: open the address by itself")
        grant.check(need, request.match_info.get("instance"))
        request[GRANT] = grant
        return None

    async def _ticket(self, request: web.Request) -> web.Response:
        return json_response({"ticket": self._access.ticket(request[GRANT]), "expires_in": 30})


MAX_SLASHES: Final = 300
"""Slashes of a path: enough for an ID of `MAX_ID` slashes. Before anything is checked, aiohttp looks for a route, and
that takes a time that grows with the square of the number of slashes."""


def _request(make: Callable[..., web.BaseRequest], message: RawRequestMessage, *others: Any) -> web.BaseRequest:
    """Make a request of what aiohttp would answer before anything is checked, or take long to find a route for.

    It expects no `100 Continue`: nothing here needs a body. A client that waits gets its final answer, and the
    connection ends, because nobody knows whether the body follows. A path with too many slashes is one of no route.
    """
    if hdrs.EXPECT in message.headers:
        headers = message.headers.copy()
        del headers[hdrs.EXPECT]
        message = message._replace(headers=CIMultiDictProxy(headers), should_close=True)
    if message.url.raw_path.count("/") > MAX_SLASHES:
        message = message._replace(path="/-", url=URL("/-"))
    return make(message, *others)


def _as_bytes(response: web.Response) -> bytes:
    """A response that ends its connection, without aiohttp."""
    body = bytes(response.body or b"")  # type: ignore[arg-type]
    ends = {"Server": SERVER, "Cache-Control": "no-store", "Content-Length": str(len(body)), "Connection": "close"}
    head = [f"HTTP/1.1 {response.status} {response.reason}"]
    head += [f"{name}: {value}" for name, value in {**response.headers, **HEADERS, **ends}.items()]
    return "\r\n".join([*head, "", ""]).encode() + body


class ListenerConfig:
    """The settings of a listener: address, access rules and TLS context. `tls` is None for plain HTTP.

    Raises:
        CorrelatorError: The token file or the certificate cannot be used.
    """

    def __init__(self, config: Config, *, gateway: bool = False) -> None:
        self._http = config.http
        self._is_gateway = gateway
        self.access = Access(listen_host=config.http.listen.host, clock=time.monotonic)
        self.tls: ssl.SSLContext | None = None
        if config.http.tls_cert is not None:
            self.tls = default_context(ssl.Purpose.CLIENT_AUTH)
            self.tls.set_ciphers(CIPHERS)
        self.prepare(config)()

    def sink(self, on_ready: Callable[[str], None], fleet: Appliances | None = None) -> HttpSink:
        """Build the HTTP sink. For the arguments see there."""
        http = self._http
        return HttpSink(
            Listener(http.listen.host, http.listen.port, self.tls),
            self.access,
            limits=Limits(max_subscriptions=http.max_subscriptions),
            unknown_id_wait=http.unknown_id_wait,
            on_ready=on_ready,
            fleet=fleet,
        )

    def prepare(self, config: Config) -> Callable[[], None]:
        """Check a new configuration and return the function that applies it; satisfies `reload.Prepare`.

        A change between http and https needs a restart.
        """
        http = config.http
        own = URL(http.public_url) if http.public_url is not None else None
        rules = Rules(
            grants=grants_of(http.read_tokens()),
            job_keys=http.job_token_keys(),
            job_token_max=http.job_token_max,
            instance=None if self._is_gateway else config.cluster.instance,
            origins=http.allowed_origins,
            own_origin=str(own.origin()) if own is not None else None,
            hosts=(*http.allowed_hosts, *([own.host] if own is not None and own.host is not None else ())),
            max_readers=http.max_readers,
            max_per_address=http.max_readers_per_address,
            proxies=http.trusted_proxies,
        )
        chain = _Chain(http.tls_cert, http.tls_key) if self.tls is not None and http.tls_cert is not None else None
        if chain is not None:
            try:
                chain.load(default_context(ssl.Purpose.CLIENT_AUTH))
            except (OSError, ssl.SSLError) as error:
                why = error.strerror or error
                raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be used: {why}") from error

        def apply() -> None:
            if self.tls is not None and chain is not None:
                chain.load(self.tls)
            self.access.change(rules)

        return apply


class _Chain:
    """A certificate and its key, read once: a renewal writes the files one after the other."""

    def __init__(self, cert: Path, key: Path | None) -> None:
        self._paths = [path for path in (cert, key) if path is not None]
        try:
            self._read = [path.read_bytes() for path in self._paths]
        except OSError as error:
            raise CorrelatorError(f"http.tls_cert, http.tls_key: cannot be read: {error.strerror or error}") from error

    def load(self, context: ssl.SSLContext) -> None:
        """Load both into `context`.

        OpenSSL accepts only files: these are in memory, because a gateway may write nowhere, and because a key should
        not reach a disk.

        Raises:
            ssl.SSLError: The certificate or the key is invalid, or they do not belong together.
            OSError: The files in memory cannot be made.
        """
        with contextlib.ExitStack() as files:
            context.load_cert_chain(*(files.enter_context(_in_memory(content)) for content in self._read))


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file with this content that exists in memory, for this process, while the block runs."""
    with os.fdopen(os.memfd_create("correlator-tls"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"
