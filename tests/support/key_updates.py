"""A TLS peer that asks for new keys, which Python's `ssl` cannot do: OpenSSL by `ctypes`, over any socket."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_CTRL_MIN_VERSION, _TLS_1_3, _UPDATE_REQUESTED, _PEM = 123, 0x0304, 1, 1


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
    for name in ("TLS_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


class KeyUpdater:
    """TLS 1.3 over a connected blocking socket, without any check of the other certificate."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._library = connected, _library()
        self._context = ctypes.c_void_p(self._library.SSL_CTX_new(ctypes.c_void_p(self._library.TLS_method())))
        self._library.SSL_CTX_ctrl(self._context, _CTRL_MIN_VERSION, _TLS_1_3, None)
        self._tls = ctypes.c_void_p(self._library.SSL_new(self._context))
        self._library.SSL_set_fd(self._tls, connected.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._library.SSL_free(self._tls)
        self._library.SSL_CTX_free(self._context)
        self._socket.close()

    def connect(self) -> None:
        """Make the handshake as its client."""
        assert self._library.SSL_connect(self._tls) == 1, "the handshake failed"

    def accept(self, cert: Path, key: Path) -> None:
        """Make the handshake as its server."""
        assert self._library.SSL_use_certificate_file(self._tls, bytes(cert), _PEM) == 1
        assert self._library.SSL_use_PrivateKey_file(self._tls, bytes(key), _PEM) == 1
        assert self._library.SSL_accept(self._tls) == 1, "the handshake failed"

    def read(self) -> bytes:
        """Some of what has come, when it has. Empty: the peer has ended the connection."""
        buffer = ctypes.create_string_buffer(1 << 14)
        return buffer.raw[: max(0, self._library.SSL_read(self._tls, buffer, len(buffer)))]

    def write(self, data: bytes) -> None:
        assert self._library.SSL_write(self._tls, data, len(data)) == len(data)

    def flood(self, seconds: float) -> None:
        """Ask for new keys until the peer ends the connection, and so long at most."""
        until = time.monotonic() + seconds
        while self.update() and time.monotonic() < until:
            pass

    def update(self) -> bool:
        """Ask for new keys. False if the peer has ended the connection."""
        asked: int = self._library.SSL_key_update(self._tls, _UPDATE_REQUESTED)
        sent: int = self._library.SSL_do_handshake(self._tls)
        return asked == sent == 1
