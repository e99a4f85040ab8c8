"""The endpoints of one hub (REST, websocket, event stream, readiness), and of the process (metrics, descriptions).

`openapi.ENDPOINTS` describes each of them; handlers of REST are in `rest`.

A gateway serves the hub of the whole fleet, and below ``/i/{instance}`` that of each appliance: the same endpoints,
made when somebody asks for one first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from http import HTTPStatus
from itertools import chain
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec.structs import replace
from prometheus_client.exposition import choose_encoder

from correlator.errors import NotFound, SourceUnavailable
from correlator.jobs import encoding
from correlator.model.parameters import NoParameters
from correlator.model.replies import InstanceHealth
from correlator.ops import metrics
from correlator.ops.event_loop import timed
from correlator.pipeline.hub import Hub
from correlator.sinks.http.access import Access
from correlator.sinks.http.failover_status import FailoverStatus
from correlator.sinks.http.grants import ANYBODY, GRANT, Grant, Need, Route
from correlator.sinks.http.requests import RETRY_AFTER, REVALIDATED, file_response, json_response, problem, read
from correlator.sinks.http.rest import Rest
from correlator.sinks.http.sse import EventStreams
from correlator.sinks.http.websocket import Websockets
from correlator.sinks.streaming.limits import Limits
from correlator.sinks.streaming.sessions import Streams
from correlator.sinks.turns import Work
from correlator.tasks import TaskGroup
from correlator.web import File


class HubEndpoints:
    """The endpoints of one hub. `run` serves its streaming clients.

    For `instance` and `streams_for` see `Websockets`, for the other arguments `HttpSink`.
    """

    def __init__(
        self,
        hub: Hub,
        access: Access,
        limits: Limits,
        work: Work,
        unknown_id_wait: float,
        *,
        instance: str | None = None,
        streams_for: Callable[[Grant], Streams] | None = None,
    ) -> None:
        self.hub = hub
        self._access = access
        self.streams = Streams(hub, limits, work)
        self._sockets = Websockets(hub, access, self.streams, instance=instance, streams_for=streams_for)
        self._events = EventStreams(hub, access, self.streams)
        rest = Rest(hub, work, access.audit)
        failover = FailoverStatus(hub, work, unknown_id_wait=unknown_id_wait)
        answers: tuple[tuple[str, Handler, Need], ...] = (
            # First: aiohttp tries these in order, and most requests are for it.
            ("/api/v1/jobs/{id:[^/]+}", rest.job, Need.JOB),
            ("/api/v1/jobs", rest.jobs, Need.READ),
            ("/api/v1/events", rest.find_events, Need.READ),
            ("/api/v1/job", rest.job, Need.JOB),
            ("/api/v1/job/events", rest.events, Need.JOB),
            ("/api/v1/job/log", rest.log, Need.JOB),
            ("/api/v1/jobs/{id:(?s:.+)}/events", rest.events, Need.JOB),
            ("/api/v1/jobs/{id:(?s:.+)}/log", rest.log, Need.JOB),
            ("/api/v1/job/why", rest.why, Need.READ),
            ("/api/v1/jobs/{id:(?s:.+)}/why", rest.why, Need.READ),
            ("/api/v1/jobs/{id:(?s:.+)}", rest.job, Need.JOB),
            ("/api/v1/resolve/{id:(?s:.+)}", rest.resolve, Need.JOB),
            ("/api/v1/entities/{name:(?s:.+)}", rest.entity, Need.JOB),
            ("/api/v1/failures", rest.failures, Need.READ),
            ("/api/v1/failures/{fingerprint:[^/]+}", rest.failure, Need.READ),
            ("/api/v1/operations", rest.operations, Need.READ),
            ("/api/v1/operations/{job_type:[^/]+}/{operation:(?s:.+)}", rest.operation, Need.READ),
            ("/api/v1/failover/{id:(?s:.+)}/status", failover.status, Need.JOB),
        )
        self.routes = [
            *(Route(path, self._unless_refused(handler), need) for path, handler, need in answers),
            Route("/ws", self._sockets.handle, Need.HOST, head=False),
            Route("/api/v1/stream", self._events.handle, Need.JOB, head=False),
            Route("/health/live", self._live, Need.NOTHING),
            Route("/health/ready", self._ready, Need.NOTHING),
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
        """Close the connections whose grants do not hold any more, in steps."""
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
        hub = self.hub
        parts = {name: describe() for name, describe in hub.readiness.items()}
        ready = not hub.status.loading and not hub.draining
        body = {
            "ready": ready,
            "degraded": not all(part.get("ok", True) for part in parts.values()),
            "parts": parts if self._access.may_see_names(request) else _states(parts),
        }
        return json_response(body, status=HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)


def _states(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, bool]]:
    """The parts of readiness without names, addresses and errors."""
    return {name: {"ok": part.get("ok", True)} for name, part in parts.items()}


class InstanceEndpoints:
    """The endpoints of a listener: `main` for its hub, and at a gateway those of each appliance, ``/i/{instance}``.

    A client whose grant shows only some appliances gets at `main`, too, what the hub of those has. `fleet` None: there
    is only one appliance. `make(hub)` makes the endpoints of a hub, when somebody asks for them first. `run` serves
    their streaming clients.
    """

    def __init__(self, hub: Hub, fleet: Appliances | None, make: Callable[..., HubEndpoints]) -> None:
        self._fleet = fleet
        self._make = make
        self.main = make(hub, streams_for=lambda grant: self._of_grant(grant).streams)
        self._made: dict[str | frozenset[str], HubEndpoints] = {}
        """By the name of an appliance, or by those of several."""
        self._serving: dict[HubEndpoints, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    @property
    def all(self) -> list[HubEndpoints]:
        return [self.main, *self._made.values()]

    def routes(self, shared: Sequence[Route]) -> list[Route]:
        """All endpoints: those of each hub, and those that are `shared`."""
        own, every = Route("/api/v1/instances", self.instances, Need.READ), self.main.routes
        if self._fleet is None:
            return [*every, *shared, own]
        return [
            *(replace(route, handler=self._dispatch(number, self._for_client)) for number, route in enumerate(every)),
            *(*shared, own),
            *(_below(route, self._dispatch(number, self._of)) for number, route in enumerate(every)),
            *(_below(route, self._shared(route)) for route in shared),
            Route(PREFIX, self._page, Need.HOST),
        ]

    async def run(self) -> None:
        """Serve the streaming clients until cancelled."""
        async with TaskGroup() as group:
            while True:
                self._changed.clear()
                for endpoints in self._serving.keys() - set(self.all):
                    group.create_task(self._end(endpoints, self._serving.pop(endpoints)))
                for endpoints in self.all:
                    if endpoints not in self._serving:
                        self._serving[endpoints] = group.create_task(endpoints.run())
                await self._changed.wait()

    @staticmethod
    async def _end(endpoints: HubEndpoints, serving: asyncio.Task[None]) -> None:
        """Stop serving the clients of an appliance that was removed."""
        await endpoints.disconnect()
        serving.cancel()

    async def instances(self, request: web.Request) -> web.Response:
        """The appliances that the client may see, and the health of each."""
        read(request, NoParameters)
        if self._fleet is None:
            raise NotFound("this is not a gateway: it serves one appliance")
        grant = request[GRANT]
        return json_response({"instances": [one for one in self._fleet.describe() if grant.shows(one["instance"])]})

    def _of(self, request: web.Request) -> HubEndpoints:
        """The endpoints of the appliance that the address names."""
        name = request.match_info["instance"]
        endpoints = self._endpoints(name, instance=name)
        if endpoints is None:
            raise NotFound(f"no appliance is known by {name!r}")
        return endpoints

    def _for_client(self, request: web.Request) -> HubEndpoints:
        """The endpoints of all appliances that the client may see."""
        return self._of_grant(request.get(GRANT, ANYBODY))

    def _of_grant(self, grant: Grant) -> HubEndpoints:
        if self._fleet is None or grant.instances is None:
            return self.main
        if grant.is_restricted:  # Its token names one appliance, and is not in the configuration, which has views.
            (name,) = grant.instances
            endpoints = self._endpoints(name, instance=name)
        else:
            endpoints = self._endpoints(grant.instances)
        if endpoints is None:  # It is not known yet, or a reload has changed the tokens since the request was admitted.
            raise SourceUnavailable("the appliances of this token are not known: ask again")
        return endpoints

    def _hub(self, key: str | frozenset[str]) -> Hub | None:
        if self._fleet is None:
            return None
        return self._fleet.hub_of(key) if isinstance(key, str) else self._fleet.view_of(key)

    def _endpoints(self, key: str | frozenset[str], **more: Any) -> HubEndpoints | None:
        """The endpoints of a hub, which are made anew where it is not the one of before; None without a hub.

        Those of appliances that were removed from the fleet since are dropped, or made anew if one has come back.
        """
        hub, endpoints = self._hub(key), self._made.get(key)
        if (endpoints.hub if endpoints is not None else None) is not hub:
            with contextlib.suppress(SourceUnavailable):  # While the stream is read, it is not known which have gone.
                self._made = {one: made for one, made in self._made.items() if self._hub(one) is made.hub}
            self._changed.set()
            endpoints = None
            if hub is not None:
                endpoints = self._made[key] = self._make(hub, **more)
        return endpoints

    def _dispatch(self, number: int, which: Callable[[web.Request], HubEndpoints]) -> Handler:
        """Calls the same endpoint of the hub that the request is about."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await which(request).routes[number].handler(request)

        return handle

    def _shared(self, route: Route) -> Handler:
        """Calls an endpoint that is the same for all appliances, if there is such an appliance."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self._of(request)
            return await route.handler(request)

        return handle

    async def _page(self, request: web.Request) -> web.Response:
        """The page's own address ends with a slash, so that the addresses in it are relative to the appliance.

        The redirect is relative too: a proxy may serve all this below a path that is not known here.
        """
        location = f"{request.match_info['instance']}/"
        return web.Response(status=HTTPStatus.PERMANENT_REDIRECT, headers={"Location": location})


class Appliances(Protocol):
    """The appliances of a gateway: its `Fleet`, which is in a layer above."""

    def hub_of(self, instance: str) -> Hub | None:
        """The hub of one appliance; None if there is none of that name."""

    def view_of(self, names: frozenset[str]) -> Hub | None:
        """The hub of several appliances; None if no token of the configuration is for just these."""

    def describe(self) -> list[InstanceHealth]:
        """The health of each appliance, sorted by name."""


PREFIX = "/i/{instance:[A-Za-z0-9_-]{1,64}}"


def _below(route: Route, handler: Handler) -> Route:
    return replace(route, path=PREFIX + route.path, handler=handler)


def local(path: str) -> str:
    """The path without the prefix of an appliance."""
    if not path.startswith("/i/"):
        return path
    parts = path.split("/", 3)
    return f"/{parts[3]}" if len(parts) == 4 and parts[2] else path


def of_process(hub: Hub, streams: Callable[[], list[Streams]]) -> list[Route]:
    """The endpoints that are the same below every prefix. `streams`: returns those whose clients are counted."""

    async def scraped(request: web.Request) -> web.Response:
        """The metrics of the process, as text or in the format of OpenMetrics."""
        served = streams()
        metrics.READY.set(not hub.status.loading and not hub.draining)
        metrics.DATABASE_UP.set(hub.status.database == "live")
        for transport in ("websocket", "sse"):
            metrics.CLIENTS.labels(transport).set(sum(one.clients()[transport] for one in served))
        metrics.CLIENTS_LAGGING.set(sum(one.fanout.lagging for one in served))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        with timed("metrics"):
            body = encode(metrics.REGISTRY)
        return web.Response(body=body, headers={"Content-Type": content_type})

    return [
        Route("/metrics", scraped, Need.METRICS),
        Route(OPENAPI, description, Need.READ),
        Route(ASYNCAPI, description, Need.READ),
    ]


OPENAPI = "/api/v1/openapi.json"
ASYNCAPI = "/api/v1/asyncapi.json"


async def description(request: web.Request) -> web.Response:
    """OpenAPI or AsyncAPI."""
    read(request, NoParameters)
    return file_response(request, await asyncio.to_thread(_described, local(request.path)), REVALIDATED)


@cache
def _described(path: str) -> File:
    """Made when somebody asks for it first, as it needs every type that there is."""
    from correlator.sinks.http import openapi  # noqa: PLC0415 - it imports what the daemon may not use

    found = openapi.openapi() if path == OPENAPI else openapi.asyncapi()
    return File.of(path, encoding.encode(found).decode())
