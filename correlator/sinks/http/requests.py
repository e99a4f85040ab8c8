"""What every endpoint uses: the parameters of a request, and responses.

The parameters are read into the type of the operation (`correlator.model.parameters`). A response is JSON, a problem
(RFC 9457) for each error, or a body that is written in parts. Endpoints raise; `as_problem` turns what they raise into
``application/problem+json``. The text of an internal error, or of one that may name the database's server and account,
is not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_request import BaseRequest
from msgspec import UNSET, Meta, Struct
from msgspec.structs import FieldInfo, asdict, fields

from correlator.errors import BadRequest, NotFound, SourceUnavailable, drop_frames
from correlator.jobs import encoding
from correlator.model.parameters import JobFilters
from correlator.ops import metrics
from correlator.pipeline.queries import JobQuery
from correlator.sinks.http.grants import Denied
from correlator.sinks.turns import Refused
from correlator.web import File

log = logging.getLogger(__name__)


RETRY_SECONDS = 2
"""Seconds after which a client may repeat a request that failed because of the database or of a restart."""

RETRY_AFTER = {"Retry-After": str(RETRY_SECONDS)}


REVALIDATED: Final = "no-cache"
"""Cache-Control of what a client may keep, and asks for again with its `ETag`."""


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=encoding.encode(value), content_type="application/json", status=status)


def matches(request: web.Request, etag: str) -> bool:
    """True if If-None-Match contains `etag`, by weak comparison (RFC 9110, 13.1.2).

    `etag` has its quotes, which no tag contains. So the list is not split: one of 30,000 commas took 3 ms.
    """
    given = request.headers.getall("If-None-Match", ())
    return any(tags.strip() == "*" or etag in tags for tags in given)


_GZIP: Final = re.compile(r"\bgzip\b(?! *; *q=0(?:\.0*)? *(?:,|$))")
"""In Accept-Encoding, see RFC 9110, 12.5.3."""


def file_response(request: web.Request, file: File, cache_control: str) -> web.Response:
    """A file, compressed for clients that accept it; 304 if the client has it."""
    is_compressed = bool(_GZIP.search(request.headers.get("Accept-Encoding", "")))
    etag = f'"{file.etag}-gzip"' if is_compressed else f'"{file.etag}"'
    headers = {"Cache-Control": cache_control, "ETag": etag, "Vary": "Accept-Encoding"}
    if matches(request, etag):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    if is_compressed:
        headers["Content-Encoding"] = "gzip"
    body = file.compressed if is_compressed else file.body
    charset = None if file.content_type == "application/json" else "utf-8"
    return web.Response(body=body, content_type=file.content_type, charset=charset, headers=headers)


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    """The response for an error. Its `type` is ``about:blank``, as the status identifies the problem."""
    return web.Response(
        status=status,
        body=encoding.encode(
            {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
        ),
        content_type="application/problem+json",
        headers=headers,
    )


def refused(denied: Denied) -> web.Response:
    """The response for a request that is not admitted."""
    headers = {
        HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
        HTTPStatus.TOO_MANY_REQUESTS: RETRY_AFTER,
    }
    return problem(denied.status, str(denied), headers.get(denied.status))


def as_problem(error: Exception, request: web.Request) -> web.Response:  # noqa: PLR0911 - a list of errors
    """The response for what a handler raised. An internal error is logged, and its text is not sent.

    Raises:
        web.HTTPException: It is no error: a redirection, which is a response itself.
    """
    match error:
        case web.HTTPException():
            if error.status < HTTPStatus.BAD_REQUEST:
                raise error
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            drop_frames(error)  # They refer to the request, whose route refers to the error.
            return problem(error.status, _words(error, request), allow)
        case BadRequest():
            return problem(HTTPStatus.BAD_REQUEST, str(error))
        case NotFound():
            return problem(HTTPStatus.NOT_FOUND, str(error))
        case Refused():
            status = HTTPStatus.SERVICE_UNAVAILABLE if error.all_clients else HTTPStatus.TOO_MANY_REQUESTS
            return problem(status, str(error), RETRY_AFTER)
        case SourceUnavailable():  # its text may name the server and the account
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, error.public, RETRY_AFTER)
        case ConnectionError() if request.transport is None or request.transport.is_closing():
            return problem(HTTPStatus.BAD_REQUEST, "the client has disconnected")  # never read
        case _:
            log.error("a request failed", exc_info=error, extra={"path": request.path})
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error. See the daemon's log.")


def _words(error: web.HTTPException, request: web.Request) -> str:
    if error.status == HTTPStatus.NOT_FOUND:
        return f"there is nothing at {request.path}"
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} is not possible at {request.path}: expected {error.headers['Allow']}"
    return error.text or error.reason


ACCEPTED_WITHIN: Final = 60.0
"""Seconds in which a client must accept what has been written for it."""


def give_up(request: BaseRequest | None) -> None:
    """Abort the connection of a client that does not read its answer."""
    metrics.CLIENTS_CLOSED.labels("slow").inc()
    if request is not None and request.transport is not None:
        request.transport.abort()


class StreamedResponse(web.StreamResponse):
    """A response in parts that leaves its connection in sync, whatever the request is.

    aiohttp writes the parts even if the response must not have a body (RFC 9110, 6.4.1): the client, or the proxy that
    shares the connection between its clients, takes them for the next response. And it keeps a connection of HTTP/1.0
    open whose client can find the end of the body only by the end of the connection. Nor has it a deadline: a client
    that reads nothing would keep its connection, and what its request holds, for as long as it likes.
    """

    accepted_within: float = ACCEPTED_WITHIN
    """Seconds in which the client must accept a part, and the end. After that, its connection is aborted."""

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
            async with self._accepted():
                await super().write(data)

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body, and wait until the transport has room."""
        async with self._accepted():
            await super().write_eof(data)

    @contextlib.asynccontextmanager
    async def _accepted(self) -> AsyncIterator[None]:
        """Raises: ConnectionError if the client accepts too little in time; its connection has been aborted."""
        try:
            async with asyncio.timeout(self.accepted_within):
                yield
        except TimeoutError:
            give_up(self._req)
            raise ConnectionError("the client does not read the answer") from None


_WITHOUT_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class _NoHttp(logging.Filter):
    """Drops records of malformed requests. The client has got 400, and the bytes may be many and contain a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


server_log = logging.getLogger("correlator.server")
"""The logger of aiohttp's server, which logs each malformed request at ERROR with its bytes and a traceback."""
server_log.addFilter(_NoHttp())


# -- parameters


T = TypeVar("T", bound=Struct)

MAX_SHOWN = 100
"""Characters of a wrong value that its error repeats at most."""


def read(request: web.Request, kind: type[T]) -> T:
    """The parameters in the path and in the query of a request.

    Raises:
        BadRequest: A parameter is missing, is not known (a typo is an error, not an empty result), has a wrong value,
            or is given several times and has one value.
    """
    (members, required), query, path = _members(kind), request.query, request.match_info
    in_path = [name for name in required if name in path]
    found: dict[str, Any] = {name: path[name] for name in in_path}
    for name in dict.fromkeys(query):
        if name in in_path or (name not in members and name != "ticket"):
            known = ", ".join(sorted(members.keys() - in_path)) or "none"
            raise BadRequest(f"there is no query parameter {name!r} here; known: {known}")
        values = query.getall(name)
        default = members[name].default if name in members else None
        if isinstance(default, frozenset):
            found[name] = [value for text in values for value in text.split(",") if value]
        elif isinstance(default, tuple):
            found[name] = values
        elif len(values) > 1:
            raise BadRequest(f"{name}: given {len(values)} times; give it once")
        elif name in members:
            found[name] = values[0]
    try:
        return msgspec.convert(found, kind, strict=False, dec_hook=lambda own, text: own(text))
    except msgspec.ValidationError:
        raise BadRequest(_wrong(members, found)) from None


def job_query(parameters: JobFilters, **others: Any) -> JobQuery:
    """The query with the members that both have, and with `others`."""
    shared = {name: value for name, value in asdict(parameters).items() if name in JobQuery.__struct_fields__}
    return JobQuery(**shared | others)


@lru_cache
def _members(kind: type[Struct]) -> tuple[Mapping[str, FieldInfo], tuple[str, ...]]:
    """The members by the names of their parameters, and the names of those that are required."""
    members = {member.encode_name: member for member in fields(kind)}
    return members, tuple(name for name, member in members.items() if member.required)


def _wrong(members: Mapping[str, FieldInfo], found: Mapping[str, Any]) -> str:
    """Which of the parameters that were found is wrong, and what would be right."""
    for name, member in members.items():
        value, parts = found.get(name, UNSET), list(_parts(member.type))
        if _fits(value, member.type) if value is not UNSET else not member.required:
            continue
        if value is UNSET:
            return f"{name}: is required, and is not given"
        if isinstance(value, list):
            if not value:
                return f"{name}: expected a value; leave it out for all"
            value = next((one for one in value if not _fits([one], member.type)), value)
        if isinstance(value, list):
            most = max(part.max_length or 0 for part in parts if isinstance(part, Meta))
            return f"{name}: expected at most {most} values"
        shown = f"{name}={value!r}" if isinstance(value, str) and len(value) <= MAX_SHOWN else name
        return f"{shown}: expected {next(filter(None, map(_expected, parts)))}"
    raise AssertionError(found)


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=False, dec_hook=lambda own, text: own(text))
    except msgspec.ValidationError:
        return False
    return True


def _parts(kind: Any) -> Iterator[Any]:
    """The types and constraints that a type consists of; those of the values of a list before those of the list."""
    yield kind
    for inner in get_args(kind):
        yield from _parts(inner)


def _expected(part: Any) -> str | None:
    match part:
        case Meta(extra={"expected": str(words)}):
            return words
        case Meta(ge=int(low), le=int(high)):
            return f"a number from {low} to {high}"
        case Meta(max_length=int(most)):
            return f"at most {most} characters"
    return f"one of {', '.join(get_args(part))}" if get_origin(part) is Literal else None
