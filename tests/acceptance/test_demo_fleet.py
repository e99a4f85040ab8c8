"""The demo of a fleet as a program: what it prints works, and nothing of it is left when it has ended."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.support.eventually import PATIENCE, eventually
from tests.support.paths import REPOSITORY

APPLIANCES = 2
START_WITHIN = 4 * PATIENCE
"""Seconds: six programs start at once, and then a seventh."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def printed(tmp_path: Path) -> AsyncIterator[list[str]]:
    """The lines of a fleet that runs. After the test it is interrupted, and has to end cleanly."""
    with errors(tmp_path).open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", "demo", "--fleet", str(APPLIANCES), "--port", "0", "--rate", "20"),
            *("--directory", str(tmp_path / "fleet")),
            cwd=REPOSITORY, env=environ(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(START_WITHIN):
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append((await process.stdout.readline()).decode().rstrip())
                assert lines[-1], lines
        yield lines
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(START_WITHIN):
            assert await process.wait() == 0
    listed = await asyncio.to_thread(
        subprocess.run, ["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in listed.stdout


def errors(folder: Path) -> Path:
    return folder / "stderr"


def environ(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRELATOR_")}
    return kept | {"HOME": str(home), "PYTHONUNBUFFERED": "1"}


def named(lines: list[str], name: str) -> list[str]:
    return [line[13:].strip() for line in lines[1:] if line[2:12].strip() == name]


async def test_both_gateways_serve_every_appliance_and_each_line_works(printed: list[str], tmp_path: Path):
    gateways = named(printed, "gateway")
    assert printed[0] == gateways[0]
    assert len(gateways) == 2
    assert len(named(printed, "collector")) == APPLIANCES
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:

        async def instances(url: str) -> dict[str, tuple[bool, str]]:
            async with session.get(f"{url}/api/v1/instances") as response:
                found = (await response.json())["instances"]
                return {one["instance"]: (one["online"], one["database"]) for one in found}

        async def complete(url: str) -> bool:
            return await instances(url) == {"dc1": (True, "live"), "dc2": (True, "live")}

        async def jobs(url: str) -> set[str]:
            async with session.get(f"{url}/api/v1/jobs", params={"limit": 100}) as response:
                return {job["instance"] for job in (await response.json())["jobs"]}

        async def both(url: str) -> bool:
            return await jobs(url) == {"dc1", "dc2"}

        for url in gateways:
            await eventually(partial(complete, url), within=START_WITHIN)
            await eventually(partial(both, url))
        async with session.get(named(printed, "one of it")[0]) as response:
            assert response.status == 200
            assert "<html" in await response.text()
    for name in ("fleet", "terminal", "check"):
        (command,) = named(printed, name)
        command = re.sub(r"^python -m", f"{sys.executable} -m", command)
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command.replace("curl ", "curl --fail --silent --show-error ")),
            cwd=REPOSITORY, env=environ(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(START_WITHIN):
            said, _ = await process.communicate()
        assert process.returncode == 0, (command, said.decode())
        if name == "check":
            assert b"holds the lease of dc1" in said


async def test_the_printed_command_lets_the_standby_take_over_and_a_killed_part_ends_no_other(
    printed: list[str], tmp_path: Path
):
    (standby,), (command,) = (named(printed, name) for name in ("standby", "take over"))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:

        async def serves() -> bool:
            async with session.get(f"{standby.split()[0]}/api/v1/jobs") as response:
                return response.status == 200

        assert not await serves()
        await asyncio.to_thread(subprocess.run, command, shell=True, check=True)
        await eventually(serves, within=START_WITHIN)
        collectors = [line.split()[0] for line in named(printed, "collector")]
        async with session.get(f"{named(printed, 'gateway')[0]}/api/v1/instances") as response:
            assert [one["online"] for one in (await response.json())["instances"]] == [True, True]
    listed = await asyncio.to_thread(
        subprocess.run, ["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True
    )
    programs = {"nats-server": "nats/nats-server.conf", "gateway 2": "gateway2/correlator.toml"}
    for file in programs.values():
        (found,) = (
            line for line in listed.stdout.splitlines() if line.endswith(f"fleet/{file}") and str(tmp_path) in line
        )
        os.kill(int(found.split()[0]), signal.SIGKILL)
    said = errors(tmp_path)
    killed = ("the collector of dc1", *programs)
    await eventually(lambda: said.read_text().count("start it again: ") == len(killed))
    assert all(f"{name} was killed by signal 9" in said.read_text() for name in killed)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        for url in (named(printed, "gateway")[0], standby.split()[0], *collectors[1:]):
            async with session.get(f"{url}/health/live") as response:
                assert response.status == 200


async def test_a_port_in_use_ends_the_fleet_before_anything_starts(tmp_path: Path):
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "correlator", "demo", "--fleet", "2", "--port", str(port),
            cwd=REPOSITORY, env=environ(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode().startswith(f"correlator: cannot listen on port {port}: ")
