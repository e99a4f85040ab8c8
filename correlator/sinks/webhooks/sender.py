"""Sends one request to a receiver: bounded in time, in bytes and in the addresses that it may connect to.

Redirects are not followed, cookies and proxies are not used, and of a response only its status, Retry-After and a short
beginning are read. The name of the receiver is resolved in a thread of this receiver: a name server that does not
answer blocks neither the event loop nor the threads that others use. Which addresses are allowed is decided for the
address of each connection, not for a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import html
import ipaddress
import socket
import ssl
import threading
import time
from typing import Any, TypeAlias
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http import HttpProcessingError
from msgspec import Struct
from yarl import URL

from correlator import __version__
from correlator.config.tls import Tls, client_context
from correlator.config.webhooks import Webhook
from correlator.errors import ConfigError
from correlator.sinks.webhooks.request import CLOUD_EVENT, JSON, webhook_headers

MAX_RESPONSE = 2_048
"""Bytes of the body of a response that are read at most."""


READ_WITHIN = 1.0
"""Seconds to read them."""


SHORTEST, KEY, BEGINNING = 6, 16, 12
"""Characters from which on a part of a URL, and a text of a body, may be a secret; those that are searched of it."""


KEEP_ALIVE = 2.0
"""Seconds that an idle connection is kept. A longer time would meet servers that close it at that moment."""


class Attempt(Struct, frozen=True):
    """The end of an attempt. `status` None: there was no response. `error`: why it failed; empty on success.

    `public`: the same without names, addresses and what the receiver sent, for readiness, which needs no token.
    `text`: the beginning of an unsuccessful response, unless it repeats a secret. `retry_after`: the seconds that the
    receiver asked to wait.
    """

    status: int | None
    error: str = ""
    public: str = ""
    text: str = ""
    retry_after: float = 0.0


class Sender:
    """The connections to one receiver. `context`: the TLS context for its URL."""

    def __init__(self, webhook: Webhook, context: ssl.SSLContext) -> None:
        assert webhook.url is not None
        self._webhook = webhook
        self._secrets = Secrets(webhook)
        self._url = URL(webhook.url.reveal(), encoded=True)
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(),
            socket_factory=functools.partial(guarded_socket, allow_private=webhook.allow_private),
            ssl=context,
            keepalive_timeout=KEEP_ALIVE,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=MAX_RESPONSE,
            trust_env=False,
        )

    async def post(self, message_id: str, body: bytes) -> Attempt:
        """Send one request and return how it ended. Takes `Webhook.timeout` at most, and `READ_WITHIN`."""
        headers = {
            "Content-Type": JSON if self._webhook.body is not None else CLOUD_EVENT,
            "User-Agent": f"correlator/{__version__}",
            **webhook_headers(self._webhook.secret.keys, message_id, int(time.time()), body),
        }
        if self._webhook.authorization:
            headers["Authorization"] = self._webhook.authorization.reveal()
        try:
            async with asyncio.timeout(self._webhook.timeout):
                response = await self._session.post(self._url, data=body, headers=headers, allow_redirects=False)
        except TimeoutError:
            words = f"no response within {self._webhook.timeout:g} s"
            return Attempt(None, words, words)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Attempt(None, describe_error(error), f"{_public(error)}; the daemon's log says more")
        try:
            return await _answer(response, self._secrets)
        finally:
            response.close()  # Without effect if the whole response has been read: its connection is used again.

    async def close(self) -> None:
        await self._session.close()


async def _answer(response: aiohttp.ClientResponse, secrets: Secrets) -> Attempt:
    """Return what a response means. The body of a failure is read as far as it arrives within `READ_WITHIN`."""
    status = response.status
    if 200 <= status < 300:
        return Attempt(status)
    text = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError):
        async with asyncio.timeout(READ_WITHIN):
            text = await response.content.read(MAX_RESPONSE)
    error = f"HTTP {status}" + (", and redirects are not followed" if 300 <= status < 400 else "")
    shown = text.decode("utf-8", "replace")
    if secrets.are_in(shown):
        shown = "(the response repeats what was sent, and is not shown)"
    return Attempt(status, error, error, shown, _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(text: str) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), 0 without a valid one."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def tls_context(webhook: Webhook) -> ssl.SSLContext:
    """Return the TLS context for a receiver. Reads certificates from the disk. Raises: `ConfigError`."""
    try:
        return client_context(Tls(ca=webhook.ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"webhooks: {webhook.name}: ca: {webhook.ca} cannot be used: {error}"]) from error


def describe_error(error: BaseException) -> str:
    """Return why an attempt failed, without the path of the URL."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            words = f"the name {error.host} cannot be resolved: {error.os_error.strerror or error.os_error}"
        case aiohttp.ClientConnectorCertificateError():
            words = f"the certificate is not accepted: {error.certificate_error}"
        case aiohttp.ClientConnectorError():
            words = str(error.os_error)
        case aiohttp.ServerDisconnectedError():
            words = "the receiver closed the connection without a response"
        case aiohttp.ClientResponseError() | aiohttp.InvalidURL():  # Their texts contain the URL.
            words = "the receiver's response is not HTTP"
        case _:
            words = str(error)
    return words or type(error).__name__


def _public(error: BaseException) -> str:
    """Return why an attempt failed, without the name and address of the receiver and the bytes that it sent."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "the receiver's name cannot be resolved"
        case aiohttp.ClientConnectorError(os_error=ForbiddenAddress()):
            return "the receiver's address is not allowed (allow_private)"
        case aiohttp.ClientConnectorCertificateError():
            return "the receiver's certificate is not accepted"
        case aiohttp.ClientConnectorError():
            return "the receiver cannot be reached"
        case _:
            return "the connection to the receiver failed"


class Secrets:
    """Finds the secrets of a webhook in a response: a receiver may repeat what it was sent."""

    def __init__(self, webhook: Webhook) -> None:
        assert webhook.url is not None
        url = URL(webhook.url.reveal(), encoded=True)
        literals = webhook.body.literals if webhook.body is not None else ()
        keys = [text for text in literals if len(text) >= KEY and " " not in text]
        credentials = webhook.authorization.reveal().split()
        whole = [url.raw_path_qs, *keys, *(credentials[1:] or credentials)]
        words = [*url.raw_path.split("/"), *url.query.values()]
        self._beginnings = frozenset(
            form[:BEGINNING].lower()
            for text in (*whole, *words)
            if len(text) >= SHORTEST
            for form in (text, unquote(text))
        )
        """The beginnings, as a response may be cut in the middle of a secret."""

    def are_in(self, text: str) -> bool:
        """Return whether `text` repeats one, also if it is escaped as in a URL, HTML or JSON."""
        forms = (text, unquote(text), html.unescape(text), text.replace("\\", ""))
        return any(beginning in form.lower() for form in forms for beginning in self._beginnings)


class _Resolver(AbstractResolver):
    """Resolves names in a daemon thread of its own. aiohttp sends one query for a name at a time: one thread exists."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises: OSError."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[Any]] = loop.create_future()

        def settle(found: list[Any] | None, error: OSError | None) -> None:
            if result.done():
                return
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(found or [])

        def work() -> None:
            found, error = None, None
            try:
                found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except OSError as failure:
                error = failure
            except UnicodeError:
                error = OSError(None, "it is no valid host name")
            with contextlib.suppress(RuntimeError):  # The loop has been closed meanwhile.
                loop.call_soon_threadsafe(settle, found, error)

        threading.Thread(target=work, name="webhook-resolver", daemon=True).start()
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in await result
        ]

    async def close(self) -> None:
        """Nothing is open; a thread ends by itself."""


# -- addresses that a webhook may connect to


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


class ForbiddenAddress(OSError):
    """A connection to an address that the configuration does not allow. Nothing was sent."""


def guarded_socket(info: Any, *, allow_private: bool) -> socket.socket:
    """Return a socket to connect to the address of `info`, one of `getaddrinfo`. Raises: `ForbiddenAddress`."""
    family, kind, protocol, _, target = info
    if why := refusal(target[0], allow_private=allow_private):
        raise ForbiddenAddress(why)
    return socket.socket(family, kind, protocol)


def refusal(text: str, *, allow_private: bool) -> str | None:
    """Return why a connection to the address `text` is not allowed, or None if it is."""
    try:
        address = _unwrapped(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return f"{text} is no IP address"
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
