"""The page and its files, served from memory. Only files of the package are served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp import web

from correlator.sinks.http.endpoints import local
from correlator.sinks.http.responses import matches
from correlator.web import files

REVALIDATED = "no-cache"
KEPT = "public, max-age=31536000, immutable"

_GZIP = re.compile(r"\bgzip\b(?! *; *q=0(?:\.0*)? *(?:,|$))")
"""In Accept-Encoding, see RFC 9110, 12.5.3."""
_HASH = re.compile(r"-[0-9a-f]{20}(?=\.\w+$)")


class Static:
    """Serves the files without a token, compressed for clients that accept it.

    Browsers keep a file whose address has the hash of its content, and revalidate the others with each request. At an
    address with another hash they get the file of this version: during an upgrade, a balancer may send the request of a
    page to a gateway of another version.

    `gateway`: the page shows the appliances of a fleet from the start, even before any of them has a job.
    """

    def __init__(self, *, gateway: bool = False) -> None:
        found = files(gateway=gateway)
        self._current = {path for path, file in found.items() if file.is_hashed}
        self._files = {_HASH.sub("-*", path): file for path, file in found.items()}
        """By path. In that of a file with a hash, ``-*`` is in its place."""

    def serves(self, path: str) -> bool:
        """True if there is a file at this path, whatever its hash."""
        return _HASH.sub("-*", path) in self._files

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.get(path.replace("*", "{hash:[0-9a-f]{20}}"), self.file) for path in self._files]

    async def file(self, request: web.Request) -> web.Response:
        path = local(request.path)
        found = self._files[_HASH.sub("-*", path)]
        is_compressed = bool(_GZIP.search(request.headers.get("Accept-Encoding", "")))
        etag = f'"{found.etag}-gzip"' if is_compressed else f'"{found.etag}"'
        headers = {
            "Cache-Control": KEPT if path in self._current else REVALIDATED,
            "ETag": etag,
            "Vary": "Accept-Encoding",
        }
        if matches(request, etag):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        if is_compressed:
            headers["Content-Encoding"] = "gzip"
        body = found.compressed if is_compressed else found.body
        return web.Response(body=body, content_type=found.content_type, charset="utf-8", headers=headers)
