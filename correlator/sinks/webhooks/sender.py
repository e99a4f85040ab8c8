"""Sends one request to a receiver: bounded in time, in bytes and in the addresses that it may connect to.

Redirects are not followed, cookies and proxies are not used, and of a response only its status, Retry-After and a short
beginning are read. The name of the receiver is resolved in a thread of this receiver: a name server that does not
answer blocks neither the event loop nor the threads that others use.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import html
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http import HttpProcessingError
from msgspec import Struct
from yarl import URL

from correlator import __version__
from correlator.config.tls import Tls
from correlator.config.webhooks import Webhook
from correlator.errors import ConfigError
from correlator.sinks.webhooks import addresses, signature
from correlator.sinks.webhooks.body import CLOUD_EVENT, JSON
from correlator.tls import client_context

MAX_RESPONSE = 2_048
"""Bytes of the body of a response that are read at most."""

READ_WITHIN = 1.0
"""Seconds to read them."""

SHORTEST, KEY, BEGINNING = 6, 16, 12
"""Characters from which on a part of a URL, and a text of a body, may be a secret; those that are searched of it."""

KEEP_ALIVE = 2.0
"""Seconds that an idle connection is kept. A longer time would meet servers that close it at that moment."""


class Answer(Struct, frozen=True):
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
            socket_factory=functools.partial(_socket, webhook.allow_private),
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

    async def post(self, message_id: str, body: bytes) -> Answer:
        """Send one request and return how it ended. Takes `Webhook.timeout` at most, and `READ_WITHIN`."""
        headers = {
            "Content-Type": JSON if self._webhook.body is not None else CLOUD_EVENT,
            "User-Agent": f"correlator/{__version__}",
            **signature.headers(self._webhook.secret.keys, message_id, int(time.time()), body),
        }
        if self._webhook.authorization:
            headers["Authorization"] = self._webhook.authorization.reveal()
        try:
            async with asyncio.timeout(self._webhook.timeout):
                response = await self._session.post(self._url, data=body, headers=headers, allow_redirects=False)
        except TimeoutError:
            words = f"no response within {self._webhook.timeout:g} s"
            return Answer(None, words, words)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(None, describe_error(error), f"{_public(error)}; the daemon's log says more")
        try:
            return await _answer(response, self._secrets)
        finally:
            response.close()  # Without effect if the whole response has been read: its connection is used again.

    async def close(self) -> None:
        await self._session.close()


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


async def _answer(response: aiohttp.ClientResponse, secrets: Secrets) -> Answer:
    """Return what a response means. The body of a failure is read as far as it arrives within `READ_WITHIN`."""
    status = response.status
    if 200 <= status < 300:
        return Answer(status)
    text = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError):
        async with asyncio.timeout(READ_WITHIN):
            text = await response.content.read(MAX_RESPONSE)
    error = f"HTTP {status}" + (", and redirects are not followed" if 300 <= status < 400 else "")
    shown = text.decode("utf-8", "replace")
    if secrets.are_in(shown):
        shown = "(the response repeats what was sent, and is not shown)"
    return Answer(status, error, error, shown, _retry_after(response.headers.get("Retry-After", "")))


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
        case aiohttp.ClientConnectorError(os_error=addresses.ForbiddenAddress()):
            return "the receiver's address is not allowed (allow_private)"
        case aiohttp.ClientConnectorCertificateError():
            return "the receiver's certificate is not accepted"
        case aiohttp.ClientConnectorError():
            return "the receiver cannot be reached"
        case _:
            return "the connection to the receiver failed"


def _socket(allow_private: bool, address: Any) -> socket.socket:
    family, kind, protocol, _, target = address
    return addresses.guarded_socket(family, kind, protocol, target[0], allow_private=allow_private)


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
