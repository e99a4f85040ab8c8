"""A response in parts, read from a raw socket: nothing of it is left in the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from correlator.sinks.http.requests import StreamedResponse
from tests.support.raw_http import connected, in_sync, response

VERSIONS = [("1.1", ()), ("1.0", ()), ("1.0", ("Connection: keep-alive",))]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def parts(request: web.Request) -> web.StreamResponse:
        streamed = StreamedResponse(status=int(request.match_info["status"]))
        await streamed.prepare(request)
        for part in (b"one ", b"two"):
            await streamed.write(part)
        await streamed.write_eof()
        return streamed

    async def after(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/after", after)
    app.router.add_get("/{status}", parts)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(("version", "headers"), VERSIONS)
@pytest.mark.parametrize("status", [200, 204, 304])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_response_in_parts_leaves_its_connection_in_sync(
    port: int, method: str, status: int, version: str, headers: tuple[str, ...]
):
    assert await in_sync(port, method, f"/{status}", *headers, version=version, after="/after") == status
    if (method, status) == ("GET", 200):
        async with connected(port) as (reader, writer):
            writer.write(f"GET /200 HTTP/{version}\r\nHost: 127.0.0.1\r\nConnection: keep-alive\r\n\r\n".encode())
            assert (await response(reader, "GET")).body == b"one two"
