"""The form of a request to a collector and of its reply, and how much of either fits into one message.

Problem. A gateway has the jobs of the stream. What has left the stream is in the database of an appliance, which only
its collector may query. Gateways and collectors of different versions run side by side while a fleet is upgraded.

Model. A request is one message on the subject of a method, and its reply one message. Both are JSON objects with a
version, and their content is the JSON of a struct in `pipeline.rpc_messages`. A request states how many seconds its
client still waits: the collector cancels the work after them, so that nobody's request costs the database anything.

Invariants.

* A member that a side does not know is ignored, and one that is missing has its default. So a new member with a
  default needs no new version; `VERSION` changes only if an old side would misunderstand a message.
* A message has at most `MAX_BYTES`; a NATS server refuses more than 1 MiB. A page that does not fit becomes shorter,
  and its cursor says where the next one begins.

Pure: nothing here waits, or knows NATS.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from correlator.cluster.received import Unreadable, decode

T = TypeVar("T")

VERSION = 1

MAX_BYTES = 900_000
"""Most bytes of a reply."""

MAX_RESULT_BYTES = MAX_BYTES - 100
"""Most bytes of the result in a reply."""

MAX_REQUEST_BYTES = 512_000
"""Most bytes of a request. The largest names the steps of a job."""

WITHIN = 5.0
"""Seconds that a request waits for its reply at most."""


class Method(Enum):
    """What a collector answers; the value is the last token of the subject."""

    FIND = "find"
    PAGE = "page"
    LINES = "lines"
    LINES_BEFORE = "lines_before"
    IS_CONTEXT = "is_context"
    LEGACY_RECORD = "legacy_record"
    OPERATIONS = "operations"
    OPERATION = "operation"


class Code(Enum):
    """Why a collector does not answer a request. Gateways of an older version treat an unknown one as `INTERNAL`."""

    BAD_REQUEST = "bad_request"
    """The client asked for something that cannot be understood, such as a cursor of another version."""
    MALFORMED = "malformed"
    """The message itself is not one of this program, or too large."""
    UNAVAILABLE = "unavailable"
    """The database cannot be queried."""
    BUSY = "busy"
    """The collector answers as many requests as it may."""
    TIMEOUT = "timeout"
    """The request's time passed before its answer was complete."""
    UNSUPPORTED = "unsupported"
    """The collector does not know the method, or not this version of its request."""
    INTERNAL = "internal"


class RemoteError(Exception):
    """A collector did not answer a request, or not in a form that can be read. `detail` may be sent to clients."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Request(Struct, frozen=True):
    """One request. `within`: seconds that its client still waits, from the time at which the collector receives it."""

    params: Raw
    version: int = VERSION
    within: float = WITHIN


class _Failure(Struct, frozen=True):
    code: str = Code.INTERNAL.value
    detail: str = ""


class _Reply(Struct, frozen=True, omit_defaults=True):
    result: Raw = Raw()
    failure: _Failure | None = None
    version: int = VERSION


def encode_request(params: Struct, within: float) -> bytes:
    """Encode a request.

    Raises:
        RemoteError: It would be larger than `MAX_REQUEST_BYTES`.
    """
    encoded = msgspec.json.encode(Request(Raw(msgspec.json.encode(params)), within=within))
    if len(encoded) > MAX_REQUEST_BYTES:
        raise RemoteError(Code.MALFORMED, f"the request has {len(encoded)} bytes, more than {MAX_REQUEST_BYTES}")
    return encoded


def decode_request(message: bytes) -> Request:
    """Decode a request; its `within` is between 0 and `WITHIN`.

    Raises:
        RemoteError: It is malformed, or of a version that this program does not know.
    """
    request = _decode(message, Request, MAX_REQUEST_BYTES)
    if request.version != VERSION:
        detail = f"requests of version {request.version} are not known here, only version {VERSION}"
        raise RemoteError(Code.UNSUPPORTED, detail)
    return msgspec.structs.replace(request, within=min(max(0.0, request.within), WITHIN))


def decode_params(params: Raw, form: type[T]) -> T:
    """Decode the content of a request. Raises: `RemoteError` if it is malformed."""
    return _decode(params, form)


def encode_result(result: bytes) -> bytes:
    """Encode the reply with `result`, which is JSON and has at most `MAX_BYTES`."""
    return b'{"version":%d,"result":%b}' % (VERSION, result)


def encode_failure(code: Code, detail: str) -> bytes:
    """Encode the reply of a request that is not answered. `detail` must name no host, account or query."""
    return msgspec.json.encode(_Reply(failure=_Failure(code.value, detail)))


def decode_reply(message: bytes, form: type[T]) -> T:
    """Return the result of a reply.

    Raises:
        RemoteError: The collector did not answer, or its reply cannot be read.
    """
    reply = _decode(message, _Reply)
    if reply.failure is not None:
        codes = {code.value: code for code in Code}
        raise RemoteError(codes.get(reply.failure.code, Code.INTERNAL), reply.failure.detail)
    if reply.version != VERSION or not reply.result:
        raise RemoteError(Code.UNSUPPORTED, f"a reply of version {reply.version} is not known here")
    return _decode(reply.result, form)


def _decode(message: bytes | Raw, form: type[T], most: int = MAX_BYTES) -> T:
    try:
        return decode(message, form, most)
    except Unreadable as error:
        raise RemoteError(Code.MALFORMED, f"not a message of this program: {error}") from error
