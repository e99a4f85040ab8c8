"""Errors as ``application/problem+json`` (RFC 9457): what was wrong with a request, in words its sender can use."""

from __future__ import annotations

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from correlator.errors import BadRequest, NotFound, SourceUnavailable
from correlator.jobs import wire

log = logging.getLogger(__name__)

RETRY_AFTER = {"Retry-After": "2"}


class _NoHttp(logging.Filter):
    """Passes over what a client sent that is no HTTP: it has had its 400; its bytes may be many, and hold a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


server_log = logging.getLogger("correlator.server")
"""Where aiohttp's server logs: it would log each malformed request at level ERROR, with its bytes and a traceback."""
server_log.addFilter(_NoHttp())


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """The response; its type is ``about:blank``, as the status says it all."""
    return web.Response(
        status=status,
        body=wire.encode(
            {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
        ),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem. A mistake of ours is logged, and says no more than that."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return problem(error.status, _words(error, request), allow)
    except Exception as error:  # noqa: BLE001 - whatever it is becomes an answer
        return _answer(error, request)


def _answer(error: Exception, request: web.Request) -> web.Response:
    match error:
        case BadRequest():
            return problem(HTTPStatus.BAD_REQUEST, str(error))
        case NotFound():
            return problem(HTTPStatus.NOT_FOUND, str(error))
        case SourceUnavailable():
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the database is away: {error}", RETRY_AFTER)
        case ConnectionError() if request.transport is None or request.transport.is_closing():
            return problem(HTTPStatus.BAD_REQUEST, "whoever asked has left")  # which nobody reads any more
        case _:
            log.error("a request failed", exc_info=error, extra={"path": request.path})
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a mistake in the correlator; its log says more")


def _words(error: web.HTTPException, request: web.Request) -> str:
    if error.status == HTTPStatus.NOT_FOUND:
        return f"there is nothing at {request.path}"
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} is not possible at {request.path}"
    return error.text or error.reason
