"""A server that speaks as much of MariaDB's protocol as a login needs, asks for what it likes, and records the answers.

`login` is a script of one connection: the packets that the server sends, each after the client's answer to the one
before. What arrives after the last of them is `revealed`: a client that goes on when it should not is found by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.support.eventually import PATIENCE
from tests.support.servers import free_port

SSL = 0x0800
PLUGIN_AUTH = 0x0008_0000
CAPABILITIES = 0x81FF_F7FF
"""Those of MariaDB 11.8 without TLS."""

SALT = b"12345678" + b"123456789012"
OK = b"\0\0\0\2\0\0\0"


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number % 256]) + payload


def greeting(
    method: str = "mysql_native_password", capabilities: int = CAPABILITIES, version: str = "11.8.0-MariaDB"
) -> bytes:
    """The first packet of a server."""
    flags = capabilities.to_bytes(4, "little")
    named = method.encode() + b"\0" if capabilities & PLUGIN_AUTH else b""
    head = b"\x0a" + version.encode() + b"\0" + b"\1\0\0\0" + SALT[:8] + b"\0"
    return packet(0, head + flags[:2] + b"\x2d\2\0" + flags[2:] + b"\x15" + bytes(10) + SALT[8:] + b"\0" + named)


def switch(method: str, challenge: bytes = SALT + b"\0") -> bytes:
    """AuthSwitchRequest: the content of the packet that asks for another method."""
    return b"\xfe" + method.encode() + b"\0" + challenge


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(4)
    return head[3], await reader.readexactly(int.from_bytes(head[:3], "little"))


@dataclass
class HostileDatabase:
    """Plays `login` to each connection. With `tls` it does so after the handshake that the greeting offers."""

    hello: bytes
    login: Sequence[bytes] = ()
    tls: ssl.SSLContext | None = None
    received: list[bytes] = field(default_factory=list)
    """All packets of all clients, after a TLS handshake, in the order in which they came."""

    revealed: list[bytes] = field(default_factory=list)
    """What clients sent in answer to the end of the script."""

    connections: int = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port where it serves, at 127.0.0.1. All its connections have ended afterwards.

        It serves in threads: asyncio's streams would read what belongs to a TLS handshake before that begins.
        """
        with socket.create_server(("127.0.0.1", free_port())) as listener, ThreadPoolExecutor() as threads:
            accepting = threads.submit(self._accept, listener, threads)
            try:
                yield listener.getsockname()[1]
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                await asyncio.to_thread(accepting.result)
                await asyncio.to_thread(threads.shutdown)

    def _accept(self, listener: socket.socket, threads: ThreadPoolExecutor) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                threads.submit(self._talk, client)

    def _talk(self, client: socket.socket) -> None:
        client.settimeout(PATIENCE)
        with client, contextlib.suppress(OSError):
            client.sendall(self.hello)
            if self.tls is None:
                self._play(client)
            elif _receive(client) is not None:  # the request for TLS: it holds neither user nor password
                with self.tls.wrap_socket(client, server_side=True) as secure:
                    self._play(secure)

    def _play(self, client: socket.socket) -> None:
        for said in self.login:
            if (answer := _receive(client)) is None:
                return
            self.received.append(answer[1])
            client.sendall(packet(answer[0] + 1, said))
        if (answer := _receive(client)) is not None:
            self.received.append(answer[1])
            self.revealed.append(answer[1])


def _receive(client: socket.socket) -> tuple[int, bytes] | None:
    """The number and the content of the next packet; None if the client has closed the connection."""
    head = _exactly(client, 4)
    if len(head) < 4:
        return None
    content = _exactly(client, int.from_bytes(head[:3], "little"))
    return head[3], content


def _exactly(client: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length and (more := client.recv(length - len(received))):
        received += more
    return received
