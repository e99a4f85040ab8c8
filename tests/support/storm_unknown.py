"""Storms of clients that have no token, most of them without a hello, each a function that `storms` runs."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl

from tests.support import raw_http

MESSAGES = raw_http.frame(b"[" + b",".join([b"1"] * 32_000) + b"]")
"""A frame of 64 kB with 32,000 messages."""

HELLO = raw_http.frame(b'{"type":"hello","version":1}')

WEBSOCKETS = {
    "nothing": b"",
    "messages": MESSAGES,
    "partial": raw_http.frame(b"x" * 60_000)[:-1],
    "known-partial": HELLO + raw_http.frame(b"x" * 65_000)[:-1],
    "pings": raw_http.frame(b"", 9) * 10_000,
    "fragments": raw_http.frame(b"", 1, final=False) + raw_http.frame(b"", 0, final=False) * 10_000,
}
"""What is sent after the handshake."""

REQUESTS = {
    "say": raw_http.upgrade("/ws?say=[" + ",".join(["1"] * 3_500) + "]"),
    "headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 8_000) for n in range(120)),
    "wide-headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X-%d: %b%b\r\n" % (n, "😀".encode(), b"x" * 236) for n in range(124)),
    "begun": b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X-%d: %b%b\r\n" % (n, "😀".encode(), b"x" * 236) for n in range(120)),
    "silence": b"",
    "short-headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X: %b\r\n" % (b"x" * 2_000) for _ in range(15)),
    "tiny": b"GET / HTTP/1.1\r\nHost:a\r\n\r\n" * 1_200,
    "files": b"GET /client.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,
    "requests": b"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5_000,
}
"""What is sent at once. `tiny` and `files` are answered, and nobody reads that.

One character of four bytes makes each other one of its header take four in memory.
"""


HELLO = b"\x01" + (131_000).to_bytes(3, "big") + b"\3\3" + b"R" * 32 + b"\0\0\2\x13\1\1\0" + (60_000).to_bytes(2, "big")

HANDSHAKES = {
    "hello": b"".join(b"\x16\3\1\x40\0" + part.ljust(0x4000, b"\0") for part in (HELLO, *[b""] * 7)),
}
"""What is sent instead of a TLS handshake. `hello`: the first message of one, 131 kB long, without its end."""


async def floods(url: str, counts: dict[str, int], *, connections: int, kind: str) -> None:
    """Connections that send what no client sends, read nothing more, and stay until they are closed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    scheme, _, rest = url.partition(":")
    port = int(rest.rpartition(":")[2])
    tls = ssl._create_unverified_context() if scheme == "https" and kind not in HANDSHAKES else None
    together = asyncio.Semaphore(200)

    async def one() -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with together:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
                if kind in WEBSOCKETS:
                    writer.write(raw_http.upgrade())
                    async with asyncio.timeout(30):
                        await reader.readuntil(b"\r\n\r\n")
                writer.write({**WEBSOCKETS, **REQUESTS, **HANDSHAKES}[kind])
                async with asyncio.timeout(5):
                    await writer.drain()
                counts["sent"] = counts.get("sent", 0) + 1
            try:
                await asyncio.sleep(8.0)
            finally:
                writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(connections)))
