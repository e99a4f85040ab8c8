"""A correlator without a daemon: the page's files under the real headers, and a websocket that says what a test wants.

What always holds: a reader gets the protocol's messages in the protocol's order, a document only with a higher `rev`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from collections.abc import AsyncIterator, Iterable
from importlib import resources
from typing import Any

from aiohttp import WSMsgType, web

from correlator.sinks.http import HEADERS
from correlator.web import files
from tests.servers import free_port

Document = dict[str, Any]


def stamp(ago: float = 0.0) -> str:
    """RFC 3339, `ago` seconds before now."""
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def step(
    seq: int, name: str, status: str = "completed", *, ago: float = 60.0, took: float = 5.0, **more: Any
) -> Document:
    ended = None if status == "running" else stamp(ago - took)
    return {
        "seq": seq,
        "name": name,
        "status": status,
        "started_at": stamp(ago),
        "ended_at": ended,
        "duration_seconds": took,
        "error": None,
    } | more


def document(job_id: str, status: str = "running", *, ago: float = 60.0, took: float = 30.0, **more: Any) -> Document:
    """A whole job document that started `ago` seconds before now; `steps` may be a list."""
    steps = more.pop("steps", [])
    by_id = steps if isinstance(steps, dict) else {str(3000 + each["seq"]): each for each in steps}
    counts = {
        s: sum(each["status"] == s for each in by_id.values()) for s in ("completed", "failed", "running", "skipped")
    }
    terminal = status in ("completed", "failed", "cancelled")
    return {
        "job_id": job_id,
        "external_ids": [f"unified-live-failover-{job_id}-1758553933"],
        "context_id": None,
        "parent_job_id": None,
        "child_job_ids": [],
        "job_type": "failover",
        "operation": "unified-live-failover",
        "category": "failover",
        "owner": "system",
        "status": status,
        "terminal": terminal,
        "error": None,
        "started_at": stamp(ago),
        "ended_at": stamp(ago - took) if terminal else None,
        "updated_at": stamp(),
        "duration_seconds": took if terminal else ago,
        "progress": {
            "percent": 100.0 if status == "completed" else 40.0,
            "basis": "steps",
            "steps_done": counts["completed"],
            "steps_failed": counts["failed"],
            "steps_running": counts["running"],
            "steps_skipped": counts["skipped"],
            "steps_seen": len(by_id),
        },
        "current_step": next((each["name"] for each in by_id.values() if each["status"] == "running"), None),
        "steps": by_id,
        "stalled": False,
        "last_event_at": stamp(1.0),
        "last_message": None,
        "warnings": 0,
        "errors": 0,
        "metadata": {"vm_name": f"vm-{job_id}"},
        "source": "joblog",
        "rev": 1,
    } | more


class FakeCorrelator:
    """`jobs` is what a snapshot has; `put`, `say` and `log` tell those who are connected."""

    def __init__(self, *, token: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.jobs: dict[str, Document] = {}
        self.events: dict[str, list[Document]] = {}
        self.token = token
        self.seq = 100
        self.epoch = "one"
        self._readers: dict[web.WebSocketResponse, dict[int, Document]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Serves, also again after `stop`: then as another run, with another epoch."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/ws", self._talk),
                web.get("/api/v1/jobs/{id:.+}/events", self._history),
                web.get("/api/v1/jobs", self._hang_up),
                *(web.get(path, self._file) for path in files()),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            for reader in list(self._readers):
                await reader.close(code=1012)
            await self._runner.cleanup()
            self._runner = None
            self.epoch += "+"

    @property
    def subscriptions(self) -> list[Document]:
        """What readers want now."""
        return [wanted for subs in self._readers.values() for wanted in subs.values()]

    async def put(self, *jobs: Document) -> None:
        """These documents from now on, each with the next `rev`; one frame."""
        messages: dict[web.WebSocketResponse, list[Document]] = {}
        for given in jobs:
            self.seq += 1
            job = given | {"rev": self.seq, "updated_at": stamp()}
            self.jobs[job["job_id"]] = job
            for reader, subs in self._readers.items():
                concerned = [sub for sub, wanted in subs.items() if _matches(job, wanted)]
                if concerned:
                    message = {
                        "type": "put",
                        "sub": concerned,
                        "seq": self.seq,
                        "job_id": job["job_id"],
                        "rev": self.seq,
                    }
                    messages.setdefault(reader, []).append(message | {"job": job})
        for reader, said in messages.items():
            await reader.send_str(json.dumps(said))

    async def log(self, job_id: str, *lines: Document, history: bool = True) -> None:
        """New log lines, to those who follow this job's and, unless told otherwise, to its history."""
        if history:
            self.events.setdefault(job_id, []).extend(lines)
        for reader, subs in self._readers.items():
            concerned = [s for s, wanted in subs.items() if wanted.get("logs") and _matches(self.jobs[job_id], wanted)]
            if concerned:
                said = [{"type": "log", "sub": concerned, "job_id": job_id} | line for line in lines]
                await reader.send_str(json.dumps(said))

    async def say(self, **message: Any) -> None:
        for reader in list(self._readers):
            await reader.send_str(json.dumps(message))

    async def _file(self, request: web.Request) -> web.Response:
        name, content_type = files()[request.path]
        body = resources.files("correlator.web").joinpath(name).read_bytes()
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    async def _hang_up(self, request: web.Request) -> web.Response:
        """Only the websocket is here: a client that looks for another way is to find none, and stay."""
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"title": "Unauthorized"}, status=401)
        levels = ["DEBUG", "INFO", "WARN", "ERROR"]
        least = levels.index(request.query.get("level", "DEBUG"))
        lines = [e for e in self.events.get(request.match_info["id"], []) if levels.index(e["level"]) >= least]
        after, limit = int(request.query.get("after", 0)), int(request.query.get("limit", 100))
        page = lines[after : after + limit]
        return web.json_response({"events": page, "next_after": str(after + len(page))})

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            await self._listen(socket)
        self._readers.pop(socket, None)
        return socket

    async def _listen(self, socket: web.WebSocketResponse) -> None:
        async for frame in socket:
            if frame.type is not WSMsgType.TEXT:
                return
            message = json.loads(frame.data)
            match message["type"]:
                case "hello" if self.token is not None and message.get("token") != self.token:
                    await socket.close(code=4401, message=b"a token is needed")
                case "hello":
                    self._readers[socket] = {}
                    welcome = {
                        "type": "welcome",
                        "epoch": self.epoch,
                        "seq": self.seq,
                        "resumed": False,
                        "ping_seconds": 25,
                    }
                    status = {"type": "status", "source": "live", "lag_seconds": 0.0}
                    await socket.send_str(json.dumps([welcome, status]))
                case "subscribe":
                    self._readers[socket][message["id"]] = message
                    await socket.send_str(json.dumps(list(self._snapshot(message))))
                case "unsubscribe":
                    self._readers[socket].pop(message["id"], None)
                case "ping":
                    await socket.send_str('{"type": "pong"}')

    def _snapshot(self, wanted: Document) -> Iterable[Document]:
        jobs = [job for job in self.jobs.values() if _matches(job, wanted)]
        about = {"sub": wanted["id"], "seq": self.seq}
        yield {"type": "snapshot", "more": False, "jobs": jobs} | about
        known = {name for job in jobs for name in _names(job)}
        unknown = [name for name in wanted.get("jobs") or [] if name not in known]
        yield {"type": "synced", "count": len(jobs), "unknown": unknown} | about


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[FakeCorrelator]:
    fake = FakeCorrelator(**options)
    await fake.start()
    try:
        yield fake
    finally:
        async with asyncio.timeout(5):
            await fake.stop()


def _names(job: Document) -> list[str]:
    return [job["job_id"], *job["external_ids"], job["context_id"]]


def _matches(job: Document, wanted: Document) -> bool:
    ids = wanted.get("jobs")
    return ids is None or any(name in ids for name in _names(job))
