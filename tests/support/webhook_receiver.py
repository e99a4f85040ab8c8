"""A receiver of webhooks: records requests, and answers as the test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple, Self

from aiohttp import web

from tests.support.eventually import eventually


class Request(NamedTuple):
    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Listens on a port of its own. `statuses`: of the next responses; then 204. `silent`: it never answers."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.requested: list[Request] = []
        self.statuses: list[int] = []
        self.silent = False
        self.delay = 0.0
        self.echoes = False
        self.port = port
        self._site: asyncio.Server | None = None
        self._released = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls is not None else 'http'}://127.0.0.1:{self.port}/hook"

    @property
    def accepted(self) -> list[Request]:
        return [] if self.silent else [one for one in self.requested if one.status < 300]

    async def __aenter__(self) -> Self:
        server = web.Server(self._handle)
        self._site = await asyncio.get_running_loop().create_server(server, "127.0.0.1", self.port, ssl=self._tls)
        self._server = server
        self.port = self._site.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._site is not None
        self._released.set()
        self._site.close()
        await self._server.shutdown(1.0)

    async def requests(self, count: int) -> list[Request]:
        """Wait until `count` requests have arrived."""
        await eventually(lambda: len(self.requested) >= count)
        return self.requested

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        status = self.statuses.pop(0) if self.statuses else 204
        self.requested.append(Request(dict(request.headers), body, status))
        if self.silent:
            await self._released.wait()
        await asyncio.sleep(self.delay)
        if self.echoes:
            return web.Response(
                status=503, text=f"{request.path} {request.headers.get('Authorization')} {body.decode()}"
            )
        return web.Response(status=status, text="the receiver's words" if status >= 300 else None)
