"""The program as its users run it: a process, with its settings in the environment, asked over its own endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import aiohttp

from tests.support import fork_server
from tests.support.client_fold import apply_message
from tests.support.eventually import PATIENCE, eventually
from tests.support.fork_server import ForkedProcess
from tests.support.paths import REPOSITORY
from tests.support.servers import free_port
from tests.support.terminal import ended
from tests.support.yardstick import megabytes


class Daemon:
    """One process. `settings` are keys like ``database__url``. Log lines go to `folder`/log.

    `environment`: what else it finds in its environment.

    As a context it is ready, and ended at the end of the block.

    With `http__tls_cert` it is asked over TLS, whatever its certificate.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, /, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http{'s' * ('http__tls_cert' in settings)}://127.0.0.1:{self.port}"
        self.folder = folder
        defaults = {
            "http__listen": f"127.0.0.1:{self.port}",
            "state__directory": folder / "state",
            "database__timezone": "UTC",
            "mqtt__instance": "test",
            "http__unknown_id_wait": 0,  # many tests ask for IDs that nobody knows
        }
        self._own = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CORRELATOR_")},
            **{f"CORRELATOR_{k.upper()}": str(v) for k, v in (defaults | settings).items()},
        }
        self.becomes(environment or {})
        self._process: asyncio.subprocess.Process | ForkedProcess | None = None
        self.session: aiohttp.ClientSession | None = None
        self.command = "run"
        self.arguments: tuple[str, ...] = ()

    def becomes(self, environment: Mapping[str, str]) -> None:
        """From the next start on it finds this in its environment, such as another version of the program."""
        self.environ = {**self._own, **environment}

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self, *, ready: bool = True, complete: bool = True, within: float = PATIENCE) -> None:
        """Start the process, and wait as `until` does."""
        await self.launch()
        await self.until(ready=ready, complete=complete, within=within)

    async def until(self, *, ready: bool = True, complete: bool = True, within: float = PATIENCE) -> None:
        """Until it is `ready`, and has read the log's past unless not `complete`; else until it answers.

        The error has the log of the process, and comes at once if that has ended.
        """
        try:
            await eventually(self._is_ready if ready else self._is_live, within=within)
            if ready and complete:
                await eventually(self._is_complete, within=within)
        except Exception as error:
            error.add_note(self.log())
            raise

    async def launch(self) -> None:
        """Start the process, and wait for nothing."""
        log = (self.folder / "log").open("ab")
        with log:
            self._process = await self._start([self.command, *self.arguments], log)
        if self.session is None:
            connector = aiohttp.TCPConnector(ssl=False)
            # Of silence: a stream lasts as long as it says.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=70, sock_read=70)
            self.session = aiohttp.ClientSession(self.url, connector=connector, timeout=timeout)

    async def _start(self, arguments: Sequence[str], log: IO[bytes]) -> asyncio.subprocess.Process | ForkedProcess:
        if fork_server.can_start(self.environ):
            return await fork_server.start(arguments, self.environ, log.fileno())
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", *arguments),
            cwd=REPOSITORY,
            env=self.environ,
            stdout=log,
            stderr=log,
        )

    async def _is_live(self) -> bool:
        return (await self._health("live"))[0] == 200

    async def _is_ready(self) -> bool:
        return (await self._health("ready"))[0] == 200

    async def _health(self, kind: str) -> tuple[int, Any]:
        if not self.running:
            raise RuntimeError("the process has ended")
        return await self.get(f"/health/{kind}")

    async def _is_complete(self) -> bool:
        return "loading" not in (await self._health("ready"))[1]["parts"]["database"]

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """(status, parsed body)."""
        assert self.session is not None
        async with self.session.get(path, **options) as response:
            body = await response.read()
            return response.status, json.loads(body) if body else None

    async def pages(self, path: str, **query: Any) -> AsyncIterator[Any]:
        """The pages of a list of jobs, to its end."""
        while True:
            status, page = await self.get(path, params=query)
            assert status == 200, page
            yield page
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    async def text(self, path: str) -> str:
        """A body that is no JSON."""
        assert self.session is not None
        async with self.session.get(path) as response:
            return await response.text()

    async def sample(self, series: str) -> float:
        """The value of one series in /metrics, written as there; 0 if it is not there."""
        found = re.search(rf"^{re.escape(series)} (\S+)$", await self.text("/metrics"), re.MULTILINE)
        return float(found[1]) if found is not None else 0.0

    async def metric(self, name: str) -> float:
        """A metric without labels, or the sum over its labels."""
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", await self.text("/metrics"), re.MULTILINE)
        return sum(map(float, found))

    @property
    def pid(self) -> int:
        """The id of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """True from `start` on, until the process ends."""
        return self._process is not None and self._process.returncode is None

    def memory(self) -> float:
        """The resident size of the process, in MB of 10^6 bytes."""
        return megabytes(self.pid)

    async def job(self, name: str) -> Any:
        """The document of a job, by any ID; None for 404."""
        status, body = await self.get("/api/v1/jobs/" + quote(name, safe=""))
        return body if status == 200 else None

    async def saved(self) -> None:
        """Wait until a checkpoint has been written that began after this call."""
        clock = asyncio.get_running_loop().time
        began = clock()

        async def is_newer() -> bool:
            # The age is that at some moment after `elapsed`: however late the answer comes, it is not taken for newer.
            elapsed = clock() - began
            part = (await self.get("/health/ready"))[1]["parts"]["checkpoint"]
            ages = [part["age_seconds"], part.get("cluster_age_seconds", 0.0)]
            return bool(part["ok"]) and all(age is not None and age < elapsed - 0.001 for age in ages)

        await eventually(is_newer)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for the end of the process; the exit code."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    def hang_up(self) -> None:
        """SIGHUP: a reload."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

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
    async def socket(self, hello: dict[str, Any] | None = None, path: str = "/ws") -> AsyncIterator[Socket]:
        assert self.session is not None
        async with self.session.ws_connect(path) as ws:
            socket = Socket(ws)
            if hello is not None:
                await socket.say(hello)
                socket.welcome = await socket.until("welcome")
            yield socket


HELLO = {"type": "hello", "version": 1}


class Socket:
    """A websocket client that returns the messages of a frame one by one."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.welcome: dict[str, Any] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        """The documents by job id, folded from the messages of all subscriptions."""
        self._waiting: list[dict[str, Any]] = []

    async def say(self, message: dict[str, Any]) -> None:
        await self.ws.send_str(json.dumps(message))

    async def next(self, within: float = PATIENCE) -> dict[str, Any]:
        """The next message. Raises TimeoutError, or EOFError with the close code."""
        async with asyncio.timeout(within):
            if not self._waiting:
                frame = await self.ws.receive()
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    # close_code becomes 1006 if the connection is gone when the close frame is answered.
                    raise EOFError(frame.data if frame.type is aiohttp.WSMsgType.CLOSE else self.ws.close_code)
                parsed = json.loads(frame.data)
                self._waiting = parsed if isinstance(parsed, list) else [parsed]
            message = self._waiting.pop(0)
            apply_message(self.jobs, message)
            return message

    async def shown(self, within: float = PATIENCE) -> dict[str, Any]:
        """The next put or delta, with the whole document that it leaves as `job`."""
        async with asyncio.timeout(within):
            while (message := await self.next(within))["type"] not in ("put", "delta"):
                pass
            return {**message, "job": self.jobs[message["job_id"]]}

    async def until(self, kind: str, within: float = PATIENCE) -> dict[str, Any]:
        """The next message of a type; others are passed over."""
        async with asyncio.timeout(within):
            while (message := await self.next(within))["type"] != kind:
                pass
            return message

    async def snapshot(self, **subscribe: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Subscribe; (documents by job id, the synced message)."""
        await self.say({"type": "subscribe", "id": 1, **subscribe})
        jobs: dict[str, Any] = {}
        while (message := await self.next())["type"] != "synced":
            if message["type"] in ("snapshot", "put"):
                apply_message(jobs, message)
        return jobs, message


async def correlator(daemon: Daemon, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command with the settings of `daemon`."""
    return await ended(arguments, daemon.environ | environ)
