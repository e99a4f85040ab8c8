"""Everything that the listener serves of one hub: REST, websocket, event stream, readiness and metrics.

A gateway has a surface for all appliances, and one for each that clients ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import wraps
from http import HTTPStatus
from itertools import chain

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client.exposition import choose_encoder

from correlator.ops import metrics
from correlator.ops.stalls import timed
from correlator.pipeline.hub import Hub
from correlator.sinks.http.access import Access
from correlator.sinks.http.compatible import Compatible
from correlator.sinks.http.entities import Entities
from correlator.sinks.http.operations import Operations
from correlator.sinks.http.problems import RETRY_AFTER, problem
from correlator.sinks.http.rest import Rest, json_response
from correlator.sinks.http.sse import EventStreams
from correlator.sinks.http.websocket import Websockets
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.turns import Work


class Surface:
    """The endpoints of one hub. `run` serves its streaming clients. For the other arguments see `HttpSink`."""

    def __init__(
        self, hub: Hub, access: Access, limits: Limits, work: Work, *, max_subscriptions: int, unknown_id_wait: float
    ) -> None:
        self.hub = hub
        self.streams = Streams(hub, limits, work)
        self._sockets = Websockets(hub, access, self.streams, max_subscriptions=max_subscriptions)
        self._events = EventStreams(hub, access, self.streams)
        rest = [
            *Rest(hub, work).routes(),
            *Operations(hub).routes(),
            *Entities(hub, work).routes(),
            *Compatible(hub, work, unknown_id_wait=unknown_id_wait).routes(),
        ]
        self.routes: list[web.RouteDef] = [
            *(web.RouteDef(r.method, r.path, self._unless_refused(r.handler), r.kwargs) for r in rest),
            web.get("/ws", self._sockets.handle, allow_head=False),
            web.get("/api/v1/stream", self._events.handle, allow_head=False),
            web.get("/health/live", self._live),
            web.get("/health/ready", self._ready),
        ]
        """The same ones, in the same order, for every hub."""

    async def run(self) -> None:
        """Serve the streaming clients until cancelled."""
        await asyncio.gather(self.streams.run(), self._sockets.run())

    async def close(self) -> None:
        """Disconnect the clients, so that they connect again, and end what waits: the process stops."""
        self.hub.close()
        await self.disconnect()

    async def disconnect(self) -> None:
        """Send `bye` to all clients, so that they connect again."""
        await self._events.drain()
        await self._sockets.drain()

    def close_revoked(self) -> Iterator[None]:
        """Close the connections of revoked tokens, in steps."""
        return chain(self._sockets.close_revoked(), self._events.close_revoked())

    def _unless_refused(self, handler: Handler) -> Handler:
        """Return what calls `handler`, or says that clients are not served: no job here does not mean that none is."""

        @wraps(handler)
        async def handle(request: web.Request) -> web.StreamResponse:
            if (why := self.hub.refusal()) is not None:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, why, RETRY_AFTER)
            return await handler(request)

        return handle

    async def _live(self, request: web.Request) -> web.Response:
        del request
        stuck = {name: round(seconds, 1) for name, seconds in self.hub.live.stuck().items()}
        if stuck:
            return json_response({"live": False, "stuck": stuck}, status=HTTPStatus.SERVICE_UNAVAILABLE)
        return json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        del request
        hub = self.hub
        parts = {name: describe() for name, describe in hub.readiness.items()}
        ready = not hub.status.loading and not hub.draining
        body = {
            "ready": ready,
            "degraded": not all(part.get("ok", True) for part in parts.values()),
            "parts": parts,
        }
        return json_response(body, status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)


class Metrics:
    """The endpoint /metrics. `streams`: returns those whose clients are counted; `hub`: the one of the process."""

    def __init__(self, hub: Hub, streams: Callable[[], list[Streams]]) -> None:
        self._hub = hub
        self._streams = streams

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/metrics", self.metrics)]

    async def metrics(self, request: web.Request) -> web.Response:
        """The metrics of the process, as text or in the format of OpenMetrics."""
        hub, streams = self._hub, self._streams()
        metrics.READY.set(not hub.status.loading and not hub.draining)
        metrics.DATABASE_UP.set(hub.status.database == "live")
        for transport in ("websocket", "sse"):
            metrics.CLIENTS.labels(transport).set(sum(one.clients()[transport] for one in streams))
        metrics.CLIENTS_LAGGING.set(sum(one.fanout.lagging for one in streams))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        with timed("metrics"):
            body = encode(metrics.REGISTRY)
        return web.Response(body=body, headers={"Content-Type": content_type})
