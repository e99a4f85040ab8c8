"""A fake daemon: it serves the page's files with the real headers, and a websocket whose messages the test decides.

Invariant: messages arrive in the order of the protocol, and a document only with a higher `rev`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from aiohttp import WSMsgType, web

from correlator.failures.failure import failure
from correlator.failures.sentence import sentence
from correlator.model.rows import StepRecord
from correlator.sinks.http.server import HEADERS, Static
from correlator.sinks.turns import Work
from tests.support import job_documents
from tests.support.servers import free_port

Document = dict[str, Any]


def stamp(ago: float = 0.0) -> str:
    """RFC 3339, `ago` seconds before now."""
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def step(
    seq: int, name: str, status: str = "completed", *, ago: float = 60.0, took: float = 5.0, **more: Any
) -> Document:
    ended = None if status == "running" else stamp(ago - took)
    times = {"started_at": stamp(ago), "ended_at": ended, "duration_seconds": took}
    return job_documents.step(seq, name, status, **(times | more))


def document(job_id: str, status: str = "running", *, ago: float = 60.0, took: float = 30.0, **more: Any) -> Document:
    """A whole job document that started `ago` seconds before now; `steps` may be a list."""
    steps = more.pop("steps", [])
    by_id = steps if isinstance(steps, dict) else {str(3000 + each["seq"]): each for each in steps}
    counts = {
        s: sum(each["status"] == s for each in by_id.values()) for s in ("completed", "failed", "running", "skipped")
    }
    terminal = status in ("completed", "failed", "cancelled")
    members: Document = {
        "external_ids": [f"unified-live-failover-{job_id}-1758553933"],
        "category": "failover",
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
            "steps_expected": None,
        },
        "forecast": None,
        "compared_with": None,
        "current_step": next((each["name"] for each in by_id.values() if each["status"] == "running"), None),
        "steps": by_id,
        "last_event_at": stamp(1.0),
        "last_message": None,
        "metadata": {"vm_name": f"vm-{job_id}"},
        "rev": 1,
    }
    made: Document = job_documents.document(job_id, status, **(members | more))
    return made


def failed(job_id: str, error: str | None, *, state: str = "known", **more: Any) -> Document:
    """A job that failed, with the `failure` of its error and its steps."""
    job = document(job_id, "failed", error=error, **more)
    rows = [
        StepRecord(each["seq"], each["name"], each["seq"], each["status"], error_message=each["error"])
        for each in job["steps"].values()
    ]
    found = failure(error, rows, [job_id, job["metadata"]["vm_name"]])
    why = {"fingerprint": found.fingerprint or None, "step": found.step, "certainty": found.certainty}
    return job | {"failure": why | {"text": found.text, "state": state if found.fingerprint else "unknown"}}


def group_of(*jobs: Document, days: Iterable[tuple[float, int]] = (), **more: Any) -> Document:
    """The jobs that failed alike, the newest first. `days`: how many days ago, and how many jobs."""
    newest, vms = jobs[0], [job["metadata"]["vm_name"] for job in jobs]
    by_day = {stamp(86_400 * ago)[:10]: count for ago, count in days} or {stamp()[:10]: len(jobs)}
    refs = [
        {"job_id": job["job_id"], "ended_at": job["ended_at"], "operation": job["operation"], "vm_name": vm}
        for job, vm in zip(jobs, vms, strict=True)
    ]
    return {
        **{name: newest["failure"][name] for name in ("fingerprint", "text", "step", "certainty")},
        "count": sum(by_day.values()),
        "first_at": jobs[-1]["ended_at"],
        "last_at": newest["ended_at"],
        "days": [{"day": day, "count": count} for day, count in sorted(by_day.items())],
        "vms": vms,
        "vm_count": len(vms),
        "operations": [newest["operation"]],
        "steps": [newest["failure"]["step"]] if newest["failure"]["step"] else [],
        "jobs": refs,
        "note": None,
    } | more


WHOLE: Document = {"reaches": stamp(30 * 86_400), "complete": True, "reason": None}


def line(event_id: int, message: str | None = None, level: str = "INFO", *, ago: float = 0.0, **more: Any) -> Document:
    """A line of a job's log."""
    said = {"level": level, "message": message or f"line {event_id}", "at": stamp(ago)}
    return {"event_id": event_id, "step_id": None, "attrs": None} | said | more


def forecast(
    left: float = 180.0, most: float = 420.0, *, state: str = "on_track", runs: int = 37, ahead: Iterable[Any] = ()
) -> Document:
    """The forecast of now: half of all jobs end within `left` seconds, 9 of 10 within `most`.

    `ahead`: name, share and typical seconds of each step.
    """
    steps = [{"name": name, "share": share, "typical_seconds": seconds} for name, share, seconds in ahead]
    ends = {"p50": stamp(-left), "p90": stamp(-most)}
    made = job_documents.forecast(state, ends_at=ends, as_of=stamp(), runs=runs, steps_ahead=steps)
    found: Document = made["forecast"]
    return found


def forecasted(job: Document, percent: float, **more: Any) -> Document:
    """A running job with a forecast, and a percent that rests on it."""
    made = forecast(**more)
    likely = sum(step["share"] >= 0.5 for step in made["steps_ahead"])
    progress = job["progress"] | {"percent": percent, "basis": "history"}
    return job | {"forecast": made, "progress": progress | {"steps_expected": progress["steps_seen"] + likely}}


class PageServer:
    """`jobs` are the jobs of a snapshot; `put`, `send` and `log` send messages to the connected clients."""

    def __init__(self, *, token: str | None = None, gateway: bool = False) -> None:
        self._static = Static(Work(), gateway=gateway)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.jobs: dict[str, Document] = {}
        self.events: dict[str, list[Document]] = {}
        self.archive: list[list[Document]] = []
        """The pages of the database: of the search for any text, and of any VM or context."""
        self.searched: list[Document] = []
        """The parameters of each search."""
        self.found_lines: list[list[Document]] = []
        """The pages of the search for lines of any job. `away`: why one appliance keeps its place at their end."""
        self.away: str | None = None
        self.sought: list[Document] = []
        """The parameters of each request for one of them."""
        self.failures: list[list[Document]] = []
        """The pages of the groups of failed jobs."""
        self.whys: dict[str, Document] = {}
        """Job ID → members of the reply of `/why` that are not the usual ones."""
        self.failure_details: dict[str, Document] = {}
        """The same of a group, by its fingerprint."""
        self.asked_why: list[str] = []
        self.pause_lines = False
        """Whether such requests wait. `given_up`: the texts of those whose client has gone meanwhile."""
        self.given_up: list[str] = []
        self.tickets: list[str] = []
        """The tickets of requests for log lines."""
        self.token = token
        self.parts: Document = {"database": {"ok": True, "error": None}}
        """The parts of ``GET /health/ready``."""
        self.served: list[tuple[int, str]] = []
        """Status and path of each answer with a file of the page, but for icons."""
        self.html = ""
        """The body of /test.html, a page of another program."""
        self.seq = 100
        self.epoch = "one"
        self._clients: dict[web.WebSocketResponse, dict[int, Document]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Serve. After `stop` it starts again as another run, with another epoch."""
        app = web.Application()
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/ws", self._websocket),
            web.get("/api/v1/jobs/{id:.+}/events", self._history),
            web.get("/api/v1/jobs/{id:.+}/log", self._history),
            web.get("/api/v1/jobs/{id:.+}/why", self._why),
            web.get("/api/v1/jobs", self._search),
            web.get("/api/v1/failures", self._failures),
            web.get("/api/v1/failures/{fingerprint}", self._failure),
            web.get("/api/v1/events", self._find_lines),
            web.get("/api/v1/entities/{name:.+}", self._entity),
            web.get("/test.html", self._test_page),
            web.get("/health/ready", self._ready),
            web.post("/api/v1/ticket", self._ticket),
            *(web.get(route.path, self._file) for route in self._static.routes()),
        ]

    async def stop(self) -> None:
        if self._runner is not None:
            for client in list(self._clients):
                await client.close(code=1012)
            await self._runner.cleanup()
            self._runner = None
            self.epoch += "+"

    @property
    def connections(self) -> int:
        return len(self._clients)

    @property
    def subscriptions(self) -> list[Document]:
        """The subscriptions of all clients."""
        return [wanted for subs in self._clients.values() for wanted in subs.values()]

    async def put(self, *jobs: Document) -> None:
        """Store these documents, each with the next `rev`, and send them in one frame."""
        messages: dict[web.WebSocketResponse, list[Document]] = {}
        for given in jobs:
            self.seq += 1
            job = given | {"rev": self.seq, "updated_at": stamp()}
            self.jobs[job["job_id"]] = job
            for client, subs in self._clients.items():
                subscribed = [sub for sub, wanted in subs.items() if _matches(job, wanted)]
                if subscribed:
                    message = {
                        "type": "put",
                        "sub": subscribed,
                        "seq": self.seq,
                        "job_id": job["job_id"],
                        "rev": self.seq,
                    }
                    messages.setdefault(client, []).append(message | {"job": job})
        for client, batch in messages.items():
            await client.send_str(json.dumps(batch))

    async def log(self, job_id: str, *lines: Document) -> None:
        """Send log lines to the clients that follow the job, and add them to its history."""
        self.events.setdefault(job_id, []).extend(lines)
        for client, subs in self._clients.items():
            subscribed = [s for s, wanted in subs.items() if wanted.get("logs") and _matches(self.jobs[job_id], wanted)]
            if subscribed:
                batch = [{"type": "log", "sub": subscribed, "job_id": job_id} | line for line in lines]
                await client.send_str(json.dumps(batch))

    async def send(self, **message: Any) -> None:
        for client in list(self._clients):
            await client.send_str(json.dumps(message))

    async def _file(self, request: web.Request) -> web.Response:
        response = await self._static.file(request)
        response.headers.update(HEADERS)
        if not request.path.endswith(".svg"):  # which a browser asks for when it likes
            self.served.append((response.status, request.path))
        return response

    async def _ready(self, request: web.Request) -> web.Response:
        degraded = any(not part["ok"] for part in self.parts.values())
        states = {name: {"ok": part["ok"]} for name, part in self.parts.items()}
        parts = self.parts if self._is_authorized(request) else states
        return web.json_response({"ready": True, "degraded": degraded, "parts": parts})

    async def _test_page(self, request: web.Request) -> web.Response:
        del request
        icon = '<link rel="icon" href="data:,">'
        return web.Response(
            text=f'<!doctype html><html lang="en"><title>Test</title>{icon}<main>{self.html}</main></html>',
            content_type="text/html",
        )

    async def _search(self, request: web.Request) -> web.Response:
        """Search the archive. Other requests are aborted, so that the client finds no other transport to follow."""
        if request.query.keys() & {"q", "text", "since", "until"}:
            self.searched.append(dict(request.query))
            return web.json_response(self._page(request) if "q" not in request.query else self._named(request))
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _find_lines(self, request: web.Request) -> web.Response:
        self.sought.append(dict(request.query))
        while self.pause_lines:
            if request.transport is None or request.transport.is_closing():
                self.given_up.append(request.query["text"])
                raise ConnectionError
            await asyncio.sleep(0.01)
        number, count = int(request.query.get("cursor", 0)), max(1, len(self.found_lines))
        lines = self.found_lines[number] if self.found_lines else []
        more = number + 1 < count
        progress = {"searched": (number + 1) / count, "searched_to": stamp(86_400.0 * (number + 1)) if more else None}
        cursor = {"next_cursor": str(number + 1) if more else str(number) if self.away else None}
        whole = {"complete": self.away is None, "reason": self.away}
        return web.json_response({"events": lines, **cursor, **progress, **whole})

    async def _entity(self, request: web.Request) -> web.Response:
        page = self._page(request)
        contexts = {job["context_id"] for job in page["jobs"] if job["context_id"]}
        name = request.match_info["name"]
        return web.json_response(page | {"entity": name, "kind": "vm", "contexts": sorted(contexts), "operations": []})

    async def _why(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        self.asked_why.append(job["job_id"])
        why = job["failure"]
        found = {
            "job_id": job["job_id"],
            "failure": why,
            "sentence": sentence(why["certainty"], why["step"], why["text"]),
            "rows": [],
            "group": group_of(job) if why["fingerprint"] else None,
            "differs": None,
            "burst": None,
        }
        return web.json_response(found | WHOLE | self.whys.get(job["job_id"], {}))

    async def _failures(self, request: web.Request) -> web.Response:
        number = int(request.query.get("cursor", 0))
        groups = self.failures[number] if self.failures else []
        more = str(number + 1) if number + 1 < len(self.failures) else None
        self.sought.append(dict(request.query))
        return web.json_response({"failures": groups, "next_cursor": more} | WHOLE)

    async def _failure(self, request: web.Request) -> web.Response:
        wanted = request.match_info["fingerprint"]
        groups = [group for page in self.failures for group in page if group["fingerprint"] == wanted]
        if not groups:
            detail = f"no job failed with the fingerprint '{wanted}'"
            return web.json_response({"title": "Not Found", "detail": detail}, status=404)
        none = {"examined": 0, "completed": 0, "failed_alike": 0, "failed_otherwise": 0, "unknown": 0}
        found = {
            "group": groups[0],
            "template": groups[0]["text"],
            "variants": [{"text": groups[0]["text"], "count": groups[0]["count"]}],
            "next_runs": none | {"recovered_seconds": []},
            "similar": [],
        }
        return web.json_response(found | WHOLE | self.failure_details.get(wanted, {}))

    def _named(self, request: web.Request) -> Document:
        """One page of the jobs of the archive whose VM has the text."""
        jobs = [job for page in self.archive for job in page if request.query["q"] in job["metadata"]["vm_name"]]
        return {"jobs": jobs, "next_cursor": None, "searched_to": None, "complete": True, "reason": None}

    def _page(self, request: web.Request) -> Document:
        number = int(request.query.get("cursor", 0))
        jobs = self.archive[number] if self.archive else []
        more = number + 1 < len(self.archive)
        to = jobs[-1]["started_at"] if jobs else stamp()
        cursor = {"next_cursor": str(number + 1) if more else None, "searched_to": to if more else None}
        return {"jobs": jobs, **cursor, "complete": True, "reason": None}

    async def _history(self, request: web.Request) -> web.Response:
        query = request.query
        if "ticket" in query:
            self.tickets.append(query["ticket"])
        elif not self._is_authorized(request):
            return web.json_response({"title": "Unauthorized"}, status=401)
        if request.path.endswith("/log"):
            return web.Response(text="the whole log")
        lines = [e for e in self.events.get(request.match_info["id"], []) if _selected(e, query)]
        limit = min(int(query.get("limit", 100)), 1000)
        if "before" in query:
            below = sorted((e for e in lines if e["event_id"] < int(query["before"])), key=_event_id)
            page = below[-limit:]
            first = page[0]["event_id"] if len(page) < len(below) else None
            return web.json_response({"events": page, "next_after": None, "next_before": first, "more": bool(first)})
        if "from" in query:
            lines = sorted(lines, key=_event_id)
            after = sum(e["event_id"] < int(query["from"]) for e in lines)
        else:
            after = int(query.get("after", 0))
        page = lines[after : after + limit]
        more = after + len(page) < len(lines)
        return web.json_response({"events": page, "next_after": str(after + len(page)), "more": more})

    async def _ticket(self, request: web.Request) -> web.Response:
        return web.json_response({"ticket": "once"}, status=200 if self._is_authorized(request) else 401)

    def _is_authorized(self, request: web.Request) -> bool:
        return self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}"

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            await self._handle(socket, request)
        self._clients.pop(socket, None)
        return socket

    async def _handle(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        async for message in _messages(socket, request):
            match message["type"]:
                case "hello" if self.token is not None and message.get("token") != self.token:
                    await socket.close(code=4401, message=b"a token is needed")
                    return
                case "hello":
                    self._clients[socket] = {}
                    welcome = {
                        "type": "welcome",
                        "epoch": self.epoch,
                        "seq": self.seq,
                        "resumed": False,
                        "ping_seconds": 25,
                        "at": stamp(),
                    }
                    status = {"type": "status", "source": "live", "lag_seconds": 0.0}
                    await socket.send_str(json.dumps([welcome, status]))
                case "subscribe":
                    wanted = self._clients[socket][message["id"]] = self._wanted(message, request)
                    await socket.send_str(json.dumps(list(self._snapshot(wanted))))
                case "unsubscribe":
                    self._clients[socket].pop(message["id"], None)
                case "ping":
                    await socket.send_str('{"type": "pong"}')

    def _wanted(self, message: Document, request: web.Request) -> Document:
        """The filter of a subscription."""
        del request
        return message

    def _snapshot(self, wanted: Document) -> Iterable[Document]:
        jobs = [job for job in self.jobs.values() if _matches(job, wanted)]
        about = {"sub": wanted["id"], "seq": self.seq}
        yield {"type": "snapshot", "more": False, "jobs": jobs} | about
        known = {name for job in jobs for name in _names(job)}
        unknown = [name for name in wanted.get("jobs") or [] if name not in known]
        yield {"type": "synced", "count": len(jobs), "unknown": unknown} | about


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[PageServer]:
    fake = PageServer(**options)
    await fake.start()
    try:
        yield fake
    finally:
        async with asyncio.timeout(60):
            await fake.stop()


def appliance(name: str, **more: Any) -> Document:
    """A row of ``GET /api/v1/instances``: an appliance that is well."""
    return {
        "instance": name,
        "online": True,
        "database": "live",
        "error": None,
        "lag_seconds": 0.0,
        "unwritten_seconds": 0.0,
        "last_seen": stamp(),
        "version": "1.2.3",
        "jobs": 1,
    } | more


class FleetServer(PageServer):
    """A fake gateway: jobs of several appliances, their health, and `/i/<instance>/` for each.

    `instances`: the rows of ``GET /api/v1/instances``.
    """

    def __init__(self, *instances: Document, **options: Any) -> None:
        super().__init__(gateway=True, **options)
        self.instances = list(instances)
        self.searches: list[str] = []
        """The queries of all requests for pages of jobs."""
        self.paths: list[str] = []
        """The paths of all websockets."""

    def _routes(self) -> list[web.RouteDef]:
        routes = super()._routes()
        own = [web.RouteDef(r.method, "/i/{instance}" + r.path, r.handler, r.kwargs) for r in routes]
        return [*routes, web.get("/api/v1/instances", self._instances), *own]

    async def _instances(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"instances": self.instances})

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        self.paths.append(request.path)
        return await super()._websocket(request)

    def _wanted(self, message: Document, request: web.Request) -> Document:
        own = request.match_info.get("instance")
        return message if own is None else message | {"instance": [own]}

    def _page(self, request: web.Request) -> Document:
        self.searches.append(request.path_qs)
        page = super()._page(request)
        own = [request.match_info["instance"]] if "instance" in request.match_info else []
        wanted = own or request.query.getall("instance", [])
        return page | {"jobs": [job for job in page["jobs"] if not wanted or job.get("instance") in wanted]}


@contextlib.asynccontextmanager
async def serving_fleet(*instances: Document, token: str | None = None) -> AsyncIterator[FleetServer]:
    fake = FleetServer(*instances, token=token)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


async def _messages(socket: web.WebSocketResponse, request: web.Request) -> AsyncIterator[Document]:
    for message in json.loads(request.query.get("say", "[]")):
        yield message
    async for frame in socket:
        if frame.type is not WSMsgType.TEXT:
            return
        yield json.loads(frame.data)


def _names(job: Document) -> list[str]:
    return [job["job_id"], *job["external_ids"], job["context_id"]]


def _matches(job: Document, wanted: Document) -> bool:
    ids, instances = wanted.get("jobs"), wanted.get("instance")
    if instances and job.get("instance") not in instances:
        return False
    return ids is None or any(name in ids for name in _names(job))


def _event_id(line: Document) -> int:
    return int(line["event_id"])


def _selected(line: Document, query: Mapping[str, str]) -> bool:
    """True if the log line is one that a query of the history selects."""
    levels = ["DEBUG", "INFO", "WARN", "ERROR"]
    return (
        levels.index(line["level"]) >= levels.index(query.get("level", "DEBUG"))
        and query.get("step", str(line["step_id"])) == str(line["step_id"])
        and query.get("q", "").lower() in f"{line['message']} {json.dumps(line['attrs'])}".lower()
    )
