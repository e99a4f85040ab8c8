"""The programs that the demo starts beside itself, each in a process of its own.

Invariants: standard output and error go to one file; the process runs in a session of its own, so that Ctrl-C reaches
the demo only, which stops the programs in reverse order; it has ended when its `async with` block has ended.
"""

import asyncio
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from correlator.errors import CorrelatorError

START_DEADLINE = 60.0
"""Seconds until a program must be usable, on a machine that is busy with starting the others."""

STOP_DEADLINE = 15.0
"""Seconds after SIGTERM until SIGKILL: a daemon may close connections for 10 s."""

PROBE_EVERY = 0.1
"""Seconds between two questions whether a program is usable."""

LAST_LINES = 5
"""Lines of its output that an error quotes."""


class ProgramError(CorrelatorError):
    """A program ended, or was not usable in time."""


class Program:
    """One running program. `name` is for messages; `command` started it; `log` has its output."""

    def __init__(self, name: str, command: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.command = command
        self._process = process
        self._log = log

    async def usable(self, probe: Callable[[], Awaitable[bool]], within: float = START_DEADLINE) -> None:
        """Wait until `probe` returns True. Raises ProgramError when the program ends, or after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while not await probe():
                    if self._process.returncode is not None:
                        raise ProgramError(self._ended())
                    await asyncio.sleep(PROBE_EVERY)
        except TimeoutError:
            raise ProgramError(f"{self.name} was not usable within {within:.0f} s{self._said()}") from None

    async def end(self) -> str:
        """Wait for its end. Returns how it ended, and the last lines of its output."""
        await self._process.wait()
        return self._ended()

    def _ended(self) -> str:
        code = self._process.returncode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"{self.name} {how}{self._said()}"

    def _said(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return ": " + " | ".join(lines[-LAST_LINES:]) if lines else ""


@asynccontextmanager
async def running(
    name: str, command: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """Run `command` until the block ends. Raises OSError if it cannot be started."""
    with await asyncio.to_thread(log.open, "wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
            start_new_session=True,
        )
    try:
        yield Program(name, shlex.join(map(str, command)), process, log)
    finally:
        await _stop(process)


async def accepts(port: int) -> bool:
    """Return whether a program accepts connections on this loopback port."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_DEADLINE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
