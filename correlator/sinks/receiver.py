"""A receiver by HTTP, of events or of traces: one request, bounded in time, in bytes and in the addresses it may go to.

Redirects are not followed, cookies and proxies are not used, and of a response only its status, Retry-After and its
beginning are read. The name of the receiver is resolved in a thread of this session: a name server that does not answer
blocks neither the event loop nor the threads that others use. Which addresses are allowed is decided for the address of
each connection, not for a name.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import email.utils
import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from enum import Enum
from http import HTTPStatus
from typing import Any, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from msgspec import Struct
from yarl import URL

from correlator import __version__
from correlator.config.schema import Tls, client_context
from correlator.errors import ConfigError, drop_frames
from correlator.ops.logs import escape

MAX_RESPONSE = 65_536
"""Bytes of the body of a response after which no more is read."""


READ_WITHIN = 1.0
"""Seconds to read them."""


MAX_ANSWER = 4 * MAX_RESPONSE
"""Bytes of an answer with its headers, and with informational ones before it, after which the connection is closed."""


TOO_LONG = f"the receiver's answer has more than {MAX_ANSWER} bytes"


AT_ONCE, BUFFER = 4_096, 65_536
"""Bytes that are parsed before other tasks run; those that the kernel keeps."""


MAX_REASON = 300
"""Maximum characters of a reason that the receiver, or a library, gives."""


KEEP_ALIVE = 2.0
"""Seconds that an idle connection is kept. A longer time would meet servers that close it at that moment."""


class Verdict(Enum):
    """What a response means for the request and for the receiver."""

    ACCEPTED = "delivered"
    REFUSED = "refused"
    """The receiver answers and does not accept this request."""
    AWAY = "away"
    """The receiver accepts no requests at the moment: send the same one again after a pause."""
    GONE = "gone"
    """The receiver accepts no request until an operator has changed something."""


class Response(Struct, frozen=True):
    """How a request ended. `status` None: there was no response. `error`: why it failed; empty on success.

    `public`: the same without names, addresses and what the receiver sent, for readiness, which needs no token.
    `body`: its beginning. `retry_after`: the seconds that the receiver asked to wait.
    """

    status: int | None
    error: str = ""
    public: str = ""
    body: bytes = b""
    retry_after: float = 0.0

    def verdict(self, verdicts: Mapping[int, Verdict], otherwise: Verdict) -> Verdict:
        """Judge by the status. `verdicts`: of those that are no success; `otherwise`: of those that it has not."""
        if self.status is None:
            return Verdict.AWAY
        return Verdict.ACCEPTED if 200 <= self.status < 300 else verdicts.get(self.status, otherwise)


class Receiver(Struct, frozen=True):
    """Where requests are sent. Its URL and headers may hold secrets. `timeout`: seconds until a response begins."""

    url: URL
    headers: Mapping[str, str]
    context: ssl.SSLContext | None
    timeout: float

    def __repr__(self) -> str:
        return "Receiver(***)"

    async def post(self, session: aiohttp.ClientSession, body: bytes, headers: Mapping[str, str] = {}) -> Response:
        """Send one request and return how it ended, after `timeout` and `READ_WITHIN` at most. `headers`: more of them.

        A response whose body is slow or broken is a response: the same request again might be stored twice.
        """
        refused: list[str] = []
        _refused.set(refused)
        try:
            async with asyncio.timeout(self.timeout):
                response = await session.post(
                    self.url,
                    data=body,
                    headers={**self.headers, **headers},
                    ssl=self.context or True,
                    allow_redirects=False,
                )
        except TimeoutError:
            words = f"no response within {self.timeout:g} s"
            return Response(None, words, words)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failed = Response(None, *describe_error(error, refused))
            drop_frames(error)  # They refer to the request, which has the error.
            return failed
        try:
            return await _read(response)
        finally:
            response.close()  # Without effect if the whole response has been read: its connection is used again.


def open_session(*, allow_private: bool | None = None) -> aiohttp.ClientSession:
    """Return a session for one receiver. `allow_private`: see `refusal`; None: it may have any address."""
    factory = functools.partial(guarded_socket, allow_private=allow_private)
    return aiohttp.ClientSession(
        connector=_Connector(resolver=_Resolver(), socket_factory=factory, keepalive_timeout=KEEP_ALIVE),
        headers={"User-Agent": f"correlator/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        trust_env=False,
    )


def tls_context(settings: Tls | None, key: str) -> ssl.SSLContext:
    """Return the TLS context for `settings`, the value of `key`. Reads files. Raises: `ConfigError`."""
    try:
        return client_context(settings)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"{key}: a file cannot be used: {error.strerror or error}"]) from error


async def _read(response: aiohttp.ClientResponse) -> Response:
    status, body = response.status, b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError):
        async with asyncio.timeout(READ_WITHIN):
            async for part in response.content.iter_any():
                body += part
                if len(body) > MAX_RESPONSE:
                    break
    if 200 <= status < 300:
        return Response(status, body=body)
    known = HTTPStatus(status).phrase if status in _STATUSES else ""
    error = f"HTTP {status} {known}".rstrip() + (", and redirects are not followed" if 300 <= status < 400 else "")
    return Response(status, error, error, body, retry_after(response.headers.get("Retry-After", ""), time.time()))


_STATUSES = frozenset(HTTPStatus)


def retry_after(text: str, now: float) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), 0 without a valid one. `now`: Unix seconds."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def describe_error(error: BaseException, refused: Sequence[str] = ()) -> tuple[str, str]:
    """Return why a request failed: on one line and without the path of the URL, and as `Response.public` says it.

    `refused`: why addresses of the receiver may not be connected to.
    """
    public = "the connection to the receiver failed"
    match error:
        case aiohttp.ClientConnectorDNSError():
            words = f"the name {error.host} cannot be resolved: {error.os_error.strerror or error.os_error}"
            public = "the receiver's name cannot be resolved"
        case aiohttp.ClientConnectorCertificateError():
            words = f"the certificate is not accepted: {error.certificate_error}"
            public = "the receiver's certificate is not accepted"
        case aiohttp.ClientConnectorError():
            words, public = str(error.os_error), "the receiver cannot be reached"
            if refused:
                public += ": it has an address that is not allowed"
                public += " (allow_private)" * any("allow_private" in why for why in refused)
        case aiohttp.ServerDisconnectedError():
            words = "the receiver closed the connection without a response"
        case aiohttp.ClientResponseError() | aiohttp.InvalidURL():
            words = "the receiver's response is not HTTP"
        case aiohttp.ClientOSError():
            why = TOO_LONG if TOO_LONG in error.args else error.__cause__
            words = f"the connection was lost: {why}" if why else "the connection was lost"
        case aiohttp.ClientError():  # Their texts, and those of the cases above, may contain the URL.
            words = type(error).__name__
        case _:
            words = str(error)
    return escape(words or type(error).__name__)[:MAX_REASON], f"{public}; the daemon's log says more"


class _Resolver(AbstractResolver):
    """Resolves names in a daemon thread of its own. aiohttp sends one query for a name at a time: one thread exists."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises: OSError."""
        result: concurrent.futures.Future[list[Any]] = concurrent.futures.Future()
        result.set_running_or_notify_cancel()  # A request may be cancelled, its query is not.

        def work() -> None:
            try:
                result.set_result(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except UnicodeError:
                result.set_exception(OSError(None, "it is no valid host name"))
            except OSError as error:
                result.set_exception(error)

        threading.Thread(target=work, name="receiver-resolver", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in await asyncio.wrap_future(result)
        ]

    async def close(self) -> None:
        """Nothing is open; a thread ends by itself."""


# -- addresses that may be connected to


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses that a gateway translates to the IPv4 address in their last 32 bits (RFC 6052)."""


_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7"),
    )
)
"""Loopback, private networks (RFC 1918, RFC 4193), and addresses behind a carrier's NAT (RFC 6598)."""


_UNICAST = ipaddress.ip_network("2000::/3")
"""The IPv6 addresses that are assigned for the Internet. Every other one is special, or reserved."""


_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
"""Special ranges among the others: the registries of RFC 6890, of which Python's versions have different parts."""


_METADATA = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("168.63.129.16/32", "100.100.100.200/32"),  # Azure, Alibaba; most others are in 169.254.0.0/16
        *("fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128", "fd00:42::42/128"),  # AWS, GCP, OCI, Scaleway
    )
)
"""Where clouds give their machines credentials and settings: public or private addresses that lead to no receiver."""


class ForbiddenAddress(OSError):
    """A connection to an address that the configuration does not allow. Nothing was sent."""


_refused: ContextVar[list[str]] = ContextVar("refused")
"""Why connections of this request were not allowed. If a name has several addresses, the error is only a text."""


class BoundedHandler(ResponseHandler):
    """A connection that parses little at once, and at most `MAX_ANSWER` bytes for one request.

    A response may be preceded by any number of informational ones (1xx), which aiohttp parses and counts nowhere. What
    arrives is counted here and not at the socket: asyncio reads that of a TLS connection, and uvloop any, by itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._left = MAX_ANSWER
        self._waiting = bytearray()
        """What has arrived and has not been parsed. It is, as soon as other tasks have run."""
        self._parsing = False
        self._too_long: ConnectionAbortedError | None = None

    def set_response_params(self, **options: Any) -> None:
        """Begin a request."""
        self._left = MAX_ANSWER
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp goes on with what it has.
            super().data_received(data)
            return
        self._left -= len(data)
        if self._left >= 0:
            self._waiting += data
            if not self._parsing:
                self._parse()
        elif self._too_long is None:
            self._too_long = ConnectionAbortedError(TOO_LONG)
            if self.transport is not None:
                self.transport.abort()

    def eof_received(self) -> None:
        self._parse_all()
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._parse_all()
        super().connection_lost(exc or self._too_long)

    def _parse(self) -> None:
        part = bytes(self._waiting[:AT_ONCE])
        del self._waiting[:AT_ONCE]
        if part and self.transport is not None:  # None: nobody reads it any more.
            super().data_received(part)
        if self._waiting:
            self._parsing = True
            self._loop.call_soon(self._parse)
        else:
            self._parsing = False

    def _parse_all(self) -> None:
        """Parse what waits: nothing follows it."""
        rest = bytes(self._waiting)
        self._waiting.clear()
        if rest and self.transport is not None and self._too_long is None:
            super().data_received(rest)


class _Connector(aiohttp.TCPConnector):
    """Its connections are bounded. aiohttp has nothing public for that: `tests/security/test_receivers.py` notices."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(BoundedHandler, loop=self._loop)  # type: ignore[assignment]


def guarded_socket(info: Any, *, allow_private: bool | None) -> socket.socket:
    """Return a socket to connect to the address of `info`, one of `getaddrinfo`. Raises: `ForbiddenAddress`."""
    family, kind, protocol, _, target = info
    if allow_private is not None and (why := refusal(target[0], allow_private=allow_private)):
        _refused.get([]).append(why)
        raise ForbiddenAddress(why)
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    return made


def refusal(text: str, *, allow_private: bool) -> str | None:
    """Return why a connection to the address `text` is not allowed, or None if it is."""
    try:
        address = _unwrapped(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return f"{text} is no IP address"
    if any(address in network for network in _METADATA):
        return f"{text} is the metadata service of a cloud, and never allowed"
    if any(address in network for network in _PRIVATE):
        return None if allow_private else f"{text} is private or loopback, and allow_private is false"
    if any(address in network for network in _NEVER) or (address.version == 6 and address not in _UNICAST):
        return f"{text} is link-local, multicast or reserved, and never allowed"
    return None


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address
