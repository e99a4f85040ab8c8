"""A fake gateway: the fake daemon, with jobs of several appliances, their health, and `/i/<instance>/` for each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tests.support.page_server import Document, PageServer, stamp

PREFIX = "/i/{instance}"


def appliance(name: str, **more: Any) -> Document:
    """A row of ``GET /api/v1/instances``: an appliance that is well."""
    return {
        "instance": name,
        "online": True,
        "database": "live",
        "error": None,
        "lag_seconds": 0.0,
        "unwritten_seconds": 0.0,
        "last_seen": stamp(),
        "version": "1.2.3",
        "jobs": 1,
    } | more


class FleetServer(PageServer):
    """`instances`: the rows of ``GET /api/v1/instances``."""

    def __init__(self, *instances: Document, **options: Any) -> None:
        super().__init__(gateway=True, **options)
        self.instances = list(instances)
        self.searches: list[str] = []
        """The queries of all requests for pages of jobs."""
        self.paths: list[str] = []
        """The paths of all websockets."""

    def _routes(self) -> list[web.RouteDef]:
        routes = super()._routes()
        own = [web.RouteDef(r.method, PREFIX + r.path, r.handler, r.kwargs) for r in routes]
        return [*routes, web.get("/api/v1/instances", self._instances), *own]

    async def _instances(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"instances": self.instances})

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        self.paths.append(request.path)
        return await super()._websocket(request)

    def _wanted(self, message: Document, request: web.Request) -> Document:
        own = request.match_info.get("instance")
        return message if own is None else message | {"instance": [own]}

    def _page(self, request: web.Request) -> Document:
        self.searches.append(request.path_qs)
        page = super()._page(request)
        own = [request.match_info["instance"]] if "instance" in request.match_info else []
        wanted = own or request.query.getall("instance", [])
        return page | {"jobs": [job for job in page["jobs"] if not wanted or job.get("instance") in wanted]}


@contextlib.asynccontextmanager
async def serving_fleet(*instances: Document, token: str | None = None) -> AsyncIterator[FleetServer]:
    fake = FleetServer(*instances, token=token)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()
