"""OpenAPI and AsyncAPI, generated from the types of the code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from correlator.jobs import job_document
from correlator.model.parameters import NoParameters
from correlator.sinks.http.parameters import read

OPENAPI = "/api/v1/openapi.json"
ASYNCAPI = "/api/v1/asyncapi.json"


class Specs:
    """The two endpoints. A document is made when somebody asks for it first, as it needs every type that there is."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.get(path, self.document) for path in (OPENAPI, ASYNCAPI)]

    async def document(self, request: web.Request) -> web.Response:
        read(request, NoParameters)
        path = request.path
        if path not in self._bodies:
            self._bodies[path] = await asyncio.to_thread(_made, path)
        headers = {"Cache-Control": "no-cache"}
        return web.Response(body=self._bodies[path], content_type="application/json", headers=headers)


def _made(path: str) -> bytes:
    from correlator.sinks.http.openapi import specs  # noqa: PLC0415 - it imports what the daemon may not use

    return job_document.encode(specs.openapi() if path == OPENAPI else specs.asyncapi())
