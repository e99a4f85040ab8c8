"""A client that sends bytes unchanged, and returns the response without parsing it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.support.eventually import PATIENCE

ENDS_WITHIN = 50.0
"""Seconds until a connection that a response does not keep has ended. A listener closes idle ones after 75."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back until the other side closed, or was quiet."""

    raw: bytes
    closed: bool

    @property
    def status(self) -> int | None:
        """Of the first response; None where none came."""
        found = _STATUS.match(self.raw)
        return int(found[1]) if found else None

    @property
    def statuses(self) -> list[int]:
        """The statuses of all responses, if no line of a body resembles a status line."""
        return [int(s) for s in re.findall(rb"(?m)^HTTP/1\.[01] (\d{3})", self.raw)]

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    def header(self, name: str) -> str | None:
        found = re.search(rb"(?mi)^" + name.encode() + rb": *(.*?)\r$", self.raw.partition(b"\r\n\r\n")[0] + b"\r\n")
        return found[1].decode("latin-1") if found else None


@contextlib.asynccontextmanager
async def connected(
    port: int, tls: ssl.SSLContext | None = None, limit: int = 1 << 16
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a port of this host; cut off at the end, not closed politely. `limit`: bytes of its buffer."""
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def receive(
    reader: asyncio.StreamReader, quiet: float = 0.2, *, first: float = PATIENCE, within: float = PATIENCE
) -> Answer:
    """What comes until `quiet` seconds bring nothing, the connection ends, or `within` is over.

    `first`: seconds to wait for the first bytes.
    """
    raw = bytearray()
    closed = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            while not closed:
                async with asyncio.timeout(quiet if raw else first):
                    try:
                        more = await reader.read(1 << 16)
                    except (ConnectionError, ssl.SSLError):
                        more = b""
                closed = not more
                raw += more
    return Answer(bytes(raw), closed)


async def exchange(
    port: int, sent: bytes, *, quiet: float = 0.2, first: float = PATIENCE, tls: ssl.SSLContext | None = None
) -> Answer:
    """Send, and receive what comes."""
    async with connected(port, tls) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            await writer.drain()
        return await receive(reader, quiet, first=first)


@dataclass(frozen=True, slots=True)
class Response:
    """One response. `keeps`: the connection may have the next request (RFC 9112, 9.3)."""

    status: int
    body: bytes
    keeps: bool


async def response(reader: asyncio.StreamReader, method: str) -> Response:
    """Read exactly one response, as long as its headers say (RFC 9112, 6.3)."""
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        line, *lines = head.rstrip().split("\r\n")
        parsed = re.fullmatch(r"http/(1\.[01]) (\d{3}) .*", line)
        assert parsed is not None, f"not a response, but what another one has left: {line!r}"
        version, status = parsed.groups()
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        connection = headers.get("connection", "keep-alive" if version == "1.1" else "close")
        keeps = connection == "keep-alive"
        if method == "HEAD" or status in ("204", "304"):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            assert await reader.readline() == b"\r\n"
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body, keeps = await reader.read(), False
    return Response(int(status), body, keeps)


async def in_sync(port: int, method: str, path: str, *headers: str, version: str, after: str) -> int:
    """The status of a request, after which the connection is in sync: it ends, or answers ``GET after`` with 200.

    `after` needs an answer in JSON.
    """

    def sent(method: str, path: str, *headers: str) -> bytes:
        return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", *headers, "", ""]).encode()

    async with connected(port) as (reader, writer):
        writer.write(sent(method, path, *headers))
        found = await response(reader, method)
        if found.keeps:
            writer.write(sent("GET", after, "Connection: close"))
            following = await response(reader, "GET")
            assert following.status == 200, (method, path, following)
            json.loads(following.body)
        async with asyncio.timeout(ENDS_WITHIN):
            assert await reader.read() == b"", (method, path, headers, version)
    return found.status


def get(path: str, *headers: str) -> bytes:
    """A request that leaves nothing to wish for, but for what is in `path` and `headers`."""
    return request("GET", path, *headers)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """After its answer the connection closes, if `headers` do not say what becomes of it."""
    if not any(header.startswith("Connection:") for header in headers):
        headers = (*headers, "Connection: close")
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def upgrade(path: str = "/ws", *headers: str) -> bytes:
    """A websocket's handshake (RFC 6455, 4.1)."""
    asked = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    return get(path, *asked, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *headers)


def frame(payload: bytes, opcode: int = 1, *, final: bool = True, mask: bytes | None = b"\1\2\3\4") -> bytes:
    """One frame of a client (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    head = bytes([(0x80 if final else 0) | opcode, length[0] | (0x80 if mask else 0)]) + length[1:]
    if mask is None:
        return head + payload
    repeated = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
