"""The demo as a program, of one appliance and of a fleet: every line that it prints works, and all of it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import pytest

from correlator.demo import processes
from correlator.demo.processes import broker_binary, mqtt_broker, nats_binary
from tests.support.eventually import PATIENCE, eventually
from tests.support.paths import DEPLOY, REPOSITORY
from tests.support.servers import program

APPLIANCES = 2
START_WITHIN = 4 * PATIENCE
"""Seconds: six programs start at once, and then a seventh."""


@contextlib.asynccontextmanager
async def demo(home: Path, *options: str) -> AsyncIterator[list[str]]:
    """The lines that a demo prints when it has started. At the end it is interrupted, and has to end cleanly."""
    with errors(home).open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", "demo", "--port", "0", "--rate", "20", *options),
            cwd=REPOSITORY, env=environ(home), stdout=asyncio.subprocess.PIPE, stderr=stderr,
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
    assert str(home) not in await listed()


def errors(home: Path) -> Path:
    return home / "stderr"


def environ(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRELATOR_")}
    return kept | {"HOME": str(home), "PYTHONUNBUFFERED": "1"}


async def listed() -> str:
    """All processes."""
    command = ["ps", "-eww", "-o", "pid,args"]
    return (await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)).stdout


def named(lines: list[str], name: str) -> list[str]:
    return [line[13:].strip() for line in lines[1:] if line[2:12].strip() == name]


async def said(command: str, home: Path) -> str:
    """What a shell says to a line, up to its end, or up to its first line where it goes on."""
    text = command.replace("curl ", "curl --fail --silent --show-error ")
    text = re.sub(r"^python -m", f"{sys.executable} -m", text)
    process = await asyncio.create_subprocess_shell(
        f"exec {text}", cwd=REPOSITORY, env=environ(home),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_WITHIN):
            found = (await process.stdout.readline()).decode()
            if not re.search(r"correlator (watch|tap)|curl .*-N|mosquitto_sub", text):
                found += (await process.stdout.read()).decode()
                assert await process.wait() == 0, (command, found)
    finally:
        if process.returncode is None:
            process.kill()
        await process.stdout.read()  # up to its end, where the pipe is closed
        await process.wait()
    assert found.strip(), command
    assert "Error" not in found.splitlines()[0], (command, found)
    return found


async def test_every_line_that_the_demo_prints_works(tmp_path: Path):
    async with demo(tmp_path) as printed:
        lines = {line[2:12].strip(): line[13:] for line in printed[1:]}
        assert {"one job", "terminal", "REST", "events", "websocket", "log rows", "check", "stop"} <= lines.keys()
        for name, command in lines.items():
            if re.match(r"(curl|mosquitto_sub|\S*python -m correlator|\S*/correlator) ", command):
                text = await said(command, tmp_path)
                if name == "log rows":
                    assert "  <- " in text, "a row of the log with its job"
                if name == "check":
                    assert " 0 failures" in text
                    assert "the daemon answers" in text


@pytest.mark.timeout(400)
async def test_both_gateways_of_a_fleet_serve_every_appliance_and_each_line_works(tmp_path: Path):
    """The last one lets the standby take over. A part that is killed then ends no other."""
    fleet = ("--fleet", str(APPLIANCES), "--directory", str(tmp_path / "fleet"))
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with demo(tmp_path, *fleet) as printed, aiohttp.ClientSession(timeout=timeout) as session:
        gateways, collectors = named(printed, "gateway"), [line.split()[0] for line in named(printed, "collector")]
        assert printed[0] == gateways[0]
        assert (len(gateways), len(collectors)) == (2, APPLIANCES)

        async def get(url: str) -> Any:
            async with session.get(url) as response:
                assert response.status == 200
                return await response.json()

        async def complete(url: str) -> bool:
            found = (await get(f"{url}/api/v1/instances"))["instances"]
            states = {one["instance"]: (one["online"], one["database"]) for one in found}
            assert states == {"dc1": (True, "live"), "dc2": (True, "live")}
            jobs = (await get(f"{url}/api/v1/jobs?limit=100"))["jobs"]
            return {job["instance"] for job in jobs} == {"dc1", "dc2"}

        for url in gateways:
            await eventually(partial(complete, url), within=START_WITHIN)
        async with session.get(named(printed, "one of it")[0]) as response:
            assert response.status == 200
            assert "<html" in await response.text()
        for name in ("fleet", "terminal", "check"):
            (command,) = named(printed, name)
            text = await said(command, tmp_path)
            assert name != "check" or "holds the lease of dc1" in text

        (standby,), (command,) = named(printed, "standby"), named(printed, "take over")
        standby = standby.split()[0]
        with pytest.raises(AssertionError):
            await get(f"{standby}/api/v1/jobs")
        await asyncio.to_thread(subprocess.run, command, shell=True, check=True)
        await eventually(lambda: get(f"{standby}/api/v1/jobs"), within=START_WITHIN)
        await eventually(partial(complete, gateways[0]))
        programs = {"nats-server": "nats/nats-server.conf", "gateway 2": "gateway2/correlator.toml"}
        for line in (await listed()).splitlines():
            if str(tmp_path) in line and line.endswith(tuple(f"fleet/{file}" for file in programs.values())):
                os.kill(int(line.split()[0]), signal.SIGKILL)
        killed = ("the collector of dc1", *programs)
        await eventually(lambda: errors(tmp_path).read_text().count("start it again: ") == len(killed))
        assert all(f"{name} was killed by signal 9" in errors(tmp_path).read_text() for name in killed)
        for url in (gateways[0], standby, *collectors[1:]):
            await get(f"{url}/health/live")


NODE_RED_PROTOCOLS = {"3": "V31", "4": "V311", "5": "V5"}


def test_an_installed_mosquitto_is_the_broker_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "SYSTEM_PROGRAMS", str(tmp_path / "sbin"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert broker_binary() == nats_binary()
    (tmp_path / "sbin").mkdir()
    (tmp_path / "sbin/mosquitto").symlink_to(program("mosquitto"))
    assert broker_binary() == tmp_path / "sbin/mosquitto", "where Debian has it, which is not on every user's PATH"


@pytest.mark.parametrize("server", ["mosquitto", "nats-server"])
async def test_each_broker_of_the_demo_speaks_the_protocol_of_the_flow_for_node_red(tmp_path: Path, server: str):
    flow = json.loads((DEPLOY / "node-red/running-jobs.json").read_text())
    (written,) = {node["protocolVersion"] for node in flow if node["type"] == "mqtt-broker"}
    protocol = aiomqtt.ProtocolVersion[NODE_RED_PROTOCOLS[written]]
    binary = Path(program("mosquitto")) if server == "mosquitto" else nats_binary()
    assert binary is not None
    async with mqtt_broker(binary, tmp_path / "broker") as port:
        async with aiomqtt.Client("127.0.0.1", port, protocol=protocol) as client:
            await client.publish("correlator/v1/a/vm/x/state", b"{}", qos=1, retain=True)

        async def has_it() -> bool:
            """A broker may acknowledge a message before new subscribers get it."""
            async with aiomqtt.Client("127.0.0.1", port, protocol=protocol) as client:
                await client.subscribe("correlator/v1/+/vm/+/state", qos=1)
                async with asyncio.timeout(2):
                    return bool((await anext(aiter(client.messages))).payload == b"{}")

        await eventually(has_it)
