"""The page and its files, served from memory. Only files of the package are served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from http import HTTPStatus
from importlib import resources

from aiohttp import web

import correlator.web
from correlator.sinks.http.endpoints import local
from correlator.sinks.http.responses import matches


def mark_gateway(page: bytes) -> bytes:
    """Return the page with a mark by which its scripts know that a gateway serves it, before any request."""
    return page.replace(b'<html lang="en">', b'<html lang="en" data-fleet>', 1)


class Static:
    """Serves the files without a token. Browsers revalidate them with each request (`no-cache`, ETag).

    `gateway`: the page shows the appliances of a fleet from the start, even before any of them has a job.
    """

    def __init__(self, *, gateway: bool = False) -> None:
        root = resources.files(correlator.web)
        self._files: dict[str, tuple[bytes, str, str]] = {}
        for path, (name, kind) in correlator.web.files().items():
            body = root.joinpath(name).read_bytes()
            if gateway and path == "/":
                body = mark_gateway(body)
            self._files[path] = body, kind, f'"{hashlib.sha256(body).hexdigest()[:20]}"'

    @property
    def paths(self) -> Iterable[str]:
        return self._files.keys()

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.get(path, self.file) for path in self._files]

    async def file(self, request: web.Request) -> web.Response:
        body, kind, etag = self._files[local(request.path)]
        headers = {"Cache-Control": "no-cache", "ETag": etag}
        if matches(request, etag):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)
