"""The HTTP listener: routes, who may come in, readiness, metrics; and how it goes down.

Order of going down: no new readers; everybody who streams or waits is told and sent away; the listener closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client.exposition import choose_encoder

from correlator import metrics
from correlator.errors import CorrelatorError
from correlator.hub import Hub
from correlator.sinks.access import Access
from correlator.sinks.compatible import Compatible
from correlator.sinks.problems import problem, problems, server_log
from correlator.sinks.rest import Rest, json_response
from correlator.sinks.specs import Specs
from correlator.sinks.sse import EventStreams
from correlator.sinks.static import Static
from correlator.sinks.stream import Streams
from correlator.sinks.websocket import Websockets

log = logging.getLogger(__name__)

TICKET_PATH = "/api/v1/ticket"

OPEN_PATHS = ("/health/live", "/health/ready")
"""Nobody is asked for a token here; a load balancer has none, nor our name."""

REQUEST_WITHIN = 75.0
"""Seconds that a connection may be open without a whole request, slow headers and idleness between requests alike.

aiohttp's own default is an hour; proxies keep their connections for 60 s.
"""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen. `port` 0 is any free one; `tls` makes it https."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class HttpSink:
    """Satisfies `correlator.sinks.Sink`. `on_ready` gets the base URL as soon as it serves."""

    def __init__(
        self,
        listener: Listener,
        access: Access,
        *,
        retention: float,
        max_subscriptions: int = 100,
        on_ready: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._listener = listener
        self._access = access
        self._retention = retention
        self._max_subscriptions = max_subscriptions
        self._on_ready = on_ready
        self._static = Static()

    async def run(self, hub: Hub) -> None:
        """Serve until cancelled. Raises `CorrelatorError` where the address cannot be listened on."""
        streams = Streams(hub)
        sockets = Websockets(hub, self._access, streams, max_subscriptions=self._max_subscriptions)
        events = EventStreams(hub, self._access, streams)
        hub.watchers["streaming"] = lambda: self._access.readers
        app = web.Application(middlewares=[self._headers, problems, self._gate])
        app.add_routes(
            [
                *Rest(hub, retention=self._retention).routes(),
                *Compatible(hub).routes(),
                web.get("/ws", sockets.handle, allow_head=False),
                web.get("/api/v1/stream", events.handle, allow_head=False),
                web.post(TICKET_PATH, self._ticket),
                web.get("/health/live", partial(self._live, hub)),
                web.get("/health/ready", partial(self._ready, hub)),
                web.get("/metrics", partial(self._metrics, hub, streams)),
                *Specs().routes(),
                *self._static.routes(),
            ]
        )
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=server_log,
            handler_cancellation=True,
            shutdown_timeout=2.0,
            keepalive_timeout=REQUEST_WITHIN,
        )
        await runner.setup()
        background = asyncio.gather(streams.run(), sockets.run())
        try:
            self._on_ready(await self._listen(runner))
            await background
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    hub.close()
                    await events.drain()
                    await sockets.drain()
            background.cancel()
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner) -> str:
        where = self._listener
        site = web.TCPSite(runner, where.host, where.port, ssl_context=where.tls, backlog=1024, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            raise CorrelatorError(
                f"http.listen: {where.host}:{where.port} cannot be listened on: {error.strerror or error}"
            ) from error
        host, port = runner.addresses[0][:2]
        url = f"{'https' if where.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("serving at %s", url)
        return url

    @web.middleware
    async def _headers(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS | self._access.cors(request))
        return response

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return self._refusal(request) or await handler(request)

    def _refusal(self, request: web.Request) -> web.Response | None:  # noqa: PLR0911 - a list of reasons
        """Why the request may not come in, if it may not. The websocket answers for itself, with close codes."""
        path, access = request.path, self._access
        host_allowed = path in OPEN_PATHS or access.host_allowed(request.headers.get("Host"))
        if host_allowed and request.method == "OPTIONS" and access.origin_listed(request.headers.get("Origin", "")):
            return web.Response(status=HTTPStatus.NO_CONTENT)
        if path in OPEN_PATHS:
            return None
        if not host_allowed:
            return problem(
                HTTPStatus.FORBIDDEN, "this Host is not served here: add its name to http.allowed_hosts if it is yours"
            )
        if path in self._static.paths or path == "/ws":
            return None
        if request.method not in ("GET", "HEAD") and not access.origin_allowed(request):
            return problem(HTTPStatus.FORBIDDEN, "this origin is not in http.allowed_origins")
        if access.authorised(request, tickets=path != TICKET_PATH):  # else one ticket would make the next, for ever
            return None
        return problem(
            HTTPStatus.UNAUTHORIZED,
            "a token is needed: Authorization: Bearer …, or a ticket of POST /api/v1/ticket",
            {"WWW-Authenticate": "Bearer"},
        )

    async def _ticket(self, request: web.Request) -> web.Response:
        del request
        return json_response({"ticket": self._access.ticket(), "expires_in": 30})

    async def _live(self, hub: Hub, request: web.Request) -> web.Response:
        del request
        stuck = {name: round(seconds, 1) for name, seconds in hub.live.stuck().items()}
        if stuck:
            return json_response({"live": False, "stuck": stuck}, status=HTTPStatus.SERVICE_UNAVAILABLE)
        return json_response({"live": True})

    async def _ready(self, hub: Hub, request: web.Request) -> web.Response:
        del request
        parts = {name: describe() for name, describe in hub.parts.items()}
        ready = hub.loading is None and not hub.draining
        body = {
            "ready": ready,
            "degraded": not all(part.get("ok", True) for part in parts.values()),
            "parts": parts,
        }
        return json_response(body, status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics(self, hub: Hub, streams: Streams, request: web.Request) -> web.Response:
        metrics.READY.set(hub.loading is None and not hub.draining)
        metrics.DATABASE_UP.set(hub.source == "live")
        for transport, count in streams.readers().items():
            metrics.READERS.labels(transport).set(count)
        metrics.READERS_LAGGING.set(streams.fanout.lagging)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))  # OpenMetrics for those who ask for it
        return web.Response(body=encode(metrics.REGISTRY), headers={"Content-Type": content_type})
