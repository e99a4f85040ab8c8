"""A fake daemon: an HTTP server whose websockets follow scripts and whose REST replies the test gives."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

from aiohttp import WSMsgType, web

from tests.support.servers import free_port

Script = Callable[[web.WebSocketResponse], Awaitable[None]]


class FakeDaemon:
    """Each websocket runs the next of `scripts`, the last of them again and again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.scripts: list[Script] = []
        self.replies: list[web.Response] = []
        self.requests: list[web.Request] = []
        """All requests, those for a websocket included."""
        self.received: list[dict[str, Any]] = []
        """The messages that `wait_for` has read."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        app = web.Application()
        app.add_routes([web.get("/{path:.*}", self._handle)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    def reply(self, request: web.Request) -> web.Response:
        """The next of `replies`; 404 when none is left."""
        return self.replies.pop(0) if self.replies else web.Response(status=404, text="nothing here")

    async def wait_for(self, ws: web.WebSocketResponse, kind: str) -> None:
        """Read messages until one of type `kind`, or until the connection ends."""
        async for frame in ws:
            assert frame.type is WSMsgType.TEXT
            message = json.loads(frame.data)
            self.received.append(message)
            if message["type"] == kind:
                return

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path != "/ws":
            return self.reply(request)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        await script(ws)
        await ws.close()
        return ws
