"""A client of our own API: jobs over REST, and their changes over the websocket, through restarts of the daemon.

A connection that ends is made again, with full jitter, and resumed where the daemon allows it. A daemon that says
nothing for 25 s is taken for dead, as it says something at least every 10 s.
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
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from correlator.backoff import Backoff
from correlator.errors import BadRequest, CorrelatorError
from correlator.replica import Connection, Replica, Update
from correlator.replica.messages import Bye, Document, Wanted, decode

DEFAULT_URL = "http://127.0.0.1:8686"
SILENT_AFTER = 25.0
"""Seconds without a message after which a connection is given up."""

CONNECT_WITHIN = 10.0
ANSWER_WITHIN = 20.0
MAX_PAGE = 500
IDS_IN_ONE = 50
"""IDs in one subscription: of 255 characters of 4 bytes each, still a frame that the daemon takes."""

_Query = Mapping[str, str | Sequence[str]]


class Unreachable(CorrelatorError):
    """Nobody answers there, or somebody who cannot at the moment. Trying again may help."""


class Refused(CorrelatorError):
    """The correlator answers, and does not let us in. Trying again does not help."""


class NotACorrelator(CorrelatorError):
    """What answers there is something else, or speaks another version."""


class Client:
    """Use it as ``async with Client(url) as client``. `token`: where the correlator asks for one."""

    def __init__(self, url: str = DEFAULT_URL, *, token: str = "", ssl: tls.SSLContext | None = None) -> None:
        """Raises `BadRequest` where `url` is none."""
        self.url = _base(url)
        self._token = token
        self._ssl = ssl
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        connector = aiohttp.TCPConnector(ssl=self._ssl if self._ssl is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def jobs(self, query: _Query, limit: int) -> list[Document]:
        """Up to `limit` jobs, the newest first. `query` has the filters of ``GET /api/v1/jobs``."""
        found: list[Document] = []
        cursor: str | None = None
        while len(found) < limit:
            page = dict(query) | {"limit": str(min(MAX_PAGE, limit - len(found)))}
            if cursor is not None:
                page["cursor"] = cursor
            body = await self._get("/api/v1/jobs", page)
            if body is None or "jobs" not in body:
                raise self._stranger("its answer holds no jobs")
            found += body["jobs"]
            cursor = body.get("next_cursor")
            if cursor is None:
                break
        return found

    async def job(self, name: str, wait: float = 0.0) -> Document | None:
        """One job, by any ID; None where it is unknown, and still unknown after `wait` seconds (at most 60)."""
        query = {"wait": f"{wait:g}"} if wait else {}
        found: Document | None = await self._get(_path(name), query, within=ANSWER_WITHIN + wait)
        return found

    async def events(self, name: str, level: str, pages: int = 20) -> list[Document]:
        """The log lines of a job from `level` on, the oldest first; at most `pages` thousand."""
        lines: list[Document] = []
        query = {"level": level, "limit": "1000"}
        for _ in range(pages):
            body = await self._get(_path(name) + "/events", query)
            if body is None:
                break
            lines += body.get("events", [])
            if body.get("next_after") is None or not body.get("events"):
                break
            query["after"] = str(body["next_after"])
        return lines

    async def follow(self, wanted: Wanted, *, patient: bool = False) -> AsyncGenerator[Update, None]:
        """What `wanted` knows now and whenever that changes, for ever; also whenever the connection does.

        Raises `Refused`, `NotACorrelator`, and `Unreachable` for the first connection unless `patient`.
        """
        replica, backoff, reached = Replica(_split(wanted)), Backoff(0.25, 2.0, 10.0), patient
        talk = _Talk(replica, self._token)
        while True:
            error = f"{self.url} ended the connection"
            try:
                async with self._connected() as ws:
                    await talk.open(ws)
                    while await talk.next(ws):
                        reached = True
                        if replica.synced:
                            backoff.reset()
                        yield replica.take(Connection("live"), talk.ahead)
                    self._judge(ws)
            except (Unreachable, aiohttp.ClientError, OSError) as failure:  # TimeoutError is an OSError
                if not reached:
                    raise failure if isinstance(failure, Unreachable) else self._unreachable(failure) from failure
                error = str(failure) or f"{self.url} does not answer"
            except ValueError as failure:
                raise self._stranger(f"what it says makes no sense: {failure}") from failure
            delay = talk.retry_in if talk.retry_in is not None else backoff.next()
            talk.retry_in = None
            yield replica.take(Connection("offline", error, delay), talk.ahead)
            await asyncio.sleep(delay)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        assert self._session is not None, "use it as a context"
        timeout = aiohttp.ClientWSTimeout(ws_close=1.0)
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                ws = await self._session.ws_connect(self.url + "/ws", timeout=timeout, max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            raise self._turned_away(error.status) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error
        try:
            yield ws
        finally:
            await ws.close()

    def _turned_away(self, status: int) -> CorrelatorError:
        if status == HTTPStatus.UNAUTHORIZED:
            return self._no_token()
        if status == HTTPStatus.FORBIDDEN:
            return Refused(f"{self.url} refuses: this host name or origin is not allowed there")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            return Unreachable(f"{self.url} cannot serve now (HTTP {status})")
        return self._stranger(f"it answered a websocket with HTTP {status}")

    def _judge(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Raise where the daemon's close code says that coming back is of no use."""
        match ws.close_code:
            case 4401:
                raise self._no_token()
            case 4403:
                raise Refused(f"{self.url} refuses: it does not know this token, or this host is not allowed there")
            case 4400:
                raise self._stranger("it does not understand us: another version?")
            case _:
                pass

    async def _get(self, path: str, query: _Query, within: float = ANSWER_WITHIN) -> Any:
        """The body; None for a 404 that a correlator gives."""
        assert self._session is not None, "use it as a context"
        pairs = [(k, v) for k, vs in query.items() for v in ([vs] if isinstance(vs, str) else vs)]
        url = URL(self.url + path, encoded=True).with_query(pairs)
        try:
            async with asyncio.timeout(within), self._session.get(url, allow_redirects=False) as response:
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
        match status:
            case HTTPStatus.UNAUTHORIZED:
                raise self._no_token()
            case HTTPStatus.FORBIDDEN if detail is not None:
                raise Refused(f"{self.url} refuses: {detail}")
            case HTTPStatus.NOT_FOUND if detail is not None:
                return None
            case HTTPStatus.BAD_REQUEST if detail is not None:
                raise BadRequest(str(detail))
            case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Unreachable(f"{self.url} cannot answer: {detail or f'HTTP {status}'}")
            case _:
                raise self._stranger(f"HTTP {status}, {kind}")

    def _unreachable(self, error: Exception) -> Unreachable:
        cause = getattr(error, "os_error", None) or error
        match cause:
            case TimeoutError():
                reason = "no answer in time"
            case OSError(errno=int(number)) if number > 0 and not isinstance(cause, tls.SSLError):
                reason = os.strerror(number)  # its own text is asyncio's
            case _:
                reason = getattr(cause, "strerror", None) or str(cause)
        return Unreachable(
            f"{self.url} cannot be reached: {reason}\n"
            "start it with `correlator run`, or say where it is with --url or CORRELATOR_URL"
        )

    def _no_token(self) -> Refused:
        what = "does not know this token" if self._token else "asks for a token"
        return Refused(f"{self.url} {what}: give one with --token-file or CORRELATOR_TOKEN")

    def _stranger(self, why: str) -> NotACorrelator:
        return NotACorrelator(f"{self.url} answers, but is no correlator that we understand: {why}")


class _Talk:
    """What is said over one connection after the other."""

    def __init__(self, replica: Replica, token: str) -> None:
        self._replica = replica
        self._token = token
        self.retry_in: float | None = None
        """Seconds after which the daemon asked us to come back."""
        self.ahead = 0.0

    async def open(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        await ws.send_str(_frame(self._replica.hello(self._token)))

    async def next(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Take in one frame and answer it; False where the connection has ended. Raises TimeoutError on silence."""
        async with asyncio.timeout(SILENT_AFTER):
            frame = await ws.receive()
            if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                return False
            for message in decode(frame.data):
                for answer in self._replica.hear(message):
                    await ws.send_str(_frame(answer))
                if isinstance(message, Bye):
                    low, high = message.retry_ms
                    self.retry_in = random.uniform(low, high) / 1000
        if (at := self._replica.daemon_time) is not None:
            self._replica.daemon_time = None
            self.ahead = datetime.fromisoformat(at).timestamp() - time.time()
        return True


def _path(name: str) -> str:
    # Percent-encoded whole, as an ID may hold any character, `/` and `%` too.
    return "/api/v1/jobs/" + quote(name, safe="")


def _frame(message: dict[str, Any]) -> str:
    return msgspec.json.encode(message).decode()


def _split(wanted: Wanted) -> list[Wanted]:
    """As many subscriptions as its IDs need."""
    if wanted.jobs is None or len(wanted.jobs) <= IDS_IN_ONE:
        return [wanted]
    starts = range(0, len(wanted.jobs), IDS_IN_ONE)
    return [msgspec.structs.replace(wanted, jobs=wanted.jobs[at : at + IDS_IN_ONE]) for at in starts]


def _base(url: str) -> str:
    full = (url if "://" in url else f"http://{url}").rstrip("/")
    wrong = BadRequest(f"{url!r} is no URL of a correlator: expected something like {DEFAULT_URL}")
    try:
        parts = urlsplit(full)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wrong from None
    if not usable or parts.username is not None or parts.query or parts.fragment:
        raise wrong
    return full
