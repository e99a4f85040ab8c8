"""REST: jobs, one job by any ID, where an ID leads. Answers come from memory, and from the database beyond it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
from collections import OrderedDict
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from correlator.errors import BadRequest, NotFound, SourceUnavailable
from correlator.hub import Hub, JobNames, JobQuery
from correlator.jobs import wire
from correlator.jobs.model import LEVELS, Level, Micros, Shown, Status
from correlator.sinks.problems import RETRY_AFTER, problem

MAX_WAIT = 60
MAX_LIMIT = 500
MAX_EVENTS = 1000
DEFAULT_LIMIT = 100

KEPT = 256
"""Documents that are kept as they were sent: jobs that are watched are asked for more often than they change."""

_N = TypeVar("_N", int, float)

_STATUSES: Final = [s.value for s in Status if s is not Status.SKIPPED]
_FILTERS: Final = ("status", "job_type", "operation", "context_id", "parent_job_id")


class Rest:
    """The endpoints under ``/api/v1`` that tell of jobs. `retention`: seconds that ended jobs stay in memory."""

    def __init__(self, hub: Hub, *, retention: float) -> None:
        self._hub = hub
        self._retention = int(retention * 1_000_000)
        self._bodies: OrderedDict[str, tuple[Shown, bytes]] = OrderedDict()

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/api/v1/jobs", self.jobs),
            web.get("/api/v1/jobs/{id:(?s:.+)}/events", self.events),
            web.get("/api/v1/jobs/{id:(?s:.+)}", self.job),
            web.get("/api/v1/resolve/{id:(?s:.+)}", self.resolve),
        ]

    async def job(self, request: web.Request) -> web.Response:
        """One job, by any ID; ``wait`` holds the request until it appears, or until it is past ``rev``."""
        return await self._job(request, request.match_info["id"])

    async def _job(self, request: web.Request, name: str) -> web.Response:
        wait, rev = _waits(request) if request.query_string else (None, None)
        loop = asyncio.get_running_loop()
        until = loop.time() + (wait or 0.0)
        found = await self._hub.find(name)
        if found is None and wait:
            with self._hub.held(name):
                while found is None and (left := until - loop.time()) > 0 and not self._hub.draining:
                    await self._hub.changed(name, left)
                    found = self._hub.find_now(name)
        if found is None:
            if wait and self._hub.draining:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the correlator restarts: ask again", RETRY_AFTER)
            raise NotFound(f"no job is known by {name!r}")
        shown = found[0]
        while rev is not None and shown.rev == rev and (left := until - loop.time()) > 0 and not self._hub.draining:
            await self._hub.changed(shown.job_id, left)
            shown = (self._hub.find_now(name) or (shown, None))[0]
        etag = f'"{self._hub.epoch}-{shown.rev}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if (rev is not None and wait and shown.rev == rev) or matches(request, etag):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return web.Response(body=self._body(shown), content_type="application/json", headers=headers)

    def _body(self, shown: Shown) -> bytes:
        """Its document: a function of what is shown and of nothing else."""
        kept = self._bodies.get(shown.job_id)
        if kept is not None and kept[0] is shown:
            return kept[1]
        self._bodies.pop(shown.job_id, None)
        body = wire.encode(wire.document(shown))
        self._bodies[shown.job_id] = (shown, body)
        if len(self._bodies) > KEPT:
            self._bodies.popitem(last=False)
        return body

    async def events(self, request: web.Request) -> web.Response:
        """A page of a job's log lines, the oldest first."""
        name = request.match_info["id"]
        found = await self._hub.find(name)
        if found is None:
            whole = f"{name}/events"  # which may be an ID itself, with its slash as it is
            if "wait" in request.query or await self._hub.find(whole) is not None:
                return await self._job(request, whole)
            raise NotFound(f"no job is known by {name!r}")
        known(request, ("after", "limit", "level"))
        limit = number(request, "limit", 1, MAX_EVENTS, int) or DEFAULT_LIMIT
        least = choice(request, "level", LEVELS)
        level: Level = next((n for n in LEVELS if n == least), "DEBUG")
        if self._hub.archive is None:
            raise SourceUnavailable("there is none")
        page = await self._hub.archive.lines(_names(found[0]), request.query.get("after"), limit, level)
        return json_response({"events": [wire.log_line(e) for e in page.lines], "next_after": page.next_after})

    async def resolve(self, request: web.Request) -> web.Response:
        """Where an ID leads, and by which of its kinds."""
        known(request, ())
        name = request.match_info["id"]
        found = await self._hub.find(name)
        if found is None:
            raise NotFound(f"no job is known by {name!r}")
        resolved = found[1]
        return json_response(
            {"job_id": resolved.job_id, "resolved_by": resolved.resolved_by, "also": list(resolved.also)}
        )

    async def jobs(self, request: web.Request) -> web.Response:
        """A page of jobs, the newest first."""
        known(request, (*_FILTERS, "q", "since", "limit", "cursor", "steps"))
        limit = number(request, "limit", 1, MAX_LIMIT, int) or DEFAULT_LIMIT
        with_steps = choice(request, "steps", ("0", "1")) == "1"
        query = _query(request)
        before = _decode_cursor(request.query["cursor"]) if "cursor" in request.query else None
        page = [s for s in self._hub.index.shown() if query.matches(s) and (before is None or _place(s) < before)]
        page.sort(key=_place, reverse=True)
        del page[limit + 1 :]
        # Whatever is not in memory ended a whole retention ago, and so began before that.
        now = int(datetime.datetime.now(datetime.UTC).timestamp() * 1_000_000)
        if self._hub.archive is not None and (len(page) <= limit or _place(page[-1])[0] < now - self._retention):
            page = await self._with_archive(page, query, before, limit + 1)
        more = len(page) > limit
        page = page[:limit]
        return json_response(
            {
                "jobs": [wire.document(s, steps=with_steps) for s in page],
                "next_cursor": _encode_cursor(_place(page[-1])) if more else None,
            }
        )

    async def _with_archive(
        self, page: list[Shown], query: JobQuery, before: tuple[Micros, str] | None, limit: int
    ) -> list[Shown]:
        assert self._hub.archive is not None
        known_ids = {s.job_id for s in page}
        wanted, limit = limit, max(limit, MAX_LIMIT // 2)
        # Jobs in memory come back from the database as well, so ask until there is enough besides them.
        while True:
            readings = await self._hub.archive.page(query, before, limit, self._hub.index.look)
            for reading in readings:
                if reading.job_id not in known_ids and self._hub.index.get(reading.job_id) is None:
                    shown = self._hub.archived(reading)
                    # The database compares text more loosely than we do.
                    if shown is not None and query.matches(shown):
                        page.append(shown)
                        known_ids.add(shown.job_id)
            page.sort(key=_place, reverse=True)
            if len(readings) < limit:
                return page[:wanted]
            last = readings[-1]
            before = ((last.record.started_at if last.record else 0) or 0, last.job_id)
            if len(page) >= wanted and _place(page[wanted - 1]) >= before:
                return page[:wanted]


def json_response(value: Any, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=wire.encode(value), content_type="application/json", headers=headers, status=status)


def _waits(request: web.Request) -> tuple[float | None, int | None]:
    known(request, ("wait", "rev"))
    return number(request, "wait", 0, MAX_WAIT, float), number(request, "rev", 0, 1 << 53, int)


def known(request: web.Request, names: Iterable[str]) -> None:
    """Raise `BadRequest` for a query parameter that there is not: a typo must not look like no match."""
    allowed = {*names, "ticket"}
    for name in request.query:
        if name not in allowed:
            right = ", ".join(sorted(names)) or "none"
            raise BadRequest(f"there is no query parameter {name!r} here; known: {right}")


def number(request: web.Request, name: str, low: int, high: int, kind: Callable[[str], _N]) -> _N | None:
    """A number in the query, read by `kind`, from `low` to `high`; None if it is not given."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        value = kind(text)
        if not low <= value <= high:  # which NaN is not either
            raise ValueError(text)
    except ValueError:
        raise BadRequest(f"{name}={text!r}: expected a number from {low} to {high}") from None
    return value


def choice(request: web.Request, name: str, options: tuple[str, ...]) -> str | None:
    text = request.query.get(name)
    if text is not None and text not in options:
        raise BadRequest(f"{name}={text!r}: expected one of {', '.join(options)}")
    return text


def values(request: web.Request, name: str) -> frozenset[str]:
    """What a filter lists: repeated, or with commas between."""
    return frozenset(v for text in request.query.getall(name, []) for v in text.split(",") if v)


def _query(request: web.Request) -> JobQuery:
    chosen = {name: values(request, name) for name in _FILTERS}
    for status in chosen["status"]:
        if status not in _STATUSES:
            raise BadRequest(f"status={status!r}: expected one of {', '.join(_STATUSES)}")
    since = _time(request.query["since"]) if "since" in request.query else None
    return JobQuery(**chosen, text=request.query.get("q", ""), since=since)


def _time(text: str) -> Micros:
    try:
        when = datetime.datetime.fromisoformat(text.replace(" ", "+"))
        if when.tzinfo is None:
            raise ValueError(text)
    except ValueError:
        raise BadRequest(f"since={text!r}: expected a time with its zone, e.g. 2025-09-22T10:00:00Z") from None
    return (when - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _names(shown: Shown) -> JobNames:
    """What rows may name the job by, and between which times they were logged."""
    view = shown.view
    names = view.external_ids if view.source == "joblog" else (view.job_id,)
    last = view.last.at if view.last is not None else None
    ended = max((t for t in (view.ended_at, view.started_at, last) if t is not None), default=0)
    return JobNames(
        view.job_id, names, frozenset(s.id for s in view.steps), view.started_at or 0, ended if view.terminal else None
    )


def _place(shown: Shown) -> tuple[Micros, str]:
    return (shown.view.started_at or 0, shown.job_id)


def _encode_cursor(place: tuple[Micros, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _decode_cursor(text: str) -> tuple[Micros, str]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=tuple[int, str])
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequest("cursor: expected the next_cursor of the page before, as it was given") from error


def matches(request: web.Request, etag: str) -> bool:
    """Whether If-None-Match names `etag` (RFC 9110, 13.1.2: compared weakly)."""
    given = request.headers.get("If-None-Match", "")
    return given.strip() == "*" or etag in [t.strip().removeprefix("W/") for t in given.split(",")]
