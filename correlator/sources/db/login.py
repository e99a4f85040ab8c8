"""The login to MariaDB: what a server must offer, and may ask for, before it gets anything of the password.

Problem. The first packets of a connection are not authenticated. Whoever reads and changes them can leave out that the
server speaks TLS, and can ask for the login method `mysql_clear_password`: aiomysql then sends the password as text,
even if TLS was asked for, and so do both drivers without TLS. `caching_sha2_password` and `sha256_password` encrypt the
password with a key that comes from the same stranger, and `mysql_old_password` shows enough of it to guess the rest.

Model. A connection is *protected* if it is a Unix socket, or TLS with a verified certificate. `Terms` judges what the
server says, from its greeting to the end of the login, before the driver answers:

- with `database.tls`, the greeting must offer TLS;
- over a protected connection, every method of the driver may be used;
- otherwise only those of `CHALLENGES`, by which the password cannot be read on the network;
- on this host, whoever listens must not be an ordinary user (`correlator.listeners`).

No driver has a public hook for this, so `connect` overrides what `tests/unit/test_login_hooks.py` names, in both in
the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, ClassVar, Literal

from correlator.listeners import check_listener
from correlator.tasks import Pacer

Driver = Literal["aiomysql", "asyncmy"]

CHALLENGES = frozenset({"mysql_native_password", "client_ed25519", "caching_sha2_password"})
"""The methods that answer a challenge of the server and never send the password itself.

`caching_sha2_password` does so as long as the server has the password in its cache. If not, it asks for the password,
which `Terms` refuses.
"""

_CLIENT_SSL = 0x0800
_PLUGIN_AUTH = 0x0008_0000

_SWITCH, _MORE = 0xFE, 0x01
"""First bytes of packets during a login: another method is asked for; the method goes on."""

_CACHED = b"\x01\x03"
"""The server has found the answer of `caching_sha2_password` in its cache."""


class UnsafeLogin(Exception):
    """The login was given up before the password was sent. The message says why, and what makes it safe."""


class NotMariaDB(Exception):
    """A server of another kind refused the login or a statement, which caused this. The message says what it is."""

    def __init__(self, version: str) -> None:
        kind = "MySQL" if re.fullmatch(r"[\d.]+(-[\w.]+)?", version) else "another server"
        super().__init__(
            f"the server is not MariaDB but {kind}, by the version in its greeting, {version[:50]!a}. The correlator"
            " reads MariaDB 10.5 or newer"
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """`tls`: the context of `database.tls`, or None; `unix_socket`, `password`: whether there is one."""

    tls: ssl.SSLContext | None
    unix_socket: bool
    password: bool

    @property
    def verified(self) -> bool:
        """True if a certificate proves who the server is."""
        return self.tls is not None and self.tls.verify_mode is ssl.CERT_REQUIRED

    @property
    def protected(self) -> bool:
        """True if nobody but the server can read what is sent."""
        return self.unix_socket or self.verified

    def check_greeting(self, capabilities: int, method: str) -> None:
        """Check the server's first packet. `method`: the one that it names. Raises: `UnsafeLogin`."""
        if self.tls is not None and not capabilities & _CLIENT_SSL:
            raise UnsafeLogin(
                "database.tls is set, but the server offers no TLS, or somebody in between has removed the offer"
            )
        if capabilities & _PLUGIN_AUTH:  # without it the first answer is that of mysql_native_password
            self._check_method(method)

    async def check_listener(self, connection: Any) -> None:
        """Check who listens, if that is on this host. `connection`: the socket. Raises: `ForeignListener`."""
        if self.password and not self.verified:
            instead = "run the correlator as that user, or set database.tls, with the CA of the server's certificate"
            await asyncio.to_thread(check_listener, connection, "the password of the database", instead)

    def check_packet(self, packet: bytes) -> None:
        """Check a later packet of the login. Raises: `UnsafeLogin`."""
        if packet[:1] == bytes([_SWITCH]):
            # Before methods had names, this was a single byte, with or without a challenge.
            name, end, _ = packet[1:].partition(b"\0")
            self._check_method(name.decode("latin-1") if end and name else "mysql_old_password")
        elif packet[:1] == bytes([_MORE]) and packet != _CACHED and not self.protected:
            raise UnsafeLogin(f"the server asked for the password itself, {_UNPROTECTED}")

    def _check_method(self, method: str) -> None:
        if method not in CHALLENGES and not self.protected:
            raise UnsafeLogin(f"the server asked for the login method {method[:50]!a}, {_UNPROTECTED}")


_UNPROTECTED = (
    "and the password was not sent: others could have read it. Set database.tls, with the CA of the server's"
    " certificate, or database.unix_socket if the server runs on this host"
)


async def connect(driver: Driver, terms: Terms, **options: Any) -> Any:
    """Return an open connection of the driver, with its `options`.

    Raises:
        NotMariaDB: The server is of another kind, and the login failed.
        UnsafeLogin: What the server offered, or asked for, is not safe.
    """
    connection = _class(driver)(terms, **options)
    with naming(connection):
        try:
            await (connection.connect() if driver == "asyncmy" else connection._connect())  # noqa: SLF001
        except BaseException:  # A driver that is cancelled leaves its socket open.
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def naming(connection: Any) -> Iterator[None]:
    """Raise `NotMariaDB` in place of an error if the greeting of `connection` does not name MariaDB.

    A server that works is not refused by its greeting: proxies send their own, and MariaDB any that is configured.
    """
    try:
        yield
    except Exception as error:
        version = getattr(connection, "server_version", None)
        if isinstance(version, str) and "mariadb" not in version.lower():
            raise NotMariaDB(version) from error
        raise


def transport_of(connection: Any) -> asyncio.Transport:
    """The transport of a connection. Once it is open, nothing else may use the connection from then on."""
    asyncmy = isinstance(connection, _AsyncmyLogin)
    transport: asyncio.Transport = connection._transport if asyncmy else connection._writer.transport  # noqa: SLF001
    return transport


@cache
def _class(driver: Driver) -> Any:
    """The driver's class with our checks."""
    theirs = import_module(f"{driver}.connection").Connection
    return type("Connection", (_AsyncmyLogin if driver == "asyncmy" else _AiomysqlLogin, theirs), {})


class _Login:
    """Checks what the server says until it has accepted the login: afterwards, the methods are the driver's own."""

    method: ClassVar[str]
    """The attribute that has the greeting's method."""

    read: ClassVar[str]
    """The method that reads a packet."""

    def __init__(self, terms: Terms, **options: Any) -> None:
        self._terms = terms
        super().__init__(**options)

    async def _request_authentication(self) -> Any:
        """Called when the greeting has been read and nothing has been sent; returns when the login is accepted."""
        read, terms = getattr(self, self.read), self._terms
        terms.check_greeting(getattr(self, "server_capabilities"), getattr(self, self.method))  # noqa: B009
        await terms.check_listener(transport_of(self).get_extra_info("socket"))

        async def checked(*args: Any) -> Any:
            packet = await read(*args)
            terms.check_packet(packet.get_all_data())
            return packet

        setattr(self, self.read, checked)
        try:
            return await super()._request_authentication()  # type: ignore[misc]
        finally:
            delattr(self, self.read)


class _AiomysqlLogin(_Login):
    """It also lets other tasks run between packets: the driver parses all that have arrived without a pause."""

    method = "_server_auth_plugin"
    read = "_read_packet"

    def __init__(self, terms: Terms, **options: Any) -> None:
        super().__init__(terms, **options)
        self._pacer = Pacer()

    async def _read_packet(self, *args: Any) -> Any:
        await self._pacer.pause()
        return await super()._read_packet(*args)  # type: ignore[misc]


class _AsyncmyLogin(_Login):
    """It also checks the definition of each column: the driver follows lengths out of their packet, and crashes."""

    method = "_auth_plugin_name"
    read = "read_packet"

    async def read_packet(self, kind: Any = None) -> Any:
        packet = await super().read_packet()  # type: ignore[misc]
        if kind is None:
            return packet
        content = packet.get_all_data()
        define = _column if len(content) <= MAX_KEPT else _column.__wrapped__
        return define(kind, content, self._encoding)  # type: ignore[attr-defined]


MAX_KEPT = 500
"""Bytes of a definition that is kept: the same queries are made again and again."""


@lru_cache(maxsize=1_000)
def _column(kind: Any, content: bytes, encoding: str) -> Any:
    """The driver's own form of the definition of a column, which nobody changes. Raises: as `check_column`."""
    check_column(content)
    return kind(content, encoding)


NAMES, FIXED = 6, 13
"""Names in the definition of a column, and bytes behind them (https://mariadb.com/kb/en/result-set-packets/)."""

MAX_SHORT = 250
_LONG = {252: 2, 253: 3}
"""Bytes of the length of a name, if it has no room in the first byte, by that byte."""


def check_column(content: bytes) -> None:
    """Raises: `ValueError` if the lengths in the definition of a column lead out of its packet."""
    at = 0
    try:
        for _ in range(NAMES):
            length, at = content[at], at + 1
            if length > MAX_SHORT:
                more = _LONG[length]
                length, at = int.from_bytes(content[at : at + more], "little"), at + more
            at += length
    except (IndexError, KeyError):
        at = len(content)
    if at + FIXED > len(content):
        raise ValueError("the definition of a column leads out of its packet")
