"""A response whose body is written in parts: its length is not known when it begins."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

_WITHOUT_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class StreamedResponse(web.StreamResponse):
    """A response in parts that leaves its connection in sync, whatever the request is.

    aiohttp writes the parts even if the response must not have a body (RFC 9110, 6.4.1): the client, or the proxy that
    shares the connection between its clients, takes them for the next response. And it keeps a connection of HTTP/1.0
    open whose client can find the end of the body only by the end of the connection.
    """

    has_body: bool = True
    """False once the response has been prepared, if no body follows. Then `write` does nothing, so make no parts."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Send the headers."""
        self.has_body = request.method != "HEAD" and self.status not in _WITHOUT_BODY
        if self.has_body and request.version < HttpVersion11:
            self.force_close()
        return await super().prepare(request)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a part of the body, and wait until the transport has room."""
        if self.has_body:
            await super().write(data)
