"""A client of the daemon's API: jobs over REST, and their changes over the websocket.

Problem: a watch may run for hours, in which the daemon restarts and the network fails. The caller must still see the
current jobs, and must know when they may be out of date.

Model: `Client.follow` opens a websocket, gives its messages to a `Replica`, and yields an `Update` after each frame and
after each change of the connection. A lost connection is opened again with full jitter and resumes where the daemon
allows it. The daemon sends a message at least every 10 s; after `silent_after` s of silence the client reconnects.

Invariants: errors that a retry cannot fix (`AccessRefused`, `NotACorrelator`) end `follow`. All others only delay it,
except that the first connection must succeed unless the caller is patient. Each error is a text for an operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl as tls
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Self, cast
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from correlator.client.connector import TokenConnector
from correlator.client.line_merge import Page
from correlator.client.messages import (
    MAX_MESSAGE,
    Document,
    Job,
    LogMessage,
    decode,
)
from correlator.client.replica import ConnectionState, Forbidden, Replica, Update
from correlator.config.values import shown_url
from correlator.errors import BadRequest, CorrelatorError, NotFound
from correlator.model import job_token
from correlator.model.messages import Bookmark, Bye, ClientMessage, CloseCode, Wanted, Welcome
from correlator.model.rows import Level
from correlator.tasks import Backoff

DEFAULT_URL = "http://127.0.0.1:8686"
SILENT_AFTER = 25.0
"""Seconds without a message after which a connection is closed."""


ANSWER_WITHIN = 20.0
SEARCH_WITHIN = 20.0
"""Seconds for all pages of one search."""


MAX_PAGE = 500


CONNECT_WITHIN = 10.0


IDS_IN_ONE = 50
"""IDs in one subscription. With 255 characters of 4 bytes each, the frame is still one that the daemon accepts."""


Query = Mapping[str, str | Sequence[str]]


class JobList(Struct, frozen=True):
    """Result of a search. `more`: there are jobs beyond the limit. `incomplete`: why jobs may be missing, or None."""

    found: list[Job]
    more: bool = False
    incomplete: str | None = None


class Client:
    """A connection to one daemon. Use it as ``async with Client(url) as client``, in one task at a time."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str = "",
        ssl: tls.SSLContext | None = None,
        silent_after: float = SILENT_AFTER,
        search_within: float = SEARCH_WITHIN,
    ) -> None:
        """`token`: empty if the daemon needs none. `ssl`: for a certificate that this host does not trust.

        `silent_after`: seconds without a message after which `follow` reconnects. `search_within`: seconds of a search.

        Raises:
            BadRequest: `url` is not an http or https URL.
        """
        self.url = _base(url)
        self._token = token
        self._ssl = ssl
        self._silent_after = silent_after
        self._search_within = search_within
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        connect = TokenConnector if self._token else aiohttp.TCPConnector
        connector = connect(ssl=self._ssl if self._ssl is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def jobs(self, query: Query = MappingProxyType({}), limit: int = MAX_PAGE) -> JobList:
        """List up to `limit` jobs, the newest first. `query` has the parameters of ``GET /api/v1/jobs``.

        A search through a large table ends after `search_within` seconds; the result is then incomplete.

        Raises:
            BadRequest: the daemon rejects the query.
            Unreachable, AccessRefused, NotACorrelator, ForeignListener: see their docstrings.
        """
        return await self._listed("/api/v1/jobs", query, limit)

    async def history(self, name: str, limit: int = MAX_PAGE, since: str | None = None) -> JobList:
        """List up to `limit` jobs of a VM or a context, the newest first. It ends and raises as `jobs` does.

        `since`: only jobs that started then or later, in RFC 3339.
        """
        query = {"since": since} if since is not None else {}
        return await self._listed(f"/api/v1/entities/{quote(name, safe='')}", query, limit)

    async def _listed(self, path: str, query: Query, limit: int) -> JobList:
        found: list[Job] = []
        cursor: str | None = None
        incomplete: str | None = None
        began = time.monotonic()
        while len(found) < limit:
            page = dict(query) | {"limit": str(min(MAX_PAGE, limit - len(found)))}
            if cursor is not None:
                page["cursor"] = cursor
            body = await self._get(path, page)
            if body is None or "jobs" not in body:
                raise self._not_a_correlator("its answer has no member `jobs`")
            found += body["jobs"]
            cursor = body.get("next_cursor")
            if "kind" in body:
                query = {**query, "kind": str(body["kind"])}  # a name is read in the same way on every page
            if body.get("complete") is False:
                incomplete = str(body.get("reason") or "the daemon gave no reason")
                break
            if cursor is None:
                break
            if time.monotonic() - began > self._search_within:
                incomplete = f"older jobs were not searched within {self._search_within:g} s"
                break
        return JobList(found, cursor is not None, incomplete)

    async def job(self, name: str, wait: float = 0.0) -> Job | None:
        """Fetch one job by any ID; None if it is still unknown after `wait` seconds (at most 60)."""
        path, query = _job(name)
        query |= {"wait": f"{wait:g}"} if wait else {}
        return cast("Job | None", await self._get(path, query, within=ANSWER_WITHIN + wait))

    async def why(self, name: str) -> Document | None:
        """Fetch why a job failed: ``GET /api/v1/jobs/{id}/why``; None: no job has this ID. It raises as `jobs` does."""
        path, query = _job(name)
        return cast("Document | None", await self._get(path + "/why", query))

    async def failures(self, query: Query = MappingProxyType({})) -> Document:
        """Fetch a page of ``GET /api/v1/failures``, whose parameters `query` has. It raises as `jobs` does."""
        body = await self._get("/api/v1/failures", query)
        if body is None or "failures" not in body:
            raise self._not_a_correlator("its answer has no member `failures`")
        return cast("Document", body)

    async def failure(self, fingerprint: str) -> Document | None:
        """Fetch ``GET /api/v1/failures/{fingerprint}``; None if no job failed so. It raises as `jobs` does."""
        return cast("Document | None", await self._get(f"/api/v1/failures/{quote(fingerprint, safe='')}", {}))

    async def lines(self, name: str, level: Level = "INFO") -> AsyncGenerator[LogMessage, None]:
        """Yield the log lines of a job from `level` on, the oldest first, up to the newest that there is.

        Raises:
            Incomplete: after the last line: others may be missing.
            NotFound: no job has this ID.
            Unreachable, AccessRefused, NotACorrelator, ForeignListener: see their docstrings.
        """
        page, reason = Page([], more=True), None
        while page.more:
            found = await self.events_page(name, {"level": level}, page.next_after)
            if found is None:
                raise NotFound(f"no job is known by {name!r} at {self.url}")
            page = found
            for line in page.events:
                yield line
            reason = page.reason or reason
        if reason is not None:
            raise Incomplete(reason)

    async def events_page(self, name: str, query: Query, after: str | None = None) -> Page | None:
        """Fetch a page of log lines of a job, after the `next_after` of the page before; None without such a job.

        `query` has the parameters of ``GET /api/v1/jobs/{id}/events``.
        """
        path, own = _job(name)
        full = {"limit": "1000", **query, **own} | ({"after": after} if after is not None else {})
        body = await self._get(path + "/events", full)
        if body is None:
            return None
        try:
            events = [{"type": "log", "job_id": name, **line} for line in body.get("events", ())]
            page = msgspec.convert({**body, "events": events}, type=Page)
        except (msgspec.ValidationError, TypeError) as error:
            raise self._not_a_correlator(f"a page of log lines is invalid: {error}") from error
        return page

    async def found_lines(self, query: Query) -> AsyncGenerator[Document, None]:
        """Yield the pages of ``GET /api/v1/events``, whose parameters `query` has. It raises as `jobs` does."""
        cursor: dict[str, str] = {}
        while True:
            body = await self._get("/api/v1/events", {**query, **cursor})
            if body is None or "events" not in body:
                raise self._not_a_correlator("its answer has no member `events`")
            yield body
            away = body.get("complete") is False and body.get("searched_to") is None
            if body.get("next_cursor") is None or away:  # only appliances that do not answer are left
                return
            cursor = {"cursor": str(body["next_cursor"])}

    async def follow(
        self, what: str | Sequence[str] | Wanted, *, logs: Level | None = None, patient: bool = False
    ) -> AsyncGenerator[Update, None]:
        """Yield an update after each change of these jobs or of the connection, without end.

        `what`: an ID, also one that no job has yet; several; or a filter. `logs`: the lowest level of log lines, which
        are not sent without it. A lost connection is opened again; `patient`: the first one is waited for too.

        Raises:
            AccessRefused: the daemon rejects the token or this host, or the token does not open what is wanted.
            NotACorrelator: the messages are not those of docs/protocol.md.
            Unreachable: the first connection failed, and `patient` is false.
            BadRequest: the daemon rejects the subscription.
        """
        wanted = what if isinstance(what, Wanted) else Wanted(jobs=(what,) if isinstance(what, str) else tuple(what))
        wanted = wanted if logs is None else msgspec.structs.replace(wanted, logs=logs)
        replica, backoff, reached = Replica(split_wanted(wanted)), Backoff(0.25, 2.0, 10.0), patient
        exchange = Exchange(replica, self._silent_after)
        while True:
            error = f"{self.url} ended the connection"
            try:
                async with self._connected() as ws:
                    await ws.send_str(_frame(replica.hello(self._token)))
                    while await exchange.next(ws):
                        reached = True
                        if replica.synced:
                            backoff.reset()
                        yield replica.drain(ConnectionState("live"), exchange.ahead)
                    if (final := self._of_close_code(ws.close_code)) is not None:
                        raise final
            except Unreachable as failure:
                if not reached:
                    raise
                error = str(failure)
            except (aiohttp.ClientError, OSError) as failure:  # TimeoutError is an OSError
                if not reached:
                    raise self._unreachable(failure) from failure
                error = str(failure) or f"{self.url} does not answer"
            except Forbidden as failure:
                raise AccessRefused(f"{self.url} refuses: {failure}") from failure
            except ValueError as failure:
                raise self._not_a_correlator(f"its message is invalid: {failure}") from failure
            if (delay := exchange.pop_retry_delay()) is None:
                delay = backoff.next()
            yield replica.drain(ConnectionState("offline", error), exchange.ahead)
            await asyncio.sleep(delay)

    async def _get(self, path: str, query: Query, within: float = ANSWER_WITHIN) -> Any:
        """GET a JSON body; None for a 404 of the daemon's own. `within`: seconds.

        Raises:
            BadRequest, Unreachable, AccessRefused, NotACorrelator: for other answers, and for none.
        """
        session = self._open_session()
        pairs = [(k, v) for k, vs in query.items() for v in ([vs] if isinstance(vs, str) else vs)]
        url = URL(self.url + path, encoded=True).with_query(pairs)
        try:
            async with asyncio.timeout(within), session.get(url, allow_redirects=False) as response:
                raw, status, kind = await response.read(), response.status, response.content_type
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        try:
            body = msgspec.json.decode(raw) if kind in ("application/json", "application/problem+json") else None
        except msgspec.DecodeError:
            body = None
        if isinstance(body, dict) and status == HTTPStatus.OK:
            return body
        detail = body.get("detail") if isinstance(body, dict) else None
        if status == HTTPStatus.NOT_FOUND and detail is not None:
            return None
        if status == HTTPStatus.BAD_REQUEST and detail is not None:
            raise BadRequest(str(detail))
        raise self._of_status(status, detail, f"HTTP {status}, {kind}")

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open the websocket, and close it at the end.

        Raises:
            Unreachable, AccessRefused, NotACorrelator: the handshake failed.
        """
        timeout = aiohttp.ClientWSTimeout(ws_close=1.0)
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                ws = await self._open_session().ws_connect(self.url + "/ws", timeout=timeout, max_msg_size=MAX_MESSAGE)
        except aiohttp.WSServerHandshakeError as error:
            is_forbidden = error.status == HTTPStatus.FORBIDDEN
            detail = "this host name or origin is not allowed there" if is_forbidden else None
            words = f"it answered a websocket with HTTP {error.status}"
            raise self._of_status(error.status, detail, words) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        try:
            yield ws
        finally:
            await ws.close()

    def _unreachable(self, error: Exception) -> Unreachable:
        cause = getattr(error, "os_error", None) or error
        match cause:
            case TimeoutError():
                reason = "no answer in time"
            case OSError(errno=int(number)) if number > 0 and not isinstance(cause, tls.SSLError):
                reason = os.strerror(number)  # asyncio replaces its text
            case _:
                reason = getattr(cause, "strerror", None) or str(cause)
        return Unreachable(
            f"{self.url} cannot be reached: {reason}\n"
            "start it with `correlator run`, or say where it is: with --url or CORRELATOR_URL in a terminal"
        )

    def _not_a_correlator(self, why: str) -> NotACorrelator:
        return NotACorrelator(f"{self.url} answers, but not as a correlator of a compatible version: {why}")

    def _of_status(self, status: int, detail: object, words: str) -> CorrelatorError:
        """The error for a response with this status.

        `detail`: why, by the daemon; None if its problem+json did not say it. `words`: the response in words.
        """
        if status == HTTPStatus.UNAUTHORIZED:
            return self._token_refused()
        if status == HTTPStatus.FORBIDDEN and detail is not None:
            return AccessRefused(f"{self.url} refuses: {detail}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            return Unreachable(f"{self.url} cannot answer: {detail or f'HTTP {status}'}")
        return self._not_a_correlator(words)

    def _of_close_code(self, code: int | None) -> CorrelatorError | None:
        """The error for a close code that a retry cannot fix, else None. See docs/protocol.md."""
        match code:
            case CloseCode.UNAUTHORISED:
                return self._token_refused()
            case CloseCode.FORBIDDEN:
                return AccessRefused(
                    f"{self.url} refuses: it does not know this token, or this host is not allowed there"
                )
            case 1009:
                return self._not_a_correlator(f"one of its messages is larger than {MAX_MESSAGE >> 20} MiB")
            case CloseCode.BAD_PROTOCOL:
                return self._not_a_correlator("it rejected our message, so it may be another version")
            case _:
                return None

    def _token_refused(self) -> AccessRefused:
        what = "does not know this token" if self._token else "asks for a token"
        return AccessRefused(f"{self.url} {what}: give one, with --token-file or CORRELATOR_TOKEN in a terminal")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            raise RuntimeError("the client is not open: use it as `async with Client(…) as client:`")
        return self._session


def _job(name: str) -> tuple[str, dict[str, str]]:
    """The path and the query of a job."""
    if name in (".", ".."):  # URLs lose such a segment.
        return "/api/v1/job", {"id": name}
    # An ID may have any character, also `/` and `%`, so all of it is percent-encoded.
    return "/api/v1/jobs/" + quote(name, safe=""), {}


def _base(url: str) -> str:
    full = (url if "://" in url else f"http://{url}").rstrip("/")
    wrong = BadRequest(f"{shown_url(url)!r} is no URL of a correlator: expected something like {DEFAULT_URL}")
    try:
        parts = urlsplit(full)
        (parts.hostname or "").encode("idna")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wrong from None
    if not usable or parts.username is not None or parts.query or parts.fragment:
        raise wrong
    return full


class Exchange:
    """Exchange of messages with the daemon, over one connection after the other.

    `silent_after`: seconds without a message after which a connection is given up.
    """

    def __init__(self, replica: Replica, silent_after: float) -> None:
        self._replica = replica
        self._silent_after = silent_after
        self._retry_in: float | None = None
        self.ahead = 0.0
        """Seconds that the daemon's clock is ahead of the local clock."""

    async def next(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Receive one frame and send the answers; False if the connection has ended.

        Raises:
            TimeoutError: no frame arrived for `silent_after` seconds.
            ValueError: a message is invalid.
        """
        async with asyncio.timeout(self._silent_after):
            frame = await ws.receive()
            if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                return False
            for message in decode(frame.data):
                for answer in self._replica.receive(message):
                    await ws.send_str(_frame(answer))
                match message:
                    case Bye(retry_ms=(low, high)):
                        self._retry_in = random.uniform(low, high) / 1000
                    case Welcome(at=at) | Bookmark(at=at):
                        self.ahead = datetime.fromisoformat(at).timestamp() - time.time()
        return True

    def pop_retry_delay(self) -> float | None:
        """Return, once, the seconds to wait before reconnecting that the daemon's last bye gave; None without a bye."""
        delay, self._retry_in = self._retry_in, None
        return delay


def split_wanted(wanted: Wanted) -> list[Wanted]:
    """Split a subscription into parts of at most `IDS_IN_ONE` IDs."""
    if wanted.jobs is None or len(wanted.jobs) <= IDS_IN_ONE:
        return [wanted]
    starts = range(0, len(wanted.jobs), IDS_IN_ONE)
    return [msgspec.structs.replace(wanted, jobs=wanted.jobs[at : at + IDS_IN_ONE]) for at in starts]


def create_job_token(
    key: str, *, job: str = "", vm: str = "", valid_for: float = job_token.VALID_FOR, instance: str = ""
) -> str:
    """Return a token that shows one job, or the jobs of one VM, and nothing else. The daemon is not asked.

    `key`: the content of `http.job_token_key_file`. `job`: any ID of a job, which need not exist yet. `valid_for`:
    seconds; the daemon accepts at most `http.job_token_max`. `instance`: the appliance, if the token is for just one.

    Raises: ValueError with what is wrong.
    """
    return job_token.create(key, now=time.time(), job=job, vm=vm, valid_for=valid_for, instance=instance)


def _frame(message: ClientMessage) -> str:
    return msgspec.json.encode(message).decode()


# -- errors


class Unreachable(CorrelatorError):
    """The daemon does not answer, or cannot answer at the moment. A retry may succeed."""


class Incomplete(CorrelatorError):
    """All lines that were found have been returned, and others may be missing. A repetition may find them."""


class AccessRefused(CorrelatorError):
    """The daemon refuses the connection. A retry without another token does not succeed."""


class NotACorrelator(CorrelatorError):
    """The server at this URL is no correlator, or has an incompatible version."""
