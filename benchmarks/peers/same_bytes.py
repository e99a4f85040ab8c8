"""The limit of REST in aiohttp: a handler that returns bytes it has."""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop
from aiohttp import web


async def main(body: str) -> None:
    kept = body.encode()

    async def handle(request: web.Request) -> web.Response:
        del request
        return web.Response(body=kept, content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/api/v1/jobs/{id}", handle)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(**json.loads(sys.argv[1])))
