"""Node-RED with the flow that everybody builds: poll `id > last` and pass on what comes, over a websocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.harness import REPOSITORY
from benchmarks.rows.latency import ROW
from tests.support.mariadb import Database
from tests.support.servers import free_port

FOLDER = REPOSITORY / "build" / "node-red"
PACKAGES = ("node-red", "node-red-node-mysql")

ASK = """
msg.topic = "SELECT id, message FROM log_events WHERE id > " + (flow.get("last") || 0) + " ORDER BY id";
return msg;
"""
TAKE = """
if (msg.payload.length) {
  flow.set("last", msg.payload[msg.payload.length - 1].id);
  msg.payload = msg.payload.map(row => row.message);
  return msg;
}
"""
START = "msg.topic = \"SELECT MAX(id) AS id, '' AS message FROM log_events\"; return msg;"


def installed() -> Path:
    """Node-RED's program; installed by npm into build/ where it is not."""
    program = FOLDER / "node_modules" / "node-red" / "red.js"
    if not program.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("Node-RED needs npm: Debian's packages nodejs and npm")
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "package.json").write_text('{"private": true}\n')
        subprocess.run(
            [npm, "install", "--no-fund", "--no-audit", "--no-package-lock", "--loglevel=error", *PACKAGES],
            cwd=FOLDER,
            check=True,
            timeout=600,
        )
    return program


def versions() -> str:
    versions = [json.loads((FOLDER / "node_modules" / p / "package.json").read_text())["version"] for p in PACKAGES]
    return ", ".join(f"{name} {version}" for name, version in zip(PACKAGES, versions, strict=True))


def flows(database: Database, every: float) -> list[dict[str, Any]]:
    """inject → ask → mysql → take → websocket."""
    server = {"id": "db", "type": "MySQLdatabase", "name": "", "host": "127.0.0.1", "port": str(database.server.port)}
    return [
        {"id": "tab", "type": "tab", "label": "tail", "disabled": False},
        {
            **server,
            "db": database.name,
            "tz": "",
            "charset": "UTF8MB4",
            "credentials": {"user": "root", "password": ""},
        },
        {"id": "out", "type": "websocket-listener", "path": "/rows", "wholemsg": "false"},
        _node("once", "inject", {"repeat": "", "once": True, "onceDelay": 0.1, "props": []}, "start"),
        _node("start", "function", {"func": START, "outputs": 1}, "first"),
        _node("first", "mysql", {"mydb": "db"}, "take"),
        _node("observed_at", "inject", {"repeat": str(every), "once": True, "onceDelay": 1, "props": []}, "ask"),
        _node("ask", "function", {"func": ASK, "outputs": 1}, "read"),
        _node("read", "mysql", {"mydb": "db"}, "take"),
        _node("take", "function", {"func": TAKE, "outputs": 1}, "send"),
        _node("send", "websocket out", {"server": "out", "client": ""}),
    ]


def _node(name: str, kind: str, more: dict[str, Any], *to: str) -> dict[str, Any]:
    return {"id": name, "type": kind, "z": "tab", "name": name, "x": 100, "y": 100, "wires": [list(to)], **more}


@contextlib.asynccontextmanager
async def running(database: Database, every: float) -> AsyncIterator[list[tuple[float, int]]]:
    """Node-RED polling `every` seconds; the list that it yields fills with (when, which row)."""
    program, port = installed(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "flows.json").write_text(json.dumps(flows(database, every)))
        credentials = {"db": {"user": "root", "password": ""}}
        (Path(folder) / "flows_cred.json").write_text(json.dumps(credentials))
        settings = (
            f"module.exports = {{uiHost: '127.0.0.1', uiPort: {port}, flowFile: 'flows.json', credentialSecret: false,"
            f" nodesDir: {json.dumps(str(FOLDER / 'node_modules' / 'node-red-node-mysql'))},"
            " httpAdminRoot: false, telemetry: {enabled: false}, logging: {console: {level: 'warn'}}};\n"
        )
        (Path(folder) / "settings.js").write_text(settings)
        with (Path(folder) / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                "node", str(program), "-u", folder, "-s", f"{folder}/settings.js", stdout=log, stderr=log
            )
        came: list[tuple[float, int]] = []
        try:
            async with aiohttp.ClientSession() as session, await _connected(session, port, folder) as socket:
                reading = asyncio.create_task(_read(socket, came))
                await asyncio.sleep(2.0)  # its own start: it has queried the last row
                yield came
                reading.cancel()
        finally:
            process.terminate()
            await process.wait()


async def _connected(session: aiohttp.ClientSession, port: int, folder: str) -> Any:
    deadline = time.monotonic() + 30
    while True:
        try:
            return await session.ws_connect(f"http://127.0.0.1:{port}/rows", max_msg_size=0)
        except aiohttp.ClientError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Node-RED does not serve: {(Path(folder) / 'log').read_text()[-2000:]}") from None
            await asyncio.sleep(0.1)


async def _read(socket: aiohttp.ClientWebSocketResponse, came: list[tuple[float, int]]) -> None:
    async for message in socket:
        at = time.monotonic()
        came += [(at, int(n)) for n in re.findall(ROW, message.data)]
