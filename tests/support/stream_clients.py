"""Streaming clients that check every message against the contract: websockets and event streams, to drop and freeze.

Invariant: a message that breaks the contract raises AssertionError when it is received. A client that still runs at
the end of a test has received nothing but what docs/protocol.md promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import orjson

from correlator.client.client import Client
from correlator.model import messages
from tests.support.client_fold import ClientFold, Document
from tests.support.daemon import HELLO
from tests.support.eventually import PATIENCE, eventually
from tests.support.subscriptions import ALL, FILTERS, Truth, Wanted, same

LONGEST_LINE = 1 << 24
"""Bytes of a line of an event stream."""

Event = tuple[str | None, Document]
"""Of an event stream: its own id, if it has one, and its message."""


class Refused(Exception):
    """A client was refused, or its connection ended before it was synced. `code`: of the close, or the HTTP status."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"refused with {code}")
        self.code = code


class CheckedReader(ABC):
    """A client that folds what it receives, in a task of its own. It can be dropped and connect again.

    `receive_buffer`: bytes of the kernel's buffer, for one that is to stop reading. `session`: options of its session,
    such as headers. `query`: further parameters of the address.
    """

    def __init__(
        self,
        url: str = "",
        wanted: Mapping[int, Wanted] | Wanted = ALL,
        *,
        receive_buffer: int | None = None,
        query: Mapping[str, str] | None = None,
        address: str | None = None,
        **session: Any,
    ) -> None:
        self.url = url
        self.wanted = {1: wanted} if isinstance(wanted, Wanted) else dict(wanted)
        self.fold = ClientFold()
        self.messages: list[Document] = []
        """Those of this connection."""
        self.resumed: list[bool] = []
        """What each `welcome` after the first said."""
        self.closed: int | None = None
        """The code of the close frame or of `bye`, if there was one."""
        self.received_at: dict[int, float] = {}
        """event id → when its log line came, by the loop's clock."""
        self._query = dict(query or {})
        self._address = address
        self._options = session
        self._buffer = receive_buffer
        self._session: aiohttp.ClientSession | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()

    async def connect(self) -> None:
        """Connect, and resume from the last position, if there is one. Raises: `Refused`."""
        if self._session is None:
            local = (self._address, 0) if self._address is not None else None
            connector = aiohttp.TCPConnector(socket_factory=self._socket if self._buffer else None, local_addr=local)
            self._session = aiohttp.ClientSession(connector=connector, **self._options)
        self.fold.connect()
        self.closed = None
        self.messages = []
        await self._open(self._session)
        self._task = asyncio.create_task(self._read())

    @asynccontextmanager
    async def connected(self, url: str) -> AsyncIterator[Self]:
        """Connected to `url` and synced during the block; it resumes from the last position. Raises: `Refused`.

        An error of the reading task is raised after the block.
        """
        self.url = url
        try:
            await self.connect()
            await eventually(lambda: self.fold.synced or self.ended, every=0.005)
            if not self.fold.synced:
                self.check()
                raise Refused(self.closed)
            yield self
            self.check()
        finally:
            await self.close()

    @abstractmethod
    async def _open(self, session: aiohttp.ClientSession) -> None:
        """Send the request, set `_response`, and receive `welcome`."""

    @abstractmethod
    async def _read(self) -> None:
        """Apply messages until the connection ends."""

    def drop(self) -> None:
        """Abort the connection. What has not been read is lost."""
        self.check()
        assert self._task is not None
        self._task.cancel()
        self._abort()

    def freeze(self) -> None:
        """Stop reading the socket, at once."""
        self._reading.clear()
        transport = self._transport()
        assert transport is not None
        transport.pause_reading()

    def thaw(self) -> None:
        """Read again, if the connection still is there."""
        transport = self._transport()
        if transport is not None and not transport.is_closing():
            with contextlib.suppress(RuntimeError):
                transport.resume_reading()
        self._reading.set()

    def check(self) -> None:
        """Raise the error of the reading task, if it has one."""
        assert self._task is not None
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._response is not None:
            self._abort()
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def welcome(self) -> Document:
        """The first message of the last connection."""
        return self.messages[0]

    @property
    def jobs(self) -> dict[str, Document]:
        """The documents of subscription 1."""
        return self.fold.jobs.get(1, {})

    @property
    def ended(self) -> bool:
        """The connection has ended, and was not dropped."""
        assert self._task is not None
        return self._task.done()

    def missing(self, truth: Truth) -> list[str]:
        """The differences between its documents and the tables."""
        self.check()
        found = []
        for sub, wanted in self.wanted.items():
            held, due = self.fold.jobs.get(sub, {}), truth.matching(wanted)
            found += [f"{wanted}: {job_id} is too much" for job_id in held.keys() - due.keys()]
            found += [f"{wanted}: {job_id} is missing" for job_id in due.keys() - held.keys()]
            found += [f"{wanted}: {i} {h} is not {due[i]}" for i, h in held.items() if i in due and not same(h, due[i])]
        return found

    def about_jobs(self) -> list[Document]:
        """The messages of this connection without those that come by the clock."""
        return [m for m in self.messages if m["type"] not in ("status", "bookmark")]

    def last(self, kind: str) -> Document:
        """The newest message of a type on this connection."""
        return next(m for m in reversed(self.messages) if m["type"] == kind)

    def _apply(self, messages: Iterable[Document]) -> None:
        now = asyncio.get_running_loop().time()
        for message in messages:
            self.messages.append(message)
            if message["type"] == "welcome" and self.fold.position is not None:
                self.resumed.append(message["resumed"])
            self.fold.apply(message)
            if message["type"] == "welcome":
                for sub in self.wanted:
                    self.fold.subscribe(sub, resume=bool(message["resumed"]))
            if message["type"] == "log" and "event_id" in message:
                self.received_at[message["event_id"]] = now

    def _abort(self) -> None:
        assert self._response is not None
        if (transport := self._transport()) is not None:
            transport.abort()
        self._response.close()

    def _transport(self) -> asyncio.Transport | None:
        assert self._response is not None
        connection = self._response.connection
        return connection.transport if connection is not None else None

    def _socket(self, address: Any) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer or 0)
        return made


class CheckedWebsocket(CheckedReader):
    """A websocket with any number of subscriptions. `token`: that of `hello`."""

    def __init__(self, *arguments: Any, token: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._hello = HELLO | ({"token": token} if token else {})
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    async def send(self, *messages: Document) -> None:
        """Send messages in one frame."""
        assert self._ws is not None
        await self._ws.send_str(orjson.dumps(messages).decode())

    async def _open(self, session: aiohttp.ClientSession) -> None:
        self._ws = await session.ws_connect(f"{self.url}/ws", max_msg_size=0, params=self._query)
        self._response = self._ws._response
        position = self.fold.position
        hello = self._hello
        if position is not None:
            hello = hello | {"resume": {"epoch": position[0], "seq": position[1]}}
        await self.send(hello, *(w.message(sub, resume=position is not None) for sub, w in self.wanted.items()))
        answer = await self._ws.receive(PATIENCE)
        if answer.type is not aiohttp.WSMsgType.TEXT:
            raise Refused(answer.data if answer.type is aiohttp.WSMsgType.CLOSE else self._ws.close_code)
        messages = orjson.loads(answer.data)
        first, *rest = messages if isinstance(messages, list) else [messages]
        assert first["type"] == "welcome", first
        self._apply([first, *rest])

    async def _read(self) -> None:
        assert self._ws is not None
        while True:
            await self._reading.wait()
            message = await self._ws.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                self.closed = message.data if message.type is aiohttp.WSMsgType.CLOSE else self._ws.close_code
                return
            parsed = orjson.loads(message.data)
            self._apply(parsed if isinstance(parsed, list) else [parsed])


class CheckedStream(CheckedReader):
    """An event stream, which has one subscription."""

    def __init__(self, *arguments: Any, token: str = "", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.stream: CheckedEventStream | None = None
        self.headers: Mapping[str, str] = {}
        """Those of the last response."""

    async def _open(self, session: aiohttp.ClientSession) -> None:
        headers = self._headers
        if self.stream is not None and self.stream.last_id is not None:
            headers = headers | {"Last-Event-ID": self.stream.last_id}
        self._response = await session.get(
            f"{self.url}/api/v1/stream",
            params=[*self.wanted[1].query(), *self._query.items()],
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=LONGEST_LINE,
        )
        self.headers = self._response.headers
        if self._response.status != 200:
            raise Refused(self._response.status)
        self.stream = CheckedEventStream(self._response, self.fold, self.stream.last_id if self.stream else None)
        self._apply([await self.stream.parse()])

    async def _read(self) -> None:
        assert self.stream is not None
        with contextlib.suppress(EOFError, aiohttp.ClientError):
            while True:
                await self._reading.wait()
                self._apply([await self.stream.parse(within=None)])
        self.closed = next((m["code"] for m in self.messages if m["type"] == "bye"), None)


class FollowingReader:
    """The Python client, as a program uses it."""

    def __init__(self, url: str, wanted: Wanted) -> None:
        self._url = url
        self._wanted = messages.Wanted(**{k: v for k in FILTERS if (v := getattr(wanted, k))}, jobs=wanted.jobs)
        self._task: asyncio.Task[None] | None = None
        self.jobs: Mapping[str, Mapping[str, Any]] = {}
        self.synced = False

    async def connect(self) -> None:
        self._task = asyncio.create_task(self._follow())
        await eventually(lambda: self.synced)

    async def close(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        async with Client(self._url) as client, contextlib.aclosing(client.follow(self._wanted)) as updates:
            async for update in updates:
                self.jobs, self.synced = dict(update.jobs), update.synced


class PollingReader(FollowingReader):
    """Long polls for the job of one ID."""

    async def _follow(self) -> None:
        assert self._wanted.jobs is not None
        (name,) = self._wanted.jobs
        self.synced = True
        rev = ""
        async with aiohttp.ClientSession(self._url) as session:
            while True:
                async with session.get(f"/api/v1/job?id={quote(name)}&wait=30{rev}") as response:
                    assert response.status in (200, 304), await response.text()
                    if response.status == 200:
                        job = await response.json()
                        self.jobs, rev = {job["job_id"]: job}, f"&rev={job['rev']}"


READERS: dict[str, type[CheckedReader]] = {"websocket": CheckedWebsocket, "sse": CheckedStream}


class CheckedEventStream:
    """One response, event by event; `fold` holds each to the contract."""

    def __init__(self, response: aiohttp.ClientResponse, fold: ClientFold, last_id: str | None = None) -> None:
        self.response = response
        self.fold = fold
        self.own_id: str | None = None
        """That of the last event, if it has one."""
        self.last_id = last_id
        fold.connect()

    async def next(self, within: float = PATIENCE) -> Event:
        """The next event with its own id, if it has one. Raises EOFError at the end of the stream."""
        message = await self.parse(within)
        self.fold.apply(message)
        if message["type"] == "welcome":
            self.fold.subscribe(1, resume=bool(message["resumed"]))
        return self.own_id, message

    async def parse(self, within: float | None = PATIENCE) -> Document:
        """The next message, checked against its position, and not folded."""
        own: str | None = None
        name: str | None = None
        async with asyncio.timeout(within):
            while line := (await self.response.content.readline()).decode():
                field, _, value = line.rstrip("\n").partition(": ")
                match field:
                    case "":
                        own = name = None
                    case "id":
                        own = self.last_id = value
                    case "retry":
                        assert int(value) > 0
                    case "event":
                        name = value
                    case "data":
                        message = json.loads(value)
                        assert name == ("event" if message["type"] == "event" else None), message
                        self.own_id = own
                        assert isinstance(message, dict)
                        return message
                    case _:
                        raise AssertionError(line)
        raise EOFError

    async def until(self, kind: str, within: float = PATIENCE) -> list[Event]:
        """Everything up to the next message of a type."""
        found = [await self.next(within)]
        while found[-1][1]["type"] != kind:
            found.append(await self.next(within))
        return found


@asynccontextmanager
async def closing(readers: Iterable[CheckedReader]) -> AsyncIterator[None]:
    """Close all of them at the end, whatever happens."""
    try:
        yield
    finally:
        await asyncio.gather(*(reader.close() for reader in list(readers)), return_exceptions=True)
