"""The demo in one process: the simulated appliance writes, the daemon follows, and a broker, if installed, has MQTT.

Invariants: it uses loopback ports only and one folder, and removes everything after Ctrl-C (except a folder that was
given). Standard output begins with the page's URL, alone on its line.
"""

import asyncio
import contextlib
import secrets
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import click

from correlator.app import run
from correlator.config.loading import load
from correlator.config.values import toml
from correlator.demo.joblog import LogWriters
from correlator.demo.processes import ProgramError, broker_binary, held_port, mqtt_broker
from correlator.demo.traffic import Traffic, appliance
from correlator.errors import CorrelatorError
from correlator.tasks import TaskGroup

# Any zone but UTC would do: DATETIME columns hold the appliance's local time, and a confusion should be visible.
ZONE = "Europe/Berlin"
INSTANCE = "demo"
DATABASE = "appliance.db"
PORT = 8686


async def demo_main(
    port: int | None,
    rate: float,
    directory: Path | None,
    mqtt: bool,
    origins: Sequence[str] = (),
    *,
    seed: int | None = None,
    daemon: Callable[..., Coroutine[Any, Any, None]] = run,
    broker: Callable[[], Path | None] = broker_binary,
    usual_port: int = PORT,
) -> None:
    """Run the demo until Ctrl-C, SIGTERM or cancellation.

    Args:
        port: The port of the page. None uses 8686, or a free one if that is in use.
        rate: Seconds of a scenario per real second.
        directory: Keeps the database and the daemon's state for the next demo. None uses a folder that is deleted at
            the end.
        mqtt: Whether to run a broker, if one is installed.
        origins: Of pages that may read from the daemon, besides its own.
        seed: The same seed makes the same jobs; it requires an empty directory.
        daemon: Runs the daemon.
        broker: Finds the program of the broker; None: it is not installed.
        usual_port: What `port` None stands for, if it is free.

    Raises:
        CorrelatorError: The demo cannot listen on `port`.
    """
    seed = secrets.randbits(32) if seed is None else seed
    with (
        working_folder(directory) as folder,
        interruption() as interrupted,
        chosen_port(port, usual_port) as (
            listen,
            taken,
        ),
    ):
        async with (
            appliance(folder / DATABASE, ZoneInfo(ZONE), rate, seed) as (writers, traffic),
            _mqtt(folder, broker if mqtt else None) as (mqtt_port, mqtt_line),
        ):
            file = await asyncio.to_thread(_configure, folder, listen, mqtt_port, origins)
            await _play(writers, traffic, file, [*taken, *mqtt_line], interrupted, daemon)


async def _play(
    writers: LogWriters,
    traffic: Traffic,
    file: Path,
    notes: list[str],
    interrupted: asyncio.Event,
    run: Callable[..., Coroutine[Any, Any, None]],
) -> None:
    """Run writers, traffic and daemon concurrently until the daemon ends or is interrupted. `file` configures it."""
    with one_error():
        async with TaskGroup() as group:
            group.create_task(writers.run(), name="demo-writers")
            playing = group.create_task(traffic.run(), name="demo-traffic")
            await traffic.first()  # the announced job has to exist
            daemon = group.create_task(
                run(load(file, {}), on_ready=partial(announce, traffic, file, notes)), name="demo-daemon"
            )
            interruption = group.create_task(interrupted.wait(), name="demo-interrupt")
            await asyncio.wait({daemon, interruption}, return_when=asyncio.FIRST_COMPLETED)
            for task in (daemon, interruption, playing):
                task.cancel()
            await asyncio.wait({daemon, playing})
            writers.stop()


def program_name() -> str:
    """Return the command that started this program."""
    return sys.argv[0] if Path(sys.argv[0]).name == "correlator" else "python -m correlator"


def announce(traffic: Traffic, file: Path, notes: list[str], url: str) -> None:
    """Print the page's URL, then one line for each other interface, then the notes.

    `file` is the daemon's configuration, for the commands that read the database themselves.
    """
    job = quote(traffic.running_id(), safe="")  # a percent-encoded ID needs no shell quoting
    for line in (
        url,
        f"  one job    {url}/#/jobs/{job}",
        f"  terminal   {program_name()} watch --url {url} {job}",
        f"  REST       curl {url}/api/v1/jobs/{job}",
        f"  events     curl -N '{url}/api/v1/stream?id={job}'",
        f"  websocket  ws{url.removeprefix('http')}/ws",
        f"  log rows   {program_name()} tap --config {shlex.quote(str(file))}",
        f"  check      {program_name()} doctor --config {shlex.quote(str(file))}",
        *(f"  {note}" for note in notes),
        "  stop       Ctrl-C",
    ):
        click.echo(line)


@contextlib.contextmanager
def working_folder(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="correlator-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


@contextlib.contextmanager
def interruption() -> Iterator[asyncio.Event]:
    """Yield an event that Ctrl-C and SIGTERM set. The daemon may replace the handlers by its own."""
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        # Only the main thread may set handlers; in another thread the demo ends by cancellation.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, interrupted.set)
    try:
        yield interrupted
    finally:
        for number in signals:
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _mqtt(folder: Path, broker: Callable[[], Path | None] | None) -> AsyncIterator[tuple[int | None, list[str]]]:
    """Run a broker if one is wanted and installed; yield its port and the line to print about it."""
    binary = broker() if broker is not None else None
    if binary is None:
        missing = ["MQTT       needs a broker: install mosquitto, then start the demo again"]
        yield None, missing if broker is not None else []
        return
    async with contextlib.AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(mqtt_broker(binary, folder / "broker"))
        except (ProgramError, OSError) as error:
            yield None, [f"MQTT       not available: the broker did not start: {error}"]
            return
        yield port, [f"MQTT       mosquitto_sub -h 127.0.0.1 -p {port} -v -t 'correlator/v1/{INSTANCE}/#'"]


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Raise a lone error without its group, so that the caller can catch it by its type."""
    try:
        yield
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from None
        raise


@contextlib.contextmanager
def chosen_port(asked: int | None, usual: int = PORT) -> Iterator[tuple[int, list[str]]]:
    """Hold a port to listen on (`asked`, else `usual`, else a free one); yield it and the line to print about it."""
    wanted, notes = usual if asked is None else asked, list[str]()
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(held_port(wanted))
        except OSError as error:
            if asked is not None:
                raise CorrelatorError(
                    f"cannot listen on port {asked}: {error.strerror}. Another program may use it"
                    f" (ss -ltnp 'sport = :{asked}'). Choose another --port, or --port 0 for any free one"
                ) from None
            port = stack.enter_context(held_port())
            notes.append(f"port       {port}, because {wanted} is unavailable: {error.strerror}")
        yield port, notes


def _configure(folder: Path, port: int, mqtt_port: int | None, origins: Sequence[str]) -> Path:
    """Write the daemon's configuration, which `tap` and `doctor` read too, and return its path."""
    tables: dict[str, Mapping[str, object]] = {
        "database": {"url": f"sqlite://{quote(str(folder / DATABASE))}", "timezone": ZONE},
        "http": {"listen": f"127.0.0.1:{port}", "allowed_origins": list(origins)},
        "state": {"directory": str(folder / "state")},
        "log": {"level": "warning"},
    }
    if mqtt_port is not None:
        tables["mqtt"] = {"url": f"mqtt://127.0.0.1:{mqtt_port}", "instance": INSTANCE}
    return write_configuration(folder, tables)


def write_configuration(folder: Path, tables: Mapping[str, Mapping[str, object]]) -> Path:
    """Write the tables as `correlator.toml` into the folder, and return its path."""
    file = folder / "correlator.toml"
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in t.items()) for name, t in tables.items()
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file
