"""A service manager's end of the socket that daemons notify (sd_notify(3)), which keeps every line it was told."""

import socket
from pathlib import Path


class Manager:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._told: list[str] = []

    @property
    def told(self) -> list[str]:
        """All lines since `forget`."""
        while True:
            try:
                self._told += self._socket.recv(10_000).decode().split("\n")
            except BlockingIOError:
                return self._told

    def forget(self) -> None:
        self.told.clear()

    def heard(self) -> list[str]:
        """The lines that have come since this was asked last."""
        lines = list(self.told)
        self.forget()
        return lines

    def close(self) -> None:
        self._socket.close()
