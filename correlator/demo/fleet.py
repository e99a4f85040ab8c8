"""The demo of a fleet: simulated appliances, a collector for each, a standby of the first, a NATS server, two gateways.

The appliances are written to by this process. The collectors, the server and the gateways are the programs themselves,
each in a process of its own, as on hosts of their own. Invariants: all of them use loopback ports and one folder only,
and have ended when `fleet_main` returns. Standard output begins with the URL of the first gateway, alone on its line.
"""

import asyncio
import contextlib
import os
import secrets
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote
from zoneinfo import ZoneInfo

import aiohttp
import click
from msgspec import Struct

from correlator.config.schema import Cluster, NatsUrl
from correlator.demo.processes import Program, accepts, held_port, nats_binary, nats_server, running
from correlator.demo.run import (
    DATABASE,
    ZONE,
    chosen_port,
    interruption,
    one_error,
    program_name,
    working_folder,
    write_configuration,
)
from correlator.demo.traffic import Traffic, appliance
from correlator.errors import CorrelatorError
from correlator.tasks import TaskGroup, end_tasks

GATEWAYS = 2
CONNECT_WITHIN = 10.0
"""Seconds to connect to the NATS server that has started."""

Tables = Mapping[str, Mapping[str, object]]


class _Appliance(Struct, frozen=True):
    """One simulated appliance, its database, and the URL of its collector."""

    name: str
    traffic: Traffic
    database: Path
    collector: str


async def fleet_main(
    appliances: int,
    port: int | None,
    rate: float,
    directory: Path | None,
    origins: Sequence[str] = (),
    *,
    seed: int | None = None,
) -> None:
    """Run the demo of a fleet until Ctrl-C, SIGTERM or cancellation.

    Args:
        appliances: How many, named dc1, dc2 and so on.
        port: The port of the first gateway. None uses 8686, or a free one if that is in use.
        rate: Seconds of a scenario per real second.
        directory: Keeps the databases and the stream for the next demo. None uses a folder that is deleted at the end.
        origins: Of pages that may read from the gateways, besides their own.
        seed: The same seed makes the same jobs; it requires an empty directory.

    Raises:
        CorrelatorError: nats-server is not installed, the port is in use, or a program did not start.
    """
    binary = nats_binary()
    if binary is None:
        raise CorrelatorError(
            "the demo of a fleet needs nats-server: in a clone of the sources, make demo ARGS='--fleet 3' installs it"
        )
    seed = secrets.randbits(32) if seed is None else seed
    with (
        working_folder(directory) as folder,
        interruption() as interrupted,
        one_error(),
        chosen_port(port) as (listen, notes),
    ):
        async with TaskGroup() as group:
            running_fleet = group.create_task(
                _run(binary, folder, appliances, listen, rate, seed, notes, origins), name="demo-fleet"
            )
            interrupting = group.create_task(interrupted.wait(), name="demo-interrupt")
            await asyncio.wait({running_fleet, interrupting}, return_when=asyncio.FIRST_COMPLETED)
            running_fleet.cancel()
            interrupting.cancel()


async def _run(
    binary: Path,
    folder: Path,
    appliances: int,
    port: int,
    rate: float,
    seed: int,
    notes: list[str],
    origins: Sequence[str],
) -> None:
    """Start everything, print the addresses, and run until cancelled. Raises: CorrelatorError if one does not start."""
    with one_error():
        async with contextlib.AsyncExitStack() as stack, TaskGroup() as group:
            # 1. The cluster, as the others need it.
            cluster = stack.enter_context(held_port())
            urls = [_url(port), *(_url(stack.enter_context(held_port())) for _ in range(GATEWAYS - 1))]
            nats = await stack.enter_async_context(nats_server(binary, folder / "nats", cluster, {}))
            await nats.usable(partial(accepts, cluster))
            await _create_streams(cluster)
            # 2. The appliances, and all programs at once.
            fleet = [
                _Appliance(
                    name := f"dc{number}",
                    await _play(stack, group, folder / name, rate, seed + number),
                    folder / name / DATABASE,
                    _url(stack.enter_context(held_port())),
                )
                for number in range(1, appliances + 1)
            ]
            starting = [
                _start(
                    stack,
                    f"the collector of {one.name}",
                    "run",
                    folder / one.name,
                    _collector(folder / one.name, one, one.collector, cluster),
                )
                for one in fleet
            ]
            starting += [
                _start(
                    stack, f"gateway {number}", "gateway", folder / f"gateway{number}", _gateway(url, cluster, origins)
                )
                for number, url in enumerate(urls, start=1)
            ]
            programs = [await start for start in starting]
            # 3. All of them are ready, and there is a job to show.
            await _ready(programs, [*(one.collector for one in fleet), *urls])
            first = fleet[0]
            await first.traffic.first()
            # 4. The standby, now that the first appliance has an active collector.
            place, at = folder / f"{first.name}-standby", stack.enter_context(held_port())
            name, tables = f"the standby of {first.name}", _collector(place, first, _url(at), cluster)
            standby = await _start(stack, name, "run", place, tables)
            await standby.usable(partial(accepts, at))
            _announce(fleet, _url(at), programs[0].pid, urls, cluster, folder, notes)
            # 5. One that ends ends no other, as on hosts of their own.
            for program in (nats, *programs, standby):
                group.create_task(_report_end(program), name="demo-program")


async def _create_streams(cluster: int) -> None:
    """Create the streams, as `correlator cluster create` does."""
    # A demo without a fleet has no client of NATS.
    from correlator.cluster import streams  # noqa: PLC0415
    from correlator.cluster.connection import Connection  # noqa: PLC0415

    settings = Cluster(url=NatsUrl.parse(f"nats://127.0.0.1:{cluster}"), instance="demo")
    connection = Connection(settings, "provisioner")
    running = asyncio.create_task(connection.run())
    try:
        await connection.connect(CONNECT_WITHIN)
        await streams.create(connection, settings.replicas)
    finally:
        await end_tasks({running})


async def _report_end(program: Program) -> None:
    how = await program.end()
    click.echo(f"  ended      {how}\n  the others go on; start it again: {program.command}", err=True)


async def _play(stack: contextlib.AsyncExitStack, group: TaskGroup, folder: Path, rate: float, seed: int) -> Traffic:
    """Create an appliance's database, and write jobs into it in tasks of `group`."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    writers, traffic = await stack.enter_async_context(appliance(folder / DATABASE, ZoneInfo(ZONE), rate, seed))
    group.create_task(writers.run(), name="demo-writers")
    group.create_task(traffic.run(), name="demo-traffic")
    return traffic


async def _start(stack: contextlib.AsyncExitStack, name: str, command: str, folder: Path, tables: Tables) -> Program:
    """Start a command of this program with a configuration of its own."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    file = await asyncio.to_thread(write_configuration, folder, tables)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CORRELATOR_")}
    whole = [sys.executable, "-m", "correlator", command, "--config", str(file)]
    return await stack.enter_async_context(running(name, whole, folder / "log", environ))


async def _ready(programs: Sequence[Program], urls: Sequence[str]) -> None:
    """Wait until each program, which serves at the URL in the same place, has loaded."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def loaded(url: str) -> bool:
            try:
                async with session.get(f"{url}/health/ready") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        for program, url in zip(programs, urls, strict=True):
            await program.usable(partial(loaded, url))


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _collector(place: Path, appliance: _Appliance, url: str, cluster: int) -> Tables:
    """The configuration of a collector that serves at `url`, with its state in `place`."""
    return {
        "database": {"url": f"sqlite://{quote(str(appliance.database))}", "timezone": ZONE},
        "http": {"listen": url.removeprefix("http://")},
        "cluster": {"url": f"nats://127.0.0.1:{cluster}", "instance": appliance.name},
        "state": {"directory": str(place / "state")},
        "log": {"level": "warning"},
    }


def _gateway(url: str, cluster: int, origins: Sequence[str]) -> Tables:
    return {
        "http": {"listen": url.removeprefix("http://"), "allowed_origins": list(origins)},
        "cluster": {"url": f"nats://127.0.0.1:{cluster}"},
        "log": {"level": "warning"},
    }


def _announce(
    fleet: Sequence[_Appliance],
    standby: str,
    active: int,
    urls: Sequence[str],
    cluster: int,
    folder: Path,
    notes: list[str],
) -> None:
    """Print the first gateway's URL, then one line for each other address and for what to try.

    `standby`: the URL of that of the first appliance, whose active collector is the process `active`.
    """
    first = fleet[0]
    job = quote(first.traffic.running_id(), safe="")
    program = program_name()
    lines = [
        urls[0],
        *(f"  gateway    {url}" for url in urls),
        *(f"  collector  {one.collector}  the appliance {one.name}" for one in fleet),
        f"  standby    {standby}  the appliance {first.name}",
        f"  NATS       nats://127.0.0.1:{cluster}",
        f"  fleet      curl {urls[0]}/api/v1/instances",
        f"  one of it  {urls[0]}/i/{first.name}/",
        f"  terminal   {program} jobs --url {urls[0]}",
        f"  one job    {program} watch --url {urls[-1]} {job}",
        f"  take over  kill -9 {active}  # the active collector of {first.name}: the standby goes on after 3 s",
        f"  check      {program} doctor --config {shlex.quote(str(folder / first.name / 'correlator.toml'))}",
        *(f"  {note}" for note in notes),
        "  stop       Ctrl-C",
    ]
    click.echo("\n".join(lines))
