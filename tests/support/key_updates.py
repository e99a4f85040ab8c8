"""A TLS client that asks for new keys, which Python's `ssl` cannot do: OpenSSL by `ctypes`, over any socket."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from types import TracebackType
from typing import Self

_CTRL_MODE, _TLS_1_3, _CTRL_MIN_VERSION, _UPDATE_REQUESTED = 33, 0x0304, 123, 1


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


class KeyUpdater:
    """A TLS 1.3 client over a connected blocking socket, without any check of the certificate."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._library = connected, _library()
        self._context = ctypes.c_void_p(self._library.SSL_CTX_new(ctypes.c_void_p(self._library.TLS_client_method())))
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
        assert self._library.SSL_connect(self._tls) == 1, "the handshake failed"

    def write(self, data: bytes) -> None:
        assert self._library.SSL_write(self._tls, data, len(data)) == len(data)

    def update(self) -> bool:
        """Ask for new keys. False if the peer has ended the connection."""
        asked: int = self._library.SSL_key_update(self._tls, _UPDATE_REQUESTED)
        sent: int = self._library.SSL_do_handshake(self._tls)
        return asked == sent == 1
