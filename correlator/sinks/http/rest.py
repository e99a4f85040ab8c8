"""REST: jobs, their logs and IDs, entities (a VM or context over time), failures, and operations (earlier runs).

Everything but operations comes from memory and from the database. A request may wait until a job exists or changes. A
job's whole log is text that is sent page by page: neither the daemon nor the client holds it in memory.

`/jobs` and `/entities` return pages of jobs (`JobPages`), newest first. A request reads a bounded part of the tables,
so a page may be short or empty before the end of the list. Its cursor is the place in the order of the list down to
which everything has been read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct, UnsetType
from msgspec.structs import replace

from correlator.errors import Away, BadRequest, NotFound, SourceUnavailable
from correlator.failures.sentence import sentence
from correlator.forecast import trends
from correlator.jobs import encoding
from correlator.jobs.directory import Place, place_of
from correlator.model.parameters import (
    MAX_WORDS,
    WORD,
    FindEvents,
    GetEntity,
    GetFailure,
    GetJob,
    GetJobLog,
    GetOperation,
    Instant,
    ListFailures,
    ListJobEvents,
    ListJobs,
    NoParameters,
    OfJob,
    given,
)
from correlator.model.published import FoundLine, JobView, LogLine, PublishedJob
from correlator.model.replies import FailureDetails, FailureRow, Resolved, Why
from correlator.model.rows import Int64, Micros
from correlator.ops.event_loop import timed
from correlator.ops.logs import escape
from correlator.pipeline.hub import Hub, Shows
from correlator.pipeline.queries import (
    CompareFailure,
    DescribeFailure,
    FailedAlike,
    FailureComparison,
    FailuresFound,
    FindLines,
    IsContext,
    JobNames,
    JobQuery,
    LineQuery,
    LinesPage,
    LogLines,
    Operations,
    UsualSteps,
)
from correlator.sinks.http.audit import Audit
from correlator.sinks.http.grants import GRANT, check_job
from correlator.sinks.http.requests import (
    RETRY_AFTER,
    StreamedResponse,
    job_query,
    json_response,
    matches,
    problem,
    read,
)
from correlator.sinks.streaming.sessions import AHEAD_WITHIN
from correlator.sinks.turns import AT_ONCE, Work, encoded
from correlator.tasks import SharedTasks

T = TypeVar("T")

MAX_PAGE_BYTES = 8 << 20
"""Bytes of documents in one page of jobs; a single one may exceed it."""

VISITED_AT_ONCE = 50
"""Jobs that are matched with a query between two checks of the time; as many as a page still needs, if that is more."""

GATHER_WITHIN = 0.5
"""Seconds after which a page of jobs is returned even if it is empty."""

FIRST_WITHIN = 0.15
"""The same for a page that has a job: the user sees it at once, and asks for the next page."""

ARCHIVE_WITHIN = 3.0
"""Seconds to wait for the database; after that, a page of jobs is served from memory only."""


class JobPage(Struct, frozen=True):
    """Jobs, newest first. `following`: where the next page begins; None after the last one.

    `reason`: why jobs of the database are missing; None if none are.
    """

    jobs: Sequence[PublishedJob]
    following: Place | None
    reason: str | None


Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class JobPages:
    """Reads pages of the jobs that match a query, in the turns of `work`."""

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._work = work

    async def respond(
        self,
        query: JobQuery,
        cursor: str | None,
        limit: int,
        address: str,
        *,
        more: Callable[[JobPage], dict[str, Any]] = lambda _: {},
        steps: bool = False,
    ) -> web.Response:
        """At most `limit` jobs from the place of `cursor` on, as a response to `address`, with the members `more`.

        Raises:
            BadRequest: `cursor` is not the `next_cursor` of a page.
            Refused: The turn of the request did not come, or its address has not read earlier replies.
            SourceUnavailable: The database cannot be queried, and no job beyond `cursor` is in memory: an empty page
                would mean the end of the list.
        """
        before = decode_cursor(cursor, tuple[Int64, str]) if cursor is not None else None
        async with self._work.lists.turn(address):
            self._work.replies.check(address)
            found = await self._in_memory(query, before, limit + 1)
            kept_since = self._hub.published.complete_since(self._hub.clock())
            whole = len(found) > limit and place_of(found[-1])[0] >= kept_since
            if whole or self._hub.archive is None:
                page = _page(found, limit, None, None)
                return await self._response(page, more(page), steps=steps)
        async with self._work.queries.turn(address):
            try:
                page = await self._with_archive(found, query, before, limit)
            except SourceUnavailable as error:
                if not found and before is not None:
                    raise
                page = _page(found, limit, None, error.public)
        async with self._work.lists.turn(address):
            self._work.replies.check(address)
            return await self._response(page, more(page), steps=steps)

    async def _in_memory(self, query: JobQuery, before: Place | None, limit: int) -> list[PublishedJob]:
        """The newest `limit` jobs in memory that match `query`, newest first."""
        found: list[PublishedJob] = []
        while True:
            with timed("page"):
                ended, before = self._match(query, before, limit, found)
            if ended:
                return found[:limit]
            await asyncio.sleep(0)

    def _match(
        self, query: JobQuery, before: Place | None, limit: int, found: list[PublishedJob]
    ) -> tuple[bool, Place | None]:
        """Add matching jobs to `found` for `AT_ONCE` seconds. Returns whether that was all, and where to go on."""
        matches, began = query.matcher(), time.monotonic()
        while some := self._hub.published.newest(before, max(VISITED_AT_ONCE, limit - len(found))):
            found += filter(matches, some)
            before = place_of(some[-1])
            if len(found) >= limit:
                break
            if time.monotonic() - began > AT_ONCE:
                return False, before
        return True, before

    async def _response(self, page: JobPage, more: dict[str, Any], *, steps: bool) -> web.Response:
        """The response with the jobs of `page`, where it ends, and the members `more`."""
        published, documents = self._hub.published, self._hub.documents

        def bodies() -> Iterator[bytes]:
            for shown in page.jobs:
                if published.get(shown.job_id) is shown:
                    yield documents.encoded(shown, all_jobs=True, steps=steps)
                else:
                    yield encoding.text(shown, steps=steps)

        parts, cut = await encoded(bodies(), MAX_PAGE_BYTES)
        following = place_of(page.jobs[len(parts) - 1]) if cut else page.following
        members = {
            "next_cursor": encode_cursor(following) if following is not None else None,
            "searched_to": encoding.rfc3339(following[0]) if following is not None else None,
            "complete": page.reason is None,
            "reason": page.reason,
        }
        return paged("jobs", parts, members | more)

    async def _with_archive(
        self, in_memory: Sequence[PublishedJob], query: JobQuery, before: Place | None, limit: int
    ) -> JobPage:
        """The page of the jobs that were found in memory, and of those of the database.

        Raises:
            SourceUnavailable: The database cannot be queried, or did not answer within `ARCHIVE_WITHIN` seconds.
        """
        known = {s.job_id for s in in_memory}
        matches = query.matcher()

        def is_known(job_id: str) -> bool:
            # A job that has come into memory since its place was searched there is one of the database.
            return job_id in known or ((shown := self._hub.published.get(job_id)) is not None and not matches(shown))

        merged = list(in_memory)
        loop = asyncio.get_running_loop()
        began = loop.time()
        reason: str | None = None
        certain: list[PublishedJob] | None = None
        while True:
            try:
                async with asyncio.timeout(ARCHIVE_WITHIN):
                    found = await self._hub.page(query, before, limit + 1, is_known)
            except (SourceUnavailable, TimeoutError) as error:
                if certain is not None:  # The next page begins here, and says whether the database is still away.
                    return _page(certain, limit, before, reason)
                if isinstance(error, TimeoutError):
                    raise SourceUnavailable(f"no answer within {ARCHIVE_WITHIN:g} s", Away.NO_ANSWER) from None
                raise
            for shown in found.jobs:
                # The database's collation may match more than the query does.
                if query.matches(shown):
                    merged.append(shown)
                    known.add(shown.job_id)
            merged.sort(key=place_of, reverse=True)
            before, reason = found.next_before, found.reason or reason
            if before is None:
                return _page(merged, limit, None, reason)
            # Jobs before this position are complete; after it, the database may have further ones.
            certain = [s for s in merged if place_of(s) >= before]
            within = FIRST_WITHIN if certain else GATHER_WITHIN
            if len(certain) > limit or loop.time() - began >= within:
                return _page(certain, limit, before, reason)


def paged(name: str, parts: Iterable[bytes], more: dict[str, Any]) -> web.Response:
    """A response with an array `name` of encoded items, and the members `more`."""
    body = b'{"%b":[%b],%b' % (name.encode(), b",".join(parts), encoding.encode(more)[1:])
    return web.Response(body=body, content_type="application/json")


def encode_cursor(place: object) -> str:
    """A place as text for a URL."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(text: str, kind: type[T]) -> T:
    """The place that `encode_cursor` encoded. Raises `BadRequest` for any other text."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.json.decode(raw, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadRequest("cursor: expected the next_cursor of the page before, as it was given") from error


def _page(found: Sequence[PublishedJob], limit: int, following: Place | None, reason: str | None) -> JobPage:
    """The page of at most `limit` of the jobs; one more says that there is another page."""
    if len(found) > limit:
        following = place_of(found[limit - 1])
    return JobPage(found[:limit], following, reason)


# -- the endpoints


UNNAMED: Final = "-"
"""Stands in a path for a job type that jobs do not have."""

LOG_PAGE = 1000
"""Lines of a log that are read at once for a text; a page has at most 4 MiB."""

ATTEMPTS = 5
"""Times that a page is read, a second apart, while the database cannot answer."""

_IDENTITY = ("job_id", "step_id", "external_job_id", "step_name")
"""Attributes that name the job and the step of a line, which the text shows already."""

ASK_EVERY = 1.0
"""Least seconds between two queries for an ID that a request waits for, while the database is not available."""

AGAIN_A_SECOND = 50

ANSWER_WITHIN = 1.0
"""Seconds in which the database may answer a request that waits for less: whether it has the job is known then."""

Found: TypeAlias = tuple[PublishedJob, Resolved]

_T = TypeVar("_T", bound=OfJob)


class Rest:
    """The endpoints under ``/api/v1`` for jobs, their logs, IDs, entities and operations."""

    def __init__(self, hub: Hub, work: Work, audit: Audit) -> None:
        self._hub = hub
        self._work = work
        self._audit = audit
        self._pages = JobPages(hub, work)
        self._waits = JobWaits(hub, work)
        self._log_text = LogText(hub, work)

    async def job(self, request: web.Request) -> web.Response:
        """One job, by any ID. With ``wait``, the request waits until the job exists or is past revision ``rev``."""
        name = request.match_info.get("id")
        if name is not None and not request.query_string:  # as most are: a tenth of their cost is reading parameters
            return self._shown(request, name, await self._find(name, request))
        asked = read(request, GetJob)
        return await self._job(request, asked.id, asked)

    async def _job(self, request: web.Request, name: str, asked: GetJob) -> web.Response:
        wait, rev = asked.wait, given(asked.rev)
        if not wait:
            return self._shown(request, name, await self._find(name, request))
        address, until = request.remote or "", asyncio.get_running_loop().time() + wait
        await self._check(name, request)
        self._work.held.check(address)
        with self._work.held.holding(address):
            found = await self._waits.wait(name, address, until, request[GRANT].shows_some)
            if found is not None and rev is not None:
                found = await self._past(name, found, rev, until)
        await self._work.begin.round(address)  # Thousands may have waited for the same moment.
        if found is None and self._hub.draining:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the correlator restarts: ask again", RETRY_AFTER)
        return self._shown(request, name, found, rev)

    async def _find(self, name: str, request: web.Request) -> Found | None:
        """The job that an ID names. Raises: `Denied` if the client must not see it."""
        await self._check(name, request)
        return self._shown_to(request, await self._any(name, request))

    def _any(self, name: str, request: web.Request) -> Awaitable[Found | None]:
        return self._work.find(self._hub, name, request.remote or "", request[GRANT].shows_some)

    async def _check(self, name: str, request: web.Request) -> None:
        await check_job(request[GRANT], name, lambda own: self._any(own, request))

    def _shown_to(self, request: web.Request, found: Found | None) -> Found | None:
        grant = request[GRANT]
        if not grant.shows_job(found[0] if found is not None else None):
            raise grant.refusal()
        return found

    async def _past(self, name: str, found: Found, rev: int, until: float) -> Found:
        """Wait until the job is past revision `rev`, at most until `until` (loop time)."""
        loop = asyncio.get_running_loop()
        if await self._hub.reached(rev, min(AHEAD_WITHIN, until - loop.time())):
            found = self._hub.find_now(name) or found
        while found[0].rev == rev and (left := until - loop.time()) > 0 and not self._hub.draining:
            await self._hub.waiting_ids.changed(found[0].job_id, left)
            found = self._hub.find_now(name) or found
        return found

    def _shown(self, request: web.Request, name: str, found: Found | None, rev: int | None = None) -> web.Response:
        """The response with a job. The client that waited knows it as it is at revision `rev`."""
        self._shown_to(request, found)
        if found is None:
            raise NotFound(f"no job is known by {name!r}")
        shown = found[0]
        etag = f'"{self._hub.epoch}-{shown.rev}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if shown.rev == rev or matches(request, etag):
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
        found = await self._find(name, request)
        if found is None:
            whole = f"{name}/{what}"  # may be an ID that contains a raw slash
            if request[GRANT].is_restricted:
                raise NotFound(f"no job is known by {name!r}")
            if "id" in request.match_info and ("wait" in request.query or await self._find(whole, request) is not None):
                return await self._job(request, whole, read(request, GetJob))
            raise NotFound(f"no job is known by {name!r}")
        return await respond(request, found[0], read(request, kind))

    async def _text(self, request: web.Request, shown: PublishedJob, asked: GetJobLog) -> web.StreamResponse:
        if request.method != "HEAD":
            self._audit.downloaded(request[GRANT], request.remote or "", shown.job_id)
        return await self._log_text.send(request, shown, _line_query(asked))

    async def _events(self, request: web.Request, shown: PublishedJob, asked: ListJobEvents) -> web.Response:
        after, first, before = given(asked.after), given(asked.first), given(asked.before)
        if sum(start is not None for start in (after, first, before)) > 1:
            raise BadRequest("after, from, before: give only one of them")
        names, limit, query = _names(shown), asked.limit, _line_query(asked)
        asked_for = LogLines(names, after if first is None else first, limit, query, before)
        async with self._work.queries.turn(request.remote or ""):
            page = await self._hub.ask(asked_for)
        back = {"next_before": page.next_before} if before is not None else {}
        more = {"next_after": page.next_after, **back, "more": page.more, **_complete(page.reason)}
        return await self._lines(request, map(encoding.log_line, page.lines), more)

    async def _lines(self, request: web.Request, lines: Iterable[object], more: dict[str, Any]) -> web.Response:
        async with self._work.lists.turn(request.remote or ""):
            self._work.replies.check(request.remote or "")
            parts, _ = await encoded(map(encoding.encode, lines))
            return paged("events", parts, more)

    async def find_events(self, request: web.Request) -> web.Response:
        """A page of log rows of any job that contain some words."""
        asked = read(request, FindEvents)
        since, until = _period(request, asked)
        words, places = _words(asked.text), given(asked.cursor)
        if not words:
            raise BadRequest("text: expected a word")
        self._audit.searched(request[GRANT], request.remote or "")
        query = LineQuery(asked.level, since=since, until=until, words=words)
        start, before = decode_cursor(places, tuple[dict[str, Int64], Share]) if places is not None else ({}, 0.0)
        async with self._work.queries.turn(request.remote or ""):
            found = await self._hub.ask(FindLines(asked.limit, query, asked.instance, start))
        searched = max(before, round(found.searched, 4))  # what an appliance has searched counts while it is away
        more = {
            "next_cursor": encode_cursor((found.places, searched)) if found.places else None,
            "searched": searched,
            "searched_to": encoding.rfc3339(found.searched_to) if found.searched_to is not None else None,
            **_complete(found.reason),
        }
        return await self._lines(request, map(_found_line, found.lines), more)

    async def resolve(self, request: web.Request) -> web.Response:
        """The job that an ID resolves to, and by which kind of ID."""
        name = read(request, OfJob).id
        found = await self._find(name, request)
        if found is None:
            raise NotFound(f"no job is known by {name!r}")
        resolved = found[1]
        return json_response(replace(resolved, also=()) if request[GRANT].is_restricted else resolved)

    async def jobs(self, request: web.Request) -> web.Response:
        """A page of jobs, newest first."""
        asked = read(request, ListJobs)
        since, until = _period(request, asked)
        words, address = _words(asked.words), request.remote or ""
        query = job_query(asked, words=words, since=since, until=until)
        return await self._pages.respond(query, given(asked.cursor), asked.limit, address, steps=asked.steps == "1")

    async def entity(self, request: web.Request) -> web.Response:
        """A page of the jobs of a context or of a VM, newest first. A name that is both is the context."""
        asked, grant = read(request, GetEntity), request[GRANT]
        name = asked.name
        if grant.is_restricted and (name != grant.vm or given(asked.kind) == "context"):
            raise grant.refusal()
        kind = "vm" if grant.vm else given(asked.kind) or await self._kind(name, request.remote or "")
        context, vm_name = (frozenset({name}), "") if kind == "context" else (frozenset[str](), name)
        query = JobQuery(context_id=context, vm_name=vm_name, since=_micros(asked.since))

        def more(page: JobPage) -> dict[str, Any]:
            contexts = sorted({s.view.context_id for s in page.jobs if s.view.context_id})
            return {
                "entity": name,
                "kind": kind,
                "contexts": contexts,
                "operations": trends.trends(_run(s.view) for s in page.jobs),
            }

        return await self._pages.respond(query, given(asked.cursor), asked.limit, request.remote or "", more=more)

    async def _kind(self, name: str, address: str) -> str:
        """Whether `name` is the context of a job. If only the database could say, and does not answer: a VM."""
        if self._hub.published.is_context(name):
            return "context"
        if self._hub.archive is None:
            return "vm"
        try:
            async with self._work.queries.turn(address):
                return "context" if await self._hub.ask(IsContext(name)) else "vm"
        except SourceUnavailable:
            return "vm"

    async def operations(self, request: web.Request) -> web.Response:
        """All operations that a run of has ended."""
        read(request, NoParameters)
        async with self._work.operations.turn(request.remote or ""):
            with timed("operations"):
                found = await self._hub.ask(Operations())
        return json_response({"operations": found})

    async def operation(self, request: web.Request) -> web.Response:
        """One operation, with its usual steps."""
        asked = read(request, GetOperation)
        job_type, name = asked.job_type, asked.operation
        async with self._work.operations.turn(request.remote or ""):
            with timed("operation"):
                operation = await self._hub.ask(UsualSteps("" if job_type == UNNAMED else job_type, name))
        if operation is None:
            raise NotFound(f"no run of the operation {name!r} of the job type {job_type!r} is known")
        return json_response(operation)

    async def failures(self, request: web.Request) -> web.Response:
        """A page of the jobs that failed, grouped by fingerprint, those that failed last first."""
        asked = read(request, ListFailures)
        cursor, since = given(asked.cursor), given(asked.since)
        question = FailedAlike(
            asked.limit,
            since.at(self._hub.clock()) if since is not None else None,
            given(asked.operation) or "",
            given(asked.vm) or "",
            decode_cursor(cursor, tuple[Int64, str]) if cursor is not None else None,
            instance=asked.instance,
        )
        async with self._work.queries.turn(request.remote or ""):
            found = await self._hub.ask(question)
        return json_response(
            {
                "failures": found.groups,
                "next_cursor": encode_cursor(found.following) if found.following is not None else None,
                "reaches": _reaches(found.reaches),
                **_complete(found.reason),
            }
        )

    async def failure(self, request: web.Request) -> web.Response:
        """One failure, with its texts, what came after it, and similar ones."""
        name = read(request, GetFailure).fingerprint
        async with self._work.queries.turn(request.remote or ""):
            groups = await self._hub.ask(FailedAlike(1, fingerprints=frozenset({name})))
            if not groups.groups:
                if groups.reason is not None:
                    raise SourceUnavailable(groups.reason)
                raise NotFound(f"no job failed with the fingerprint {name!r}")
            about = await self._hub.ask(DescribeFailure(name))
        reason = groups.reason or about.reason
        return json_response(
            FailureDetails(
                groups.groups[0],
                about.template,
                tuple(about.variants),
                about.next_runs,
                tuple(about.similar),
                _reaches(groups.reaches),
                reason is None,
                reason,
            )
        )

    async def why(self, request: web.Request) -> web.StreamResponse:
        """Why a job failed: its rows, the jobs that failed alike, and what differs from earlier runs."""
        return await self._below(request, "why", OfJob, self._why)

    async def _why(self, request: web.Request, shown: PublishedJob, asked: OfJob) -> web.Response:
        del asked
        failure, view, steps = shown.failure, shown.view, list(encoding.steps_of(shown))
        groups, compared = FailuresFound(), FailureComparison()
        if failure is not None:
            alike = FailedAlike(1, fingerprints=frozenset({failure.fingerprint or ""}))
            async with self._work.queries.turn(request.remote or ""):
                groups = await self._hub.ask(alike) if failure.fingerprint else groups
                compared = await self._hub.ask(CompareFailure(view.job_id, shown.instance))
        rows = [FailureRow(None, view.status.value, view.error)] if failure is not None and view.error else []
        if failure is not None:
            rows += [FailureRow(s.name, s.status, s.error_message) for s in steps if s.error_message]
        reason = groups.reason or compared.reason
        last = steps[-1].name if steps else None
        return json_response(
            Why(
                view.job_id,
                failure,
                sentence(failure.certainty, failure.step, failure.text, last) if failure is not None else "",
                tuple(rows),
                groups.groups[0] if groups.groups else None,
                compared.differs,
                compared.burst,
                _reaches(groups.reaches),
                reason is None,
                reason,
            )
        )


def _reaches(at: Micros | None) -> str | None:
    return encoding.rfc3339(at) if at is not None else None


def _run(view: JobView) -> trends.ComparedRun:
    took = encoding.seconds(view.started_at, view.ended_at) if view.terminal else None
    return trends.ComparedRun((view.job_type or "", view.operation or ""), view.status.value, took)


def _line_query(asked: GetJobLog) -> LineQuery:
    return LineQuery(asked.level, asked.steps, asked.text, _micros(asked.since))


def _complete(reason: str | None) -> dict[str, Any]:
    """What a page says of itself. `reason`: why something is missing."""
    return {"complete": reason is None, "reason": reason}


def _words(text: str) -> frozenset[str]:
    words = frozenset(re.findall(WORD, text))
    if len(words) > MAX_WORDS:
        raise BadRequest(f"text: expected at most {MAX_WORDS} words, not {len(words)}")
    return words


def _period(request: web.Request, asked: ListJobs | FindEvents) -> tuple[Micros | None, Micros | None]:
    since, until = _micros(asked.since), _micros(asked.until)
    if since is not None and until is not None and until <= since:
        raise BadRequest(f"until={request.query['until']!r}: expected a time after since={request.query['since']!r}")
    return since, until


def _found_line(line: FoundLine) -> dict[str, Any]:
    where = {"instance": line.instance} if line.instance else {}
    names = {"job_id": line.job_id, "vm_name": line.vm_name, "operation": line.operation}
    return {**encoding.log_line(line), **names, **where}


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
        frozenset(s.id for s in encoding.steps_of(shown)),
        view.started_at or 0,
        ended if view.terminal else None,
        shown.instance,
    )


class JobWaits:
    """Requests that wait until a job with an unknown ID exists, in the turns of `work`. They may raise `Refused`.

    None asks again meanwhile: the job may be in the database, which is asked once for all requests that wait for the
    same ID, or it appears in memory, which is an event. While the database does not answer, it is asked again, at most
    `AGAIN_A_SECOND` times a second for all IDs together.
    """

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._work = work
        self._waiting: SharedTasks[Found | None] = SharedTasks()
        self._failures: dict[str, SourceUnavailable] = {}
        """For an ID that is being asked for: why the last attempt failed."""
        self._rest_until = 0.0

    async def wait(self, name: str, address: str, until: float, shows: Shows | None = None) -> Found | None:
        """As `Work.find`, but wait for the job until `until` (loop time). None if there is none, or the process drains.

        A wait that is shorter than `ANSWER_WITHIN` goes on until the database has answered once.

        Raises:
            SourceUnavailable: The database could not say until then whether it has the job.
        """
        if shows is not None:
            return await self._wait_for_some(name, address, until, shows)
        if self._hub.find_now(name) is not None:
            return await self._work.find(self._hub, name, address)
        clock, waiting_ids = asyncio.get_running_loop().time, self._hub.waiting_ids
        answered_until = max(until, clock() + ANSWER_WITHIN)
        asking = asyncio.ensure_future(self._waiting.run(name, lambda: self._ask(name, address)))

        def ended(task: asyncio.Future[Found | None]) -> None:
            if not task.cancelled():  # else the request has ended
                task.exception()  # It is raised below, if the request still waits.
                waiting_ids.wake_name(name)

        asking.add_done_callback(ended)
        try:
            with waiting_ids.watched_id(name):
                while (found := self._hub.find_now(name)) is None and not self._hub.draining:
                    if asking.done() and (found := asking.result()) is not None:
                        return found
                    known = asking.done() or name in self._failures
                    if (left := (until if known else answered_until) - clock()) <= 0:
                        break
                    await waiting_ids.changed(name, left)
            if found is None and not asking.done() and not self._hub.draining:
                raise self._failures.get(name) or SourceUnavailable("the database was not asked in time", Away.BUSY)
            return found
        finally:
            asking.cancel()

    async def _wait_for_some(self, name: str, address: str, until: float, shows: Shows) -> Found | None:
        """For a client that may not see every job: nothing depends on a job that it must not see."""
        failure = None
        try:
            found = await self._work.find(self._hub, name, address, shows)
        except SourceUnavailable as error:
            found, failure = None, error
        if found is None:
            found = await self._hub.appearance(name, until - asyncio.get_running_loop().time(), shows)
        if found is None and failure is not None and not self._hub.draining:
            raise failure
        return found

    async def _ask(self, name: str, address: str) -> Found | None:
        """What the database has, asked as often as it takes until it answers.

        After a lookup of t seconds, the next one begins t seconds later: most IDs are of no job yet, and the database
        has others to serve.
        """
        clock = asyncio.get_running_loop().time
        try:
            while True:
                try:
                    async with self._work.waited_ids.turn(address):
                        await asyncio.sleep(max(0.0, self._rest_until - clock()))
                        began = clock()
                        try:
                            return await self._hub.find(name)
                        finally:
                            self._rest_until = 2 * clock() - began
                except SourceUnavailable as error:
                    self._failures[name] = error
                    self._hub.waiting_ids.wake_name(name)
                    if error.reason is not Away.UNFINISHED:
                        await asyncio.sleep(max(ASK_EVERY, self._work.held.total / AGAIN_A_SECOND))
        finally:
            self._failures.pop(name, None)


class LogText:
    """Sends logs as text. An error after the first page aborts the connection: the client sees that it is not whole.

    If lines may be missing, the last line begins with `#` and says why.
    """

    def __init__(self, hub: Hub, work: Work) -> None:
        self._hub = hub
        self._sent = work.downloads

    async def send(self, request: web.Request, shown: PublishedJob, query: LineQuery) -> web.StreamResponse:
        """Send the lines of a job that match `query`, the oldest first.

        Raises:
            Refused: Too many logs are being sent.
            SourceUnavailable: The first page cannot be read.
        """
        address = request.remote or ""
        self._sent.check(address)
        with self._sent.holding(address):
            pages = self._pages(LogLines(_names(shown), None, LOG_PAGE, query))
            first = await anext(pages)
            response = StreamedResponse(
                headers={"Content-Disposition": f'attachment; filename="{_file_name(shown.view)}"'}
            )
            response.content_type, response.charset = "text/plain", "utf-8"
            await response.prepare(request)
            steps = {step.id: step.name for step in encoding.steps_of(shown)}
            try:
                if response.has_body:
                    reason = await _write(response, first, steps)
                    async for page in pages:
                        reason = await _write(response, page, steps) or reason
                    if reason is not None:
                        await response.write(f"# {escape(reason)}\n".encode())
                await response.write_eof()
            except (SourceUnavailable, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def _pages(self, asked: LogLines) -> AsyncIterator[LinesPage]:
        """The lines in the order of time. Pages follow the IDs, so as many lines as the last one had are held back."""
        held: list[LogLine] = []
        page = await self._hub.ask(asked)
        while True:
            merged = sorted([*held, *page.lines], key=lambda line: (line.at, line.event_id))
            ready = len(merged) - (len(page.lines) if page.lines else len(held)) if page.more else len(merged)
            held = merged[ready:]
            yield replace(page, lines=merged[:ready])
            if not page.more:
                return
            page = await self._persist(replace(asked, after=page.next_after))

    async def _persist(self, asked: LogLines) -> LinesPage:
        for _ in range(ATTEMPTS):
            if self._hub.draining:
                raise SourceUnavailable("the correlator restarts")
            try:
                return await self._hub.ask(asked)
            except SourceUnavailable:
                await asyncio.sleep(1)
        raise SourceUnavailable("the log was not read to its end", Away.NO_ANSWER)


async def _write(response: StreamedResponse, page: LinesPage, steps: Mapping[int, str]) -> str | None:
    """Write the lines of a page, and return why others may be missing."""
    if page.lines:
        await response.write("".join(_text(line, steps) for line in page.lines).encode())
    return page.reason


def _text(line: LogLine, steps: Mapping[int, str]) -> str:
    """``2025-09-22T10:00:00.123456Z WARN  step-name: message  name=value`` and a line break; no control characters."""
    name = steps.get(line.step_id) if line.step_id is not None else None
    step = f"{name}: " if name else ""
    attributes = "".join(f"  {part}" for part in _attributes(line.attrs))
    return f"{encoding.rfc3339(line.at)} {line.level:5} {escape(f'{step}{line.message}{attributes}')}\n"


def _attributes(attrs: Any) -> list[str]:
    if not isinstance(attrs, dict):
        return [] if attrs is None else [_value(attrs)]
    return [f"{name}={_value(value)}" for name, value in attrs.items() if name not in _IDENTITY and value != ""]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else encoding.encode(value).decode()


def _file_name(view: JobView) -> str:
    """The job's first external ID, else its job ID, with the characters that every file system and header accepts."""
    name = next(iter(view.external_ids), view.job_id)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:100] + ".log"
