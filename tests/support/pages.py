"""Pages of a program other than ours, at an origin of their own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from tests.support.servers import free_port

_KINDS = {"html": "text/html", "js": "text/javascript"}


@contextlib.asynccontextmanager
async def pages(files: Mapping[str, str], port: int | None = None) -> AsyncIterator[str]:
    """Serve texts by their paths. Yields the origin, whose name is `localhost`."""

    async def answer(request: web.Request) -> web.Response:
        text = files.get(request.path)
        if text is None:
            raise web.HTTPNotFound
        return web.Response(text=text, content_type=_KINDS[request.path.rpartition(".")[2]])

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port() if port is None else port
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://localhost:{port}"
    finally:
        await runner.cleanup()
