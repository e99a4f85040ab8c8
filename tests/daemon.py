"""The program as its users run it: a process, with its settings in the environment, asked over its own endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.servers import eventually, free_port

REPOSITORY = Path(__file__).parent.parent


class Daemon:
    """One process. `settings` are keys like ``database__url``. Log lines go to `folder`/log."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        defaults = {
            "http__listen": f"127.0.0.1:{self.port}",
            "state__directory": folder / "state",
            "database__timezone": "UTC",
            "mqtt__instance": "test",
        }
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CORRELATOR_")},
            **{f"CORRELATOR_{k.upper()}": str(v) for k, v in (defaults | settings).items()},
        }
        self._process: asyncio.subprocess.Process | None = None
        self.session: aiohttp.ClientSession | None = None
        self.arguments: tuple[str, ...] = ()

    async def start(self, *, ready: bool = True, within: float = 20.0) -> None:
        log = (self.folder / "log").open("ab")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "correlator",
                "run",
                *self.arguments,
                cwd=REPOSITORY,
                env=self._environ,
                stdout=log,
                stderr=log,
            )
        if self.session is None:
            self.session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=70))
        await eventually(self._is_ready if ready else self._is_live, within=within)

    async def _is_live(self) -> bool:
        return (await self.get("/health/live"))[0] == 200

    async def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log()
        return (await self.get("/health/ready"))[0] == 200

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """(status, parsed body)."""
        assert self.session is not None
        async with self.session.get(path, **options) as response:
            body = await response.read()
            return response.status, json.loads(body) if body else None

    async def text(self, path: str) -> str:
        """A body that is no JSON."""
        assert self.session is not None
        async with self.session.get(path) as response:
            return await response.text()

    def memory(self) -> float:
        """The resident size of the process, in MB of 10^6 bytes."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmRSS:"))

    async def job(self, name: str) -> Any:
        """The document of a job, by any ID; None for 404."""
        status, body = await self.get("/api/v1/jobs/" + quote(name, safe=""))
        return body if status == 200 else None

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            return await self._process.wait()

    async def kill(self) -> int:
        """SIGKILL; the exit code."""
        assert self._process is not None
        self._process.kill()
        return await self._process.wait()

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    @contextlib.asynccontextmanager
    async def socket(self, hello: dict[str, Any] | None = None) -> AsyncIterator[Socket]:
        assert self.session is not None
        async with self.session.ws_connect("/ws") as ws:
            socket = Socket(ws)
            if hello is not None:
                await socket.say(hello)
                socket.welcome = await socket.until("welcome")
            yield socket


HELLO = {"type": "hello", "version": 1}


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


class Socket:
    """A websocket client that takes the messages of a frame one by one."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.welcome: dict[str, Any] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        """What it has been told, folded: documents by job id, whatever subscription they came by."""
        self._waiting: list[dict[str, Any]] = []

    async def say(self, message: dict[str, Any]) -> None:
        await self.ws.send_str(json.dumps(message))

    async def next(self, within: float = 5.0) -> dict[str, Any]:
        """The next message. Raises TimeoutError, or EOFError with the close code."""
        async with asyncio.timeout(within):
            if not self._waiting:
                message = await self.ws.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    # close_code turns into 1006 where the answer to a close frame finds nobody any more.
                    raise EOFError(message.data if message.type is aiohttp.WSMsgType.CLOSE else self.ws.close_code)
                parsed = json.loads(message.data)
                self._waiting = parsed if isinstance(parsed, list) else [parsed]
            told = self._waiting.pop(0)
            self._fold(told)
            return told

    def _fold(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "snapshot":
            self.jobs |= {j["job_id"]: j for j in message["jobs"]}
        elif kind == "put":
            self.jobs[message["job_id"]] = message["job"]
        elif kind == "delta":
            before = self.jobs[message["job_id"]]
            assert before["rev"] == message["base"], message
            self.jobs[message["job_id"]] = merge(before, message["set"])
            assert self.jobs[message["job_id"]]["rev"] == message["rev"]
        elif kind == "delete":
            self.jobs.pop(message["job_id"], None)

    async def shown(self, within: float = 5.0) -> dict[str, Any]:
        """The next put or delta, with the whole document that it leaves as `job`."""
        async with asyncio.timeout(within):
            while (message := await self.next(within))["type"] not in ("put", "delta"):
                pass
            return {**message, "job": self.jobs[message["job_id"]]}

    async def until(self, kind: str, within: float = 5.0) -> dict[str, Any]:
        """The next message of a type; others are passed over."""
        async with asyncio.timeout(within):
            while (message := await self.next(within))["type"] != kind:
                pass
            return message

    async def snapshot(self, **subscribe: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Subscribe; (documents by job id, the synced message)."""
        await self.say({"type": "subscribe", "id": 1, **subscribe})
        jobs: dict[str, Any] = {}
        while (message := await self.next(20))["type"] != "synced":
            if message["type"] == "snapshot":
                jobs |= {j["job_id"]: j for j in message["jobs"]}
            elif message["type"] == "put":
                jobs[message["job_id"]] = message["job"]
        return jobs, message
