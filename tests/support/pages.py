"""Pages of a program other than ours, at an origin of their own: plain, behind Caddy, or behind Vite."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence

from aiohttp import web

from tests.support.paths import REPOSITORY
from tests.support.proxies import caddy
from tests.support.servers import Server, free_port, program

Files = Mapping[str, str | bytes]


@contextlib.asynccontextmanager
async def pages(files: Mapping[str, str]) -> AsyncIterator[str]:
    """Serve pages by their paths, and nothing else. Yields the origin, whose name is `localhost`."""

    async def answer(request: web.Request) -> web.Response:
        text = files.get(request.path)
        if text is None:
            raise web.HTTPNotFound
        return web.Response(text=text, content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://localhost:{port}"
    finally:
        await runner.cleanup()


class _Site(Server):
    """Files of a folder, and a proxy to the daemon. `rules`: what docs/gui.md shows for the proxy."""

    def __init__(self, rules: str, files: Files) -> None:
        super().__init__()
        self._rules = rules
        for path, content in files.items():
            file = self.folder / "site" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.port}"

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True


class CaddySite(_Site):
    """`rules`: lines of a Caddyfile."""

    def _prepare(self) -> Sequence[str]:
        files = f"handle {{\n\troot * {self.folder}/site\n\tfile_server\n}}"
        return caddy(self.folder, f"{self.origin} {{\n\tbind 127.0.0.1\n{self._rules}\n{files}\n}}\n")


class ViteSite(_Site):
    """`rules`: a whole `vite.config.js`. Vite itself is not asked: see vite.mjs."""

    def _prepare(self) -> Sequence[str]:
        rules = self.folder / "vite.config.mjs"
        rules.write_text(self._rules)
        script = REPOSITORY / "tests/support/vite.mjs"
        return [program("node"), str(script), str(rules), str(self.folder / "site"), str(self.port)]
