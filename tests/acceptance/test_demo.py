"""The demo as a program: every line that it prints works as it is printed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY
from tests.support.servers import free_port


@pytest.fixture
async def printed(tmp_path: Path) -> AsyncIterator[list[str]]:
    """The lines of a demo that runs, started as its own command is."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "correlator", "demo", "--port", str(free_port()), "--rate", "20",
        cwd=REPOSITORY, env=environ(tmp_path), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append((await process.stdout.readline()).decode().rstrip())
                assert lines[-1], lines
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            assert await process.wait() == 0


def environ(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRELATOR_")}
    return kept | {"HOME": str(home), "PYTHONUNBUFFERED": "1"}


async def said(command: str, home: Path) -> tuple[int | None, str]:
    """What a shell says to a line, up to its end, or up to its first line where it goes on."""
    text = command.replace("python -m correlator", f"{sys.executable} -m correlator")
    process = await asyncio.create_subprocess_shell(
        f"exec {text}", cwd=REPOSITORY, env=environ(home),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            first = await process.stdout.readline()
            if re.search(r"correlator (watch|tap)|curl .*-N|mosquitto_sub", text):
                return None, first.decode()
            text = (first + await process.stdout.read()).decode()
            return await process.wait(), text
    finally:
        if process.returncode is None:
            process.kill()
        await process.stdout.read()  # up to its end, where the pipe is closed
        await process.wait()


async def test_every_line_that_the_demo_prints_works(printed: list[str], tmp_path: Path):
    lines = {line[2:12].strip(): line[13:] for line in printed[1:]}
    assert {"one job", "terminal", "REST", "events", "websocket", "log rows", "check", "stop"} <= lines.keys()
    for name, command in lines.items():
        if re.match(r"(curl|mosquitto_sub|\S*python -m correlator|\S*/correlator) ", command):
            code, text = await said(command.replace("curl ", "curl --fail --silent --show-error "), tmp_path)
            assert code in (None, 0), (name, command, text)
            assert text.strip(), (name, command)
            assert "Error" not in text.splitlines()[0], (name, text)
            if name == "log rows":
                assert "  <- " in text, "a row of the log with its job"
            if name == "check":
                assert " 0 failures" in text
                assert "the daemon answers" in text


async def test_a_port_in_use_ends_the_program_with_1(tmp_path: Path):
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "correlator", "demo", "--port", str(port),
            cwd=REPOSITORY, env=environ(tmp_path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode().startswith(f"correlator: cannot listen on port {port}: ")
