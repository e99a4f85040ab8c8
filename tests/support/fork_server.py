"""Starts processes of the program by a fork, without importing it again.

Problem. A start costs 0.4 s of CPU, nearly all of it imports, and the suites start five hundred processes.

Model. Each process that runs tests has one server: an interpreter that has imported what `correlator run` imports, and
has run none of it. A request comes over a connection of its own: arguments and environment, with the file for the
output. The server forks, and the child returns from `serve` into the program's `main`. The answers are the process ID
and, when the child ends, its exit code.

Invariants. The child shares no descriptor with the server, and begins as `python -m correlator` does after its
imports: one thread, the signal handlers of a new interpreter, its own seed of `random`. What is read before a program
begins cannot be given to it: `can_start` refuses an environment in which the loader or Python would find something
else than here. The server ends when the process that runs the tests has ended.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY

MAX_MESSAGE = 200_000
"""Bytes of a request; a local socket carries it as one packet."""

READ_EARLY = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
"""How the names of variables begin that are read before the program's `main`."""


class Request(msgspec.Struct):
    """A process to start."""

    arguments: list[str]
    environ: dict[str, str]


# -- in the process that runs the tests


class ForkedProcess:
    """The part of `asyncio.subprocess.Process` that tests need. It belongs to the event loop that started it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._read_exit_code(connection))

    async def _read_exit_code(self, connection: socket.socket) -> int:
        with connection:
            self.returncode = int(await asyncio.get_running_loop().sock_recv(connection, 100))
            return self.returncode

    async def wait(self) -> int:
        """The exit code; a negative one is the signal that ended it."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def can_start(environ: Mapping[str, str]) -> bool:
    """True if a process with this environment would begin as this one did."""

    def early(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(READ_EARLY)}

    return early(environ) == early(os.environ)


async def start(arguments: Sequence[str], environ: Mapping[str, str], output: IO[bytes]) -> ForkedProcess:
    """Start `correlator ARGUMENTS` in the repository; its standard output and error go to `output`."""
    path = await asyncio.to_thread(_server)
    request = msgspec.json.encode(Request(list(arguments), dict(environ)))
    assert len(request) <= MAX_MESSAGE
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    connection.setblocking(False)
    socket.send_fds(connection, [request], [output.fileno()])
    async with asyncio.timeout(PATIENCE):
        pid = int(await asyncio.get_running_loop().sock_recv(connection, 100))
    return ForkedProcess(pid, connection)


_starting = threading.Lock()


def _server() -> Path:
    """The socket of this process's server, which the first call starts."""
    with _starting:
        return _started()


@functools.cache
def _started() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="correlator-")
    path = Path(folder.name) / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server", str(path)], cwd=REPOSITORY, stdin=subprocess.PIPE
    )

    def end() -> None:
        server.communicate(timeout=PATIENCE)  # its standard input ends
        folder.cleanup()

    atexit.register(end)
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert server.poll() is None, "the fork server does not start"
        assert time.monotonic() < deadline, "the fork server does not start"
        time.sleep(0.01)
    return path


# -- in the server


def serve(path: Path) -> list[str] | None:
    """Answer requests until standard input ends: None. In a child: its arguments."""
    with contextlib.ExitStack() as descriptors:
        selector = descriptors.enter_context(selectors.DefaultSelector())
        listener = descriptors.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        prepared = path.with_suffix(".new")
        listener.bind(str(prepared))
        listener.listen(100)
        prepared.rename(path)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        children: dict[int, tuple[int, socket.socket]] = {}
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 1)
                    pid = os.fork()
                    if pid == 0:
                        connection.close()
                        for ended, (_, other) in children.items():
                            os.close(ended)
                            other.close()
                        return _begin(msgspec.json.decode(request, type=Request), files[0])
                    os.close(files[0])
                    connection.send(str(pid).encode())
                    ended = os.pidfd_open(pid)
                    selector.register(ended, selectors.EVENT_READ)
                    children[ended] = pid, connection
                else:
                    ended = key.fd
                    pid, connection = children.pop(ended)
                    selector.unregister(ended)
                    os.close(ended)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with connection, contextlib.suppress(OSError):  # the test may have gone
                        connection.send(str(code).encode())


def _begin(request: Request, output: int) -> list[str]:
    """Take over the environment and the standard streams of a request; its arguments."""
    os.environ.clear()
    os.environ.update(request.environ)
    time.tzset()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return request.arguments


if __name__ == "__main__":
    import uvloop  # noqa: F401 - `run` imports these when it is called, the last two if they are configured

    import correlator.app
    import correlator.sinks.mqtt.sink
    import correlator.sinks.otlp.sink  # noqa: F401
    from correlator.cli import main
    from correlator.sources.db.mariadb import load_driver

    load_driver("auto")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests end the server
    if (arguments := serve(Path(sys.argv[1]))) is not None:
        sys.argv = ["correlator", *arguments]
        main(arguments, prog_name="correlator")
