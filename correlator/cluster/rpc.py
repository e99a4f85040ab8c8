"""What gateways and collectors say to each other: requests with a reply, and the IDs that clients of gateways wait for.

Problem. A gateway has the jobs of the stream. What has left the stream is in the database of an appliance, which only
its collector may query. A collector may be away, slow, or hang, and many clients may ask for what it has. Gateways and
collectors of different versions run side by side while a fleet is upgraded.

Model. A request is one message on the subject of a method, and its reply one message. Both are JSON objects with a
version. The method is the class of a question in `pipeline.queries`; the content is its JSON, or that of the answer. A
request states how many seconds its client still waits: the collector cancels the work after them, so that nobody's
request costs the database anything. A client may also ask for a job before its first row is committed. While somebody
waits for an unknown ID, a gateway publishes it every `WANT_EVERY` seconds, and the collectors query for it as often as
for their own clients during `WANTED_FOR` seconds: longer, so that a message may be 10 s late.

Invariants.

* Every request of a `Caller` has a deadline, and every failure is a `SourceUnavailable` that names the appliance. A
  collector that is not connected is known at once: the NATS server says so. One that let a request pass without any
  reply gets no other for `REST` seconds: they fail immediately. (One that is slow, but alive, replies that it is.) At
  most `MAX_CALLS` requests are on their way to one appliance; one more fails. A slow one takes no part of another's.
* A member that a side does not know is ignored, and one that is missing has its default. So a new member with a
  default needs no new version; `VERSION` changes only if an old side would misunderstand a message.
* A message has at most `MAX_BYTES`; a NATS server refuses more than 1 MiB. A page that does not fit becomes shorter,
  and its cursor says where the next one begins.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Connection, NoAnswer, NoResponder
from correlator.cluster.received import Unreadable, decode
from correlator.errors import BadRequest, SourceUnavailable
from correlator.model.document import MAX_ID

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


MAX_CALLS = 200
"""Most requests to the collector of one appliance that wait for a reply."""


REST = 2.0
"""Seconds without requests to a collector that let one pass without a reply."""


PROBE = 1.0
"""Seconds that a request waits at most for a collector that let the last one pass. One that lives replies within the
seconds of the request, if only that they have passed."""


GRACE = 0.5
"""Seconds in addition to those of a request, in which the collector may reply that they have passed."""


class Caller:
    """Sends requests to collectors. Use it in one event loop; a call may be cancelled at any point."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._clock = clock
        self._calls: Counter[str] = Counter()
        """By appliance."""
        self._silent: dict[str, float] = {}
        """For each instance that let a request pass: when it did so."""

    async def call(self, instance: str, question: Struct, form: type[T], within: float = WITHIN) -> T:
        """Return what the collector of `instance` replies within so many seconds.

        Raises:
            BadRequest: The collector cannot understand what the client asked for.
            SourceUnavailable: There is no reply, or the collector cannot answer. The message is for clients.
        """
        if (silent_at := self._silent.get(instance)) is not None:
            if self._clock() - silent_at < REST:
                raise SourceUnavailable(f"{instance}: the collector does not answer")
            within = min(within, PROBE)
        if self._calls[instance] >= MAX_CALLS:
            raise SourceUnavailable(f"{instance}: too many requests wait for its collector")
        self._calls[instance] += 1
        try:
            request = encode_request(question, within)
            subject = keys.rpc(instance, type(question).__name__)
            reply = await self._connection.request(subject, request, within=within + GRACE)
            self._silent.pop(instance, None)
            return decode_reply(reply.data, form)
        except NoResponder:
            raise SourceUnavailable(f"{instance}: no collector is connected to the cluster") from None
        except NoAnswer:
            self._silent[instance] = self._clock()
            raise SourceUnavailable(f"{instance}: the collector did not answer within {within:g} s") from None
        except ClusterUnavailable:
            raise SourceUnavailable(f"{instance}: the cluster cannot be reached") from None
        except RemoteError as error:
            if error.code is Code.BAD_REQUEST:
                raise BadRequest(error.detail) from error
            raise SourceUnavailable(f"{instance}: {error.detail}") from error
        finally:
            self._calls[instance] -= 1
            if not self._calls[instance]:
                del self._calls[instance]


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


# -- the form of a request and of its reply


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
    request = decode_part(message, Request, MAX_REQUEST_BYTES)
    if request.version != VERSION:
        detail = f"requests of version {request.version} are not known here, only version {VERSION}"
        raise RemoteError(Code.UNSUPPORTED, detail)
    return msgspec.structs.replace(request, within=min(max(0.0, request.within), WITHIN))


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
    reply = decode_part(message, _Reply)
    if reply.failure is not None:
        codes = {code.value: code for code in Code}
        raise RemoteError(codes.get(reply.failure.code, Code.INTERNAL), reply.failure.detail)
    if reply.version != VERSION or not reply.result:
        raise RemoteError(Code.UNSUPPORTED, f"a reply of version {reply.version} is not known here")
    return decode_part(reply.result, form)


def decode_part(message: bytes | Raw, form: type[T], most: int = MAX_BYTES) -> T:
    """Decode a message, or what is in one. Raises: `RemoteError` if it is malformed."""
    try:
        return decode(message, form, most)
    except Unreadable as error:
        raise RemoteError(Code.MALFORMED, f"not a message of this program: {error}") from error


# -- the IDs that clients of a gateway wait for


WANT_EVERY = 20.0
"""Seconds after which a gateway publishes an ID again that a client still waits for."""

WANTED_FOR = 30.0
"""Seconds for which a collector queries for an ID after each message. Longer than `WANT_EVERY`, as one may be late."""


MAX_WANTED_IDS = 100
"""Most IDs in one message."""


MAX_WANTED_BYTES = 128_000
"""A larger message is dropped."""


class Want(Struct, frozen=True, omit_defaults=True):
    """IDs that clients wait for. `instance`: the appliance that is asked for them; None: all."""

    ids: tuple[str, ...] = ()
    instance: str | None = None


def encode_wanted(ids: Iterable[str], instance: str | None = None) -> bytes:
    """Encode at most `MAX_WANTED_IDS` IDs."""
    return msgspec.json.encode(Want(tuple(ids)[:MAX_WANTED_IDS], instance))


def wanted_ids(message: bytes, instance: str) -> tuple[str, ...]:
    """Return the IDs of a message that `instance` is to query for. Raises: `Unreadable`."""
    want = decode(message, Want, MAX_WANTED_BYTES)
    if want.instance not in (None, instance):
        return ()
    return tuple(name for name in want.ids[:MAX_WANTED_IDS] if 0 < len(name) <= MAX_ID)
