"""TLS over a socket for paho, which reads what the broker sends record by record (`correlator.tls`).

Problem. An `ssl.SSLSocket` reads until it has data, or nothing more has come. A broker that sends records without data
faster than they are read would stop the event loop for as long as it likes.

Model. The socket has the methods that paho and aiomqtt call, and no others. Reading and writing are those of an
`ssl.SSLObject` between two buffers in memory.

Invariant. At most one record that was written waits to be sent. `send` of the same data sends the rest, as `SSL_write`
does: paho offers the same data until it is accepted.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from typing import Any, Final

RECORD: Final = 16 << 10
"""Bytes of the longest record, and those that are read at once."""


class TlsSocket:
    """A socket whose TLS handshake `do_handshake` makes. `name`: the broker's, which its certificate must have."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._unsent = b""
        self._accepted = 0
        """Bytes of the data in `_unsent`."""

    def do_handshake(self, within: float) -> None:
        """Make the handshake, and block meanwhile. Raises: OSError; TimeoutError after `within` seconds."""
        until = time.monotonic() + within
        done = False
        while not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                done = True
            if (left := until - time.monotonic()) <= 0.0:
                raise TimeoutError
            self._socket.settimeout(left)
            self._socket.sendall(self._outgoing.read())
            if not done:
                self._receive()

    def recv(self, most: int) -> bytes:
        """Return up to `most` bytes; none: the broker has ended the connection.

        Raises: BlockingIOError: none have come. OSError.
        """
        while True:
            try:
                data: bytes = self._tls.read(most)
            except ssl.SSLWantReadError:
                self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            else:
                return data

    def send(self, data: bytes) -> int:
        """Return how many bytes of `data` were sent.

        Raises: BlockingIOError: offer the same data again when more can be sent. OSError.
        """
        if not self._accepted:
            self._accepted = self._tls.write(data[:RECORD])
            self._unsent = self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        sent, self._accepted = self._accepted, 0
        return sent

    def pending(self) -> int:
        """Return how many bytes have come, about which the socket does not tell."""
        return self._tls.pending() + self._incoming.pending

    def _receive(self) -> None:
        received = self._socket.recv(RECORD)
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()

    @property
    def family(self) -> int:
        return self._socket.family

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, blocking: bool) -> None:
        self._socket.setblocking(blocking)

    def getpeername(self) -> Any:
        return self._socket.getpeername()

    def getsockname(self) -> Any:
        return self._socket.getsockname()

    def close(self) -> None:
        self._socket.close()
