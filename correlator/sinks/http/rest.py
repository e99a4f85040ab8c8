"""REST: lists of jobs, one job by any ID, log rows of a job, resolution of IDs; from memory and the database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, TypeVar

from aiohttp import web
from msgspec import UnsetType

from correlator.errors import BadRequest, NotFound
from correlator.jobs import job_document
from correlator.jobs.model.rows import Micros
from correlator.jobs.model.views import LogLine, PublishedJob
from correlator.model.parameters import (
    MAX_WORDS,
    SPACE,
    GetJob,
    GetJobLog,
    Instant,
    ListJobEvents,
    ListJobs,
    OfJob,
    given,
)
from correlator.model.replies import Resolved
from correlator.pipeline.hub import Hub
from correlator.pipeline.queries import JobNames, LineQuery
from correlator.sinks.http.job_pages import JobPages, encoded, paged
from correlator.sinks.http.log_text import LogText
from correlator.sinks.http.lookups import Lookups
from correlator.sinks.http.parameters import job_query, read
from correlator.sinks.http.problems import RETRY_AFTER, problem
from correlator.sinks.streaming.sessions import AHEAD_WITHIN
from correlator.sinks.turns import Work

_WORD: Final = re.compile(f"[^{SPACE}]+")


_T = TypeVar("_T", bound=GetJobLog)


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
        asked = read(request, GetJob)
        return await self._job(request, asked.id, asked)

    async def _job(self, request: web.Request, name: str, asked: GetJob) -> web.Response:
        wait, rev = asked.wait, given(asked.rev)
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
        return await self._below(request, "events", ListJobEvents, self._events)

    async def log(self, request: web.Request) -> web.StreamResponse:
        """All log rows of a job as text."""
        return await self._below(request, "log", GetJobLog, self._text)

    async def _below(
        self,
        request: web.Request,
        what: str,
        kind: type[_T],
        respond: Callable[[web.Request, PublishedJob, _T], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """What lies below a job, as `respond` makes it."""
        name = request.match_info.get("id") or read(request, kind).id
        found = await self._lookups.find(name, request.remote or "")
        if found is None:
            whole = f"{name}/{what}"  # may be an ID that contains a raw slash
            if "id" in request.match_info and (
                "wait" in request.query or await self._lookups.find(whole, request.remote or "") is not None
            ):
                return await self._job(request, whole, read(request, GetJob))
            raise NotFound(f"no job is known by {name!r}")
        return await respond(request, found[0], read(request, kind))

    async def _text(self, request: web.Request, shown: PublishedJob, asked: GetJobLog) -> web.StreamResponse:
        return await self._log_text.send(request, shown, _names(shown), _line_query(asked))

    async def _events(self, request: web.Request, shown: PublishedJob, asked: ListJobEvents) -> web.Response:
        after, first, before = given(asked.after), given(asked.first), given(asked.before)
        if sum(start is not None for start in (after, first, before)) > 1:
            raise BadRequest("after, from, before: give only one of them")
        names, limit, query = _names(shown), asked.limit, _line_query(asked)
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
        name = read(request, OfJob).id
        found = await self._lookups.find(name, request.remote or "")
        if found is None:
            raise NotFound(f"no job is known by {name!r}")
        return json_response(found[1])

    async def jobs(self, request: web.Request) -> web.Response:
        """A page of jobs, newest first."""
        asked = read(request, ListJobs)
        since, until = _micros(asked.since), _micros(asked.until)
        if since is not None and until is not None and until <= since:
            raise BadRequest(
                f"until={request.query['until']!r}: expected a time after since={request.query['since']!r}"
            )
        words = frozenset(_WORD.findall(asked.words))
        if len(words) > MAX_WORDS:
            raise BadRequest(f"text: expected at most {MAX_WORDS} words, not {len(words)}")
        query, address = job_query(asked, words=words, since=since, until=until), request.remote or ""
        return await self._pages.respond(query, given(asked.cursor), asked.limit, address, steps=asked.steps == "1")


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=job_document.encode(value), content_type="application/json", status=status)


def _line_query(asked: GetJobLog) -> LineQuery:
    return LineQuery(asked.level, asked.steps, asked.text, _micros(asked.since))


def _micros(time: Instant | UnsetType) -> Micros | None:
    return None if isinstance(time, UnsetType) else time.micros


def _names(shown: PublishedJob) -> JobNames:
    """The IDs by which log rows may refer to the job, and the times between which they were logged."""
    view = shown.view
    names = view.external_ids if view.source == "joblog" else (view.job_id,)
    last = view.last.at if view.last is not None else None
    ended = max((t for t in (view.ended_at, view.started_at, last) if t is not None), default=0)
    return JobNames(
        view.job_id,
        names,
        frozenset(s.id for s in job_document.steps_of(shown)),
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
