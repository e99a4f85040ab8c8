"""A command of ours as a process, in a pipe or in a terminal, and what its terminal shows."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from tests.support import fork_server
from tests.support.eventually import PATIENCE, eventually
from tests.support.fork_server import ForkedProcess
from tests.support.paths import REPOSITORY
from tests.support.screens import screen


class Command:
    """One `correlator …` in a pipe, or in a terminal of some columns."""

    def __init__(
        self, process: asyncio.subprocess.Process | ForkedProcess, pipes: dict[str, int], terminal: int | None
    ) -> None:
        self.process = process
        self._terminal = terminal
        self._output = {"out": bytearray(), "err": bytearray()}
        self._reading = [asyncio.create_task(self._read(name, pipe)) for name, pipe in pipes.items()]
        if terminal is not None:
            asyncio.get_running_loop().add_reader(terminal, self._read_terminal, terminal)

    @property
    def out(self) -> str:
        return self._output["out"].decode()

    @property
    def err(self) -> str:
        return self._output["err"].decode()

    def screen(self) -> list[str]:
        return screen(self.out)

    async def until(self, condition: Callable[[], object]) -> None:
        try:
            await eventually(condition, within=PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.out}\n{self.err}") from error

    async def end(self) -> int:
        """Wait for it to end by itself; its exit code."""
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        if self._terminal is not None:
            self._read_terminal(self._terminal)
        return code

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await asyncio.gather(*self._reading)
        if self._terminal is not None:
            asyncio.get_running_loop().remove_reader(self._terminal)
            os.close(self._terminal)

    def resize(self, columns: int, rows: int) -> None:
        assert self._terminal is not None
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def _read(self, name: str, pipe: int) -> None:
        stream = asyncio.StreamReader()
        with os.fdopen(pipe, "rb") as file:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), file)
            while chunk := await stream.read(65536):
                self._output[name] += chunk
            transport.close()

    def _read_terminal(self, terminal: int) -> None:
        try:
            while chunk := os.read(terminal, 65536):
                self._output["out"] += chunk
        except BlockingIOError:
            pass
        except OSError:  # how a terminal says that its last program has gone
            asyncio.get_running_loop().remove_reader(terminal)


async def start(arguments: Sequence[str], environ: dict[str, str], columns: int | None, rows: int) -> Command:
    """`correlator …`; `columns` puts it in a terminal."""
    terminal, (read_errors, errors) = None, os.pipe()
    pipes = {"err": read_errors}
    if columns is None:
        pipes["out"], output = os.pipe()
    else:
        terminal, output = pty.openpty()
        os.set_blocking(terminal, False)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process: asyncio.subprocess.Process | ForkedProcess
    if fork_server.can_start(environ, fork_server.of_commands()):
        process = await fork_server.start(arguments, environ, output, errors, server="commands")
    else:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", *arguments),
            cwd=REPOSITORY,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
    os.close(output)
    os.close(errors)
    return Command(process, pipes, terminal)


@contextlib.asynccontextmanager
async def commands_against(url: str) -> AsyncIterator[Callable[..., Awaitable[Command]]]:
    """A function that starts a command against the daemon at `url`; `columns` puts it in a terminal."""
    commands: list[Command] = []

    async def run(*arguments: str, columns: int | None = None, rows: int = 30, **environ: str) -> Command:
        settings = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "LC_ALL", "LANG")}
        settings |= {"CORRELATOR_URL": url, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environ
        commands.append(await start(arguments, settings, columns, rows))
        return commands[-1]

    yield run
    for command in commands:
        await command.close()


async def ended(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command in a pipe, with this environment but for its locale."""
    settings = {name: value for name, value in environ.items() if not name.startswith(("LC_", "LANG"))}
    command = await start(arguments, settings | {"PYTHONIOENCODING": "utf-8"}, None, 0)
    try:
        return await command.end(), command.out, command.err
    finally:
        await command.close()
