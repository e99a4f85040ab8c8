"""Real servers for the tests: private, on loopback ports of their own, in temporary folders.

Invariants: a server is stopped by its own process id, and every wait has a deadline. `kill` and `start` keep the port
and the files. All methods of a server block for a moment (MariaDB's start for about a second): where the same event
loop runs the program under test, call them with `asyncio.to_thread`.
"""

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.eventually import PATIENCE


class ServerError(Exception):
    """A server program is missing, does not start, or does not stop."""


PORTS = range(15_000, 32_000)
"""The ports for tests.

They are below the range that the kernel takes outgoing ports from: a client that keeps trying a port of that range
while its server is down will one day be given the same port as its own, and connect to itself.
"""

SHARES = 64
"""The number of shares of them: each process that runs tests has one, until it ends."""

_given: deque[int] = deque(maxlen=200)
"""The ports given last. A server may not listen yet, or be down for a moment: nobody else gets its port then."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that no test beside this one is given."""
    share = PORTS[_share() :: SHARES]
    for port in random.sample(share, len(share)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.append(port)
            return port
    raise ServerError(f"no free port among {share}")


@functools.cache
def _share() -> int:
    """The number of this process's share. An abstract socket makes it its own until it ends.

    Such a name is known to all that share the ports, whatever files they see, and leaves none.
    """
    held = socket.socket(socket.AF_UNIX)
    for number in random.sample(range(SHARES), SHARES):
        with contextlib.suppress(OSError):  # another process has it
            held.bind(f"\0correlator-ports-{number}")
            held.detach()
            return number
    raise ServerError(f"{SHARES} other processes run tests with servers")


class Server(ABC):
    """A server process with a folder and a port, both its own until `close`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> Sequence[str]:
        """Writes what the server needs into its folder; returns its command line."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server talks to a client; OSError while nobody listens."""

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    def start(self) -> None:
        """Starts, or starts again: returns when clients can connect. ServerError with the server's log otherwise."""
        if self._process is not None:
            raise ServerError(f"{type(self).__name__} is running already")
        command = self._prepare()
        environ = os.environ | {"HOME": str(self.folder)}  # where some keep files of their own
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environ,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._ready():
            if self._process.poll() is not None:
                code, self._process = self._process.returncode, None
                raise ServerError(f"{command[0]} ended with {code}:\n{self.log()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{command[0]} did not answer within {PATIENCE:.0f} s:\n{self.log()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM; SIGKILL and a ServerError if that does not end it in time. Nothing to do if it is not running."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"{type(self).__name__} ignored SIGTERM for {PATIENCE:.0f} s:\n{self.log()}") from None
        self._process = None

    def kill(self) -> None:
        """SIGKILL: the server writes nothing more and its connections break."""
        process = self._running()
        process.kill()
        process.wait(PATIENCE)
        self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers, new connections are accepted by the kernel alone.

        Returns when it has stopped: its threads go on for a moment after the signal.
        """
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 1.0  # one that is stopped already is not reported again
        while os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG) is None and time.monotonic() < deadline:
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stops the server and removes its folder."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """The end of what the server wrote."""
        path = self.folder / "log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError(f"{type(self).__name__} is not running")
        return self._process

    def _ready(self) -> bool:
        try:
            return self._answers()
        except OSError:
            return False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def program(name: str) -> str:
    """Debian keeps servers in folders that only root has in $PATH."""
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"
    if name.startswith("mariadb"):
        places = os.environ.get("TEST_MARIADB") or places  # the one that was asked for, or none
    found = shutil.which(name, path=places)
    if found is None:
        raise ServerError(f"{name} is not installed: make test says which packages bring the servers")
    return found


def run_program(*command: str) -> str:
    """Run a program to its end, for at most a minute; what it printed. ServerError if it failed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise ServerError(f"{command[0]} ended with {done.returncode}:\n{output}")
    return done.stdout.decode(errors="replace")
