"""The service manager's end of the notification socket (sd_notify(3)). It keeps every line that a daemon has sent."""

import socket
from pathlib import Path


class ServiceManager:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._lines: list[str] = []

    @property
    def lines(self) -> list[str]:
        """All lines since `clear`."""
        while True:
            try:
                self._lines += self._socket.recv(10_000).decode().split("\n")
            except BlockingIOError:
                return self._lines

    def clear(self) -> None:
        self.lines.clear()

    def new_lines(self) -> list[str]:
        """The lines since the last call."""
        lines = list(self.lines)
        self.clear()
        return lines

    def close(self) -> None:
        self._socket.close()
