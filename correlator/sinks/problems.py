"""Errors as ``application/problem+json`` (RFC 9457): what was wrong with a request, in words its sender can use."""

from __future__ import annotations

import logging
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from correlator.errors import BadRequest, NotFound, SourceUnavailable
from correlator.jobs import wire

log = logging.getLogger(__name__)

RETRY_AFTER = {"Retry-After": "2"}


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
    except BadRequest as error:
        return problem(HTTPStatus.BAD_REQUEST, str(error))
    except NotFound as error:
        return problem(HTTPStatus.NOT_FOUND, str(error))
    except SourceUnavailable as error:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the database is away: {error}", RETRY_AFTER)
    except Exception:
        log.exception("a request failed", extra={"path": request.path})
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a mistake in the correlator; its log says more")


def _words(error: web.HTTPException, request: web.Request) -> str:
    if error.status == HTTPStatus.NOT_FOUND:
        return f"there is nothing at {request.path}"
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} is not possible at {request.path}"
    return error.text or error.reason
