"""``GET /api/v1/instances``: the appliances of a fleet, and the surface of each below ``/i/{instance}``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from correlator.errors import NotFound
from correlator.model.parameters import NoParameters
from correlator.model.replies import InstanceHealth
from correlator.pipeline.hub import Hub
from correlator.sinks.http.parameters import read
from correlator.sinks.http.rest import json_response
from correlator.sinks.http.surface import Surface

PREFIX = "/i/{instance:[A-Za-z0-9_-]{1,64}}"


class Fleet(Protocol):
    """The appliances of a gateway."""

    def hub_of(self, instance: str) -> Hub | None:
        """The hub of one appliance; None if there is none of that name."""

    def describe(self) -> list[InstanceHealth]:
        """The health of each appliance, sorted by name."""


class Instances:
    """The endpoint, and a surface for each appliance that was asked for. `fleet` None: there is only one appliance.

    `make` makes a surface. `run` serves their streaming clients.
    """

    def __init__(self, fleet: Fleet | None, make: Callable[[Hub], Surface]) -> None:
        self._fleet = fleet
        self._make = make
        self._surfaces: dict[str, Surface] = {}
        self._serving: dict[Surface, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    @property
    def surfaces(self) -> list[Surface]:
        return list(self._surfaces.values())

    def routes(self, every: Sequence[web.RouteDef], shared: Iterable[web.RouteDef]) -> list[web.RouteDef]:
        """The endpoint, and all others below the prefix: `every` of a surface, `shared` by all."""
        found = [web.get("/api/v1/instances", self.instances)]
        if self._fleet is not None:
            found += [_below(route, self._dispatch(number)) for number, route in enumerate(every)]
            found += [_below(route, self._shared(route)) for route in shared]
            found.append(web.get(PREFIX, self._page))
        return found

    async def run(self) -> None:
        """Serve the streaming clients until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for surface in self._serving.keys() - set(self._surfaces.values()):
                    self._serving.pop(surface).cancel()
                for surface in self._surfaces.values():
                    if surface not in self._serving:
                        self._serving[surface] = group.create_task(surface.run())
                await self._changed.wait()

    async def instances(self, request: web.Request) -> web.Response:
        """The appliances, and the health of each."""
        read(request, NoParameters)
        if self._fleet is None:
            raise NotFound("this is not a gateway: it serves one appliance")
        return json_response({"instances": self._fleet.describe()})

    def _surface(self, request: web.Request) -> Surface:
        name = request.match_info["instance"]
        hub = self._fleet.hub_of(name) if self._fleet is not None else None
        surface = self._surfaces.get(name)
        if surface is not None and surface.hub is hub:
            return surface
        if surface is not None:  # The appliance was removed from the fleet since, and may have come back.
            del self._surfaces[name]
            self._changed.set()
        if hub is None:
            raise NotFound(f"no appliance is known by {name!r}")
        surface = self._surfaces[name] = self._make(hub)
        self._changed.set()
        return surface

    def _dispatch(self, number: int) -> Handler:
        """Calls the same endpoint of the appliance's surface."""

        async def handle(request: web.Request) -> web.StreamResponse:
            found: web.StreamResponse = await self._surface(request).routes[number].handler(request)
            return found

        return handle

    def _shared(self, route: web.RouteDef) -> Handler:
        """Calls an endpoint that is the same for all appliances, if there is such an appliance."""

        async def handle(request: web.Request) -> web.StreamResponse:
            self._surface(request)
            found: web.StreamResponse = await route.handler(request)
            return found

        return handle

    async def _page(self, request: web.Request) -> web.Response:
        """The page's own address ends with a slash, so that the addresses in it are relative to the appliance.

        The redirect is relative too: a proxy may serve all this below a path that is not known here.
        """
        location = f"{request.match_info['instance']}/"
        return web.Response(status=HTTPStatus.PERMANENT_REDIRECT, headers={"Location": location})


def _below(route: web.RouteDef, handler: Handler) -> web.RouteDef:
    return web.RouteDef(route.method, PREFIX + route.path, handler, route.kwargs)


def local(path: str) -> str:
    """The path without the prefix of an appliance."""
    if not path.startswith("/i/"):
        return path
    parts = path.split("/", 3)
    return f"/{parts[3]}" if len(parts) == 4 and parts[2] else path
