"""REST: lists of jobs, one job by any ID, log rows of a job, resolution of IDs; from memory and the database."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from msgspec.structs import replace

from correlator.errors import BadRequest, NotFound
from correlator.jobs import job_document
from correlator.jobs.joblog import MAX_STEP_ID
from correlator.jobs.model.rows import LEVELS, Level, Micros
from correlator.jobs.model.views import LogLine, PublishedJob, Resolved
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobNames, JobQuery, LineQuery
from correlator.sinks.http.job_pages import JobPages, encoded, paged
from correlator.sinks.http.log_text import LogText
from correlator.sinks.http.lookups import Lookups
from correlator.sinks.http.parameters import choice, filters, known, number, values
from correlator.sinks.http.problems import RETRY_AFTER, problem
from correlator.sinks.streaming.sessions import AHEAD_WITHIN
from correlator.sinks.turns import Work

MAX_WAIT = 60
MAX_LIMIT = 500
MAX_EVENTS = 1000
MAX_EVENT_ID = (1 << 53) - 1
"""The highest number that JavaScript stores exactly."""

MAX_STEPS = 100
MAX_TEXT = 200
"""Steps, and characters of a text, that select log lines."""

DEFAULT_LIMIT = 100

MAX_WORDS = 8
"""Words of one search: each is compared with every text of a job."""

SPACE: Final = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What separates words, for a class of a regular expression. Every language reads it alike, unlike `\\s`."""

_WORD: Final = re.compile(f"[^{SPACE}]+")
_OF_ONE: Final = ("wait", "rev")
_OF_LINES: Final = ("level", "step", "q", "since")
_OF_EVENTS: Final = ("after", "from", "before", "limit", *_OF_LINES)
_FILTERS: Final = ("status", "job_type", "operation", "context_id", "parent_job_id", "instance")


class Rest:
    """The endpoints for jobs under ``/api/v1``."""

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._work = work
        self._pages = JobPages(hub, work)
        self._lookups = Lookups(hub, work)
        self._log_text = LogText(hub, work)

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.get("/api/v1/jobs", self.jobs),
            web.get("/api/v1/job", self.job),
            web.get("/api/v1/job/events", self.events),
            web.get("/api/v1/job/log", self.log),
            web.get("/api/v1/jobs/{id:(?s:.+)}/events", self.events),
            web.get("/api/v1/jobs/{id:(?s:.+)}/log", self.log),
            web.get("/api/v1/jobs/{id:(?s:.+)}", self.job),
            web.get("/api/v1/resolve/{id:(?s:.+)}", self.resolve),
        ]

    async def job(self, request: web.Request) -> web.Response:
        """One job, by any ID. With ``wait``, the request waits until the job exists or is past revision ``rev``."""
        return await self._job(request, _id(request, *_OF_ONE))

    async def _job(self, request: web.Request, name: str) -> web.Response:
        wait, rev = _waits(request) if request.query_string else (None, None)
        if not wait:
            return await self._shown(request, name, await self._lookups.find(name, request.remote or ""), rev)
        address, until = request.remote or "", asyncio.get_running_loop().time() + wait
        self._work.held.check(address)
        with self._work.held.holding(address):
            found = await self._lookups.wait(name, address, until)
            if found is None and self._hub.draining:
                return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the correlator restarts: ask again", RETRY_AFTER)
            return await self._shown(request, name, found, rev, until)

    async def _shown(
        self,
        request: web.Request,
        name: str,
        found: tuple[PublishedJob, Resolved] | None,
        rev: int | None,
        until: float | None = None,
    ) -> web.Response:
        """The response with a job; until `until` (loop time), wait until it is past revision `rev`."""
        if found is None:
            raise NotFound(f"no job is known by {name!r}")
        loop = asyncio.get_running_loop()
        wait, until = until is not None, until or 0.0
        shown = found[0]
        if rev is not None and wait and await self._hub.reached(rev, min(AHEAD_WITHIN, until - loop.time())):
            shown = (self._hub.find_now(name) or (shown, None))[0]
        while rev is not None and shown.rev == rev and (left := until - loop.time()) > 0 and not self._hub.draining:
            await self._hub.waiting_ids.changed(shown.job_id, left)
            shown = (self._hub.find_now(name) or (shown, None))[0]
        etag = f'"{self._hub.epoch}-{shown.rev}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if (rev is not None and wait and shown.rev == rev) or matches(request, etag):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return web.Response(body=self._hub.documents.encoded(shown), content_type="application/json", headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """A page of a job's log rows, oldest first."""
        return await self._below(request, "events", _OF_EVENTS, self._events)

    async def log(self, request: web.Request) -> web.StreamResponse:
        """All log rows of a job as text."""
        return await self._below(request, "log", _OF_LINES, self._text)

    async def _below(
        self,
        request: web.Request,
        what: str,
        parameters: tuple[str, ...],
        respond: Callable[[web.Request, PublishedJob, LineQuery], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """What lies below a job, as `respond` makes it."""
        name = _id(request, *parameters)
        found = await self._lookups.find(name, request.remote or "")
        if found is None:
            whole = f"{name}/{what}"  # may be an ID that contains a raw slash
            if "id" in request.match_info and (
                "wait" in request.query or await self._lookups.find(whole, request.remote or "") is not None
            ):
                return await self._job(request, whole)
            raise NotFound(f"no job is known by {name!r}")
        known(request, (*_own(request), *parameters))
        return await respond(request, found[0], _line_query(request))

    async def _text(self, request: web.Request, shown: PublishedJob, query: LineQuery) -> web.StreamResponse:
        return await self._log_text.send(request, shown.view, _names(shown), query)

    async def _events(self, request: web.Request, shown: PublishedJob, query: LineQuery) -> web.Response:
        limit = number(request, "limit", 1, MAX_EVENTS, int) or DEFAULT_LIMIT
        first, before = number(request, "from", 1, MAX_EVENT_ID, int), number(request, "before", 1, MAX_EVENT_ID, int)
        after = request.query.get("after")
        if sum(start is not None for start in (after, first, before)) > 1:
            raise BadRequest("after, from, before: give only one of them")
        names = _names(shown)
        if before is not None:
            earlier = await self._hub.lines_before(names, before, limit, query)
            more = earlier.next_before is not None
            members = {"next_after": None, "next_before": earlier.next_before, "more": more}
            return await self._lines(request, earlier.lines, members)
        page = await self._hub.lines(names, after if first is None else first, limit, query)
        return await self._lines(request, page.lines, {"next_after": page.next_after, "more": page.more})

    async def _lines(self, request: web.Request, found: Iterable[LogLine], more: dict[str, Any]) -> web.Response:
        """A page of log lines, with the members `more`."""
        async with self._work.lists.turn(request.remote or ""):
            self._work.replies.check(request.remote or "")
            parts, _ = await encoded(job_document.encode(job_document.log_line(line)) for line in found)
            return paged("events", parts, more)

    async def resolve(self, request: web.Request) -> web.Response:
        """The job that an ID resolves to, and by which kind of ID."""
        known(request, ())
        name = request.match_info["id"]
        found = await self._lookups.find(name, request.remote or "")
        if found is None:
            raise NotFound(f"no job is known by {name!r}")
        resolved = found[1]
        return json_response(
            {"job_id": resolved.job_id, "resolved_by": resolved.resolved_by, "also": list(resolved.also)}
        )

    async def jobs(self, request: web.Request) -> web.Response:
        """A page of jobs, newest first."""
        known(request, (*_FILTERS, "q", "text", "since", "until", "limit", "cursor", "steps"))
        limit = number(request, "limit", 1, MAX_LIMIT, int) or DEFAULT_LIMIT
        with_steps = choice(request, "steps", ("0", "1")) == "1"
        query = _query(request)
        cursor = request.query.get("cursor")
        return await self._pages.respond(query, cursor, limit, request.remote or "", steps=with_steps)


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=job_document.encode(value), content_type="application/json", status=status)


def _id(request: web.Request, *others: str) -> str:
    """The ID of a job, from the path; from the parameter `id`, beside `others`, where the path has none.

    Raises:
        BadRequest: The path has none, and there is not one parameter `id`.
    """
    if (name := request.match_info.get("id")) is not None:
        return name
    known(request, ("id", *others))
    names = request.query.getall("id", [])
    if len(names) != 1 or not names[0]:
        raise BadRequest("id: expected one ID of a job")
    return str(names[0])


def _own(request: web.Request) -> tuple[str, ...]:
    """The parameter that has the ID where the path does not."""
    return () if "id" in request.match_info else ("id",)


def _waits(request: web.Request) -> tuple[float | None, int | None]:
    known(request, (*_own(request), *_OF_ONE))
    return number(request, "wait", 0, MAX_WAIT, float), number(request, "rev", 0, 1 << 53, int)


def _query(request: web.Request) -> JobQuery:
    query = filters(request, _FILTERS)
    since, until = _time(request, "since"), _time(request, "until")
    if since is not None and until is not None and until <= since:
        raise BadRequest(f"until={request.query['until']!r}: expected a time after since={request.query['since']!r}")
    words = frozenset(_WORD.findall(request.query.get("text", "")))
    if len(words) > MAX_WORDS:
        raise BadRequest(f"text: expected at most {MAX_WORDS} words, not {len(words)}")
    return replace(query, text=request.query.get("q", ""), words=words, since=since, until=until)


def _line_query(request: web.Request) -> LineQuery:
    level: Level = choice(request, "level", LEVELS) or "DEBUG"
    steps = values(request, "step")
    if not all(map(_is_step_id, steps)) or len(steps) > MAX_STEPS:
        raise BadRequest(f"step: expected at most {MAX_STEPS} IDs of steps, e.g. step=3587")
    text = request.query.get("q", "")
    if len(text) > MAX_TEXT:
        raise BadRequest(f"q: expected at most {MAX_TEXT} characters")
    return LineQuery(level, frozenset(map(int, steps)), text, _time(request, "since"))


def _is_step_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= MAX_STEP_ID


def _time(request: web.Request, name: str) -> Micros | None:
    """A query parameter as a time; None if it is missing.

    Raises:
        BadRequest: It is no time, or has no zone.
    """
    text = request.query.get(name)
    if text is None:
        return None
    try:
        when = datetime.datetime.fromisoformat(text.replace(" ", "+"))
        if when.tzinfo is None:
            raise ValueError(text)
    except ValueError:
        raise BadRequest(f"{name}={text!r}: expected a time with its zone, e.g. 2025-09-22T10:00:00Z") from None
    return (when - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _names(shown: PublishedJob) -> JobNames:
    """The IDs by which log rows may refer to the job, and the times between which they were logged."""
    view = shown.view
    names = view.external_ids if view.source == "joblog" else (view.job_id,)
    last = view.last.at if view.last is not None else None
    ended = max((t for t in (view.ended_at, view.started_at, last) if t is not None), default=0)
    return JobNames(
        view.job_id,
        names,
        frozenset(s.id for s in view.steps),
        view.started_at or 0,
        ended if view.terminal else None,
        shown.instance,
    )


def matches(request: web.Request, etag: str) -> bool:
    """True if If-None-Match contains `etag`, by weak comparison (RFC 9110, 13.1.2)."""
    given = request.headers.get("If-None-Match")
    if given is None:
        return False
    return given.strip() == "*" or etag in [t.strip().removeprefix("W/") for t in given.split(",")]
