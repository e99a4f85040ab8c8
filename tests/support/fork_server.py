"""Starts processes of the program by a fork, without importing it again.

Problem. A start costs 0.4 s of CPU, nearly all of it imports, and the suites start six hundred processes.

Model. Each process that runs tests has a server for daemons, and one for commands that ask a daemon: an interpreter
that has imported what `correlator run` imports and joined the files of the page, or has imported what these commands
do, and has run nothing else. It inherits its listener, whose address is no file. A request comes over a connection of
its own: arguments and environment, with the files for the output. The server forks, and the child returns from `serve`
into the program's `main`. The answers are the process ID and, when the child ends, its exit code.

Invariants. The child shares no descriptor with the server, and begins as `python -m correlator` does after its
imports: one thread, the signal handlers of a new interpreter, its own seed of `random`. What is read before a program
begins cannot be given to it: `can_start` refuses an environment in which the loader or Python would find something
else than here. The server ends when the process that runs the tests has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY

MAX_MESSAGE = 200_000
"""Bytes of a request; a local socket carries it as one packet."""

READ_EARLY = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG")
"""How the names of variables begin that are read before the program's `main`."""


def of_commands() -> dict[str, str]:
    """The environment in which the server for commands begins."""
    without = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    return without | {"PYTHONIOENCODING": "utf-8"}


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


def can_start(environ: Mapping[str, str], of_server: Mapping[str, str] = os.environ) -> bool:
    """True if a process with this environment would begin as its server did."""

    def early(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(READ_EARLY)}

    return early(environ) == early(of_server)


async def start(
    arguments: Sequence[str], environ: Mapping[str, str], output: int, errors: int | None = None, *, server: str = "run"
) -> ForkedProcess:
    """Start `correlator ARGUMENTS` in the repository. `output`, `errors`: descriptors; None: the same for both.

    `server`: the one for daemons, or "commands".
    """
    address = _server(server)
    request = msgspec.json.encode(Request(list(arguments), dict(environ)))
    assert len(request) <= MAX_MESSAGE
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    connection.setblocking(False)
    socket.send_fds(connection, [request], [output, output if errors is None else errors])
    async with asyncio.timeout(PATIENCE):
        pid = int(await asyncio.get_running_loop().sock_recv(connection, 100))
    return ForkedProcess(pid, connection)


_servers: list[subprocess.Popen[bytes]] = []


@functools.cache
def _server(kind: str) -> bytes:
    """The address of this process's server of a kind, which the first call starts. Connections wait until it runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")
        listener.listen(100)
        command = [sys.executable, "-m", "tests.support.fork_server", str(listener.fileno()), kind]
        environ = of_commands() if kind == "commands" else None
        files = [listener.fileno()]
        _servers.append(subprocess.Popen(command, cwd=REPOSITORY, env=environ, stdin=subprocess.PIPE, pass_fds=files))
        address: bytes = listener.getsockname()
        return address


def end() -> None:
    """End the servers of this process; the next start makes another."""
    _server.cache_clear()
    while _servers:
        _servers.pop().communicate(timeout=PATIENCE)  # its standard input ends


# -- in the server


def serve(number: int) -> list[str] | None:
    """Answer requests until standard input ends: None. In a child: its arguments. `number`: the listener's."""
    with contextlib.ExitStack() as descriptors:
        selector = descriptors.enter_context(selectors.DefaultSelector())
        listener = descriptors.enter_context(socket.socket(fileno=number))
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        children: dict[int, tuple[int, socket.socket]] = {}
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 2)
                    pid = os.fork()
                    if pid == 0:
                        connection.close()
                        for ended, (_, other) in children.items():
                            os.close(ended)
                            other.close()
                        return _begin(msgspec.json.decode(request, type=Request), *files)
                    for file in files:
                        os.close(file)
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


def _begin(request: Request, output: int, errors: int) -> list[str]:
    """Take over the environment and the standard streams of a request; its arguments."""
    os.environ.clear()
    os.environ.update(request.environ)
    time.tzset()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for file, number in ((output, 1), (errors, 2)):
        os.dup2(file, number)
        os.close(file)
    # As an interpreter opens them: a stream knows whether its file is a terminal, and whether it has a position.
    sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return request.arguments


if __name__ == "__main__":
    from correlator.cli import main

    if sys.argv[2] == "commands":
        import correlator.client.client
        import correlator.doctor.daemon
        import correlator.doctor.service
        import correlator.terminal.history
        import correlator.terminal.listing
        import correlator.terminal.logs
        import correlator.terminal.show
        import correlator.terminal.watch
    else:
        import uvloop  # noqa: F401 - `run` imports these when it is called, the last two if they are configured

        import correlator.app
        import correlator.sinks.mqtt.sink
        import correlator.sinks.otlp.sink  # noqa: F401
        from correlator import web
        from correlator.sources.db.mariadb import installed_driver

        installed_driver("auto")
        for gateway in (False, True):
            web.files(gateway=gateway)  # always the same, and most of what a start costs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests end the server
    if (arguments := serve(int(sys.argv[1]))) is not None:
        sys.argv = ["correlator", *arguments]
        main(arguments, prog_name="correlator")
