"""Streaming clients that check every message against the contract: a websocket to drop and freeze, an event stream.

Invariant: a message that breaks the contract raises AssertionError when it is received. A client that still runs at
the end of a test has received nothing but what docs/protocol.md promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from tests.support.client_fold import ClientFold, Document
from tests.support.daemon import HELLO
from tests.support.eventually import PATIENCE
from tests.support.subscriptions import Truth, Wanted, same

Event = tuple[str | None, Document]
"""Of an event stream: its own id, if it has one, and its message."""


class CheckedWebsocket:
    """A websocket client that folds what it receives, in a task of its own. It can be dropped and connect again.

    `receive_buffer`: bytes of the kernel's buffer, for one that is to stop reading.
    """

    def __init__(self, url: str, wanted: Mapping[int, Wanted], *, receive_buffer: int | None = None) -> None:
        self.wanted = dict(wanted)
        self.fold = ClientFold()
        self.resumed: list[bool] = []
        """What each `welcome` after the first said."""
        self.closed: int | None = None
        """The code of the close frame, if there was one."""
        self.received_at: dict[int, float] = {}
        """event id → when its log line came, by the loop's clock."""
        self._url = url
        self._buffer = receive_buffer
        self._session: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()

    async def connect(self) -> None:
        """Connect, and resume from the last position, if there is one."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=self._socket))
        self._ws = await self._session.ws_connect(f"{self._url}/ws", max_msg_size=0, autoping=True)
        self.fold.connect()
        self.closed = None
        position = self.fold.position
        back = position is not None
        resume = {"resume": {"epoch": position[0], "seq": position[1]}} if position is not None else {}
        await self._send([HELLO | resume, *(w.message(sub, resume=back) for sub, w in self.wanted.items())])
        welcome = orjson.loads((await self._ws.receive(PATIENCE)).data)
        first, *rest = welcome if isinstance(welcome, list) else [welcome]
        assert first["type"] == "welcome", first
        if back:
            self.resumed.append(first["resumed"])
        self.fold.apply(first)
        for sub in self.wanted:
            self.fold.subscribe(sub, resume=bool(first["resumed"]))
        self._apply(rest)
        self._task = asyncio.create_task(self._read(self._ws))

    def drop(self) -> None:
        """Abort the connection. What has not been read is lost."""
        assert self._task is not None
        if self._task.done():
            self._task.result()
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
        if self._ws is not None:
            self._abort()
        if self._session is not None:
            await self._session.close()

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

    async def _send(self, messages: Sequence[Document]) -> None:
        assert self._ws is not None
        await self._ws.send_str(orjson.dumps(messages).decode())

    def _apply(self, messages: Iterable[Document]) -> None:
        now = asyncio.get_running_loop().time()
        for message in messages:
            self.fold.apply(message)
            if message["type"] == "log" and "event_id" in message:
                self.received_at[message["event_id"]] = now

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._reading.wait()
            message = await ws.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                self.closed = message.data if message.type is aiohttp.WSMsgType.CLOSE else ws.close_code
                return
            parsed = orjson.loads(message.data)
            self._apply(parsed if isinstance(parsed, list) else [parsed])

    def _abort(self) -> None:
        assert self._ws is not None
        if (transport := self._transport()) is not None:
            transport.abort()
        self._ws._response.close()

    def _transport(self) -> asyncio.Transport | None:
        assert self._ws is not None
        connection = self._ws._response.connection
        return connection.transport if connection is not None else None

    def _socket(self, address: Any) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        if self._buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        return made


class CheckedEventStream:
    """One response, event by event; `fold` holds each to the contract."""

    def __init__(self, response: aiohttp.ClientResponse, fold: ClientFold) -> None:
        self.response = response
        self.fold = fold
        self.last_id: str | None = None
        self.retry: int | None = None
        fold.connect()

    async def next(self, within: float = PATIENCE) -> Event:
        """The next event with its own id, if it has one. Raises EOFError at the end of the stream."""
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
                        self.retry = int(value)
                    case "event":
                        name = value
                    case "data":
                        message = json.loads(value)
                        assert name == ("event" if message["type"] == "event" else None), message
                        return own, self._apply(message)
                    case _:
                        raise AssertionError(line)
        raise EOFError

    def _apply(self, message: dict[str, Any]) -> dict[str, Any]:
        self.fold.apply(message)
        if message["type"] == "welcome":
            self.fold.subscribe(1, resume=bool(message["resumed"]))
        return message

    async def until(self, kind: str, within: float = PATIENCE) -> list[Event]:
        """Everything up to the next message of a type."""
        found = [await self.next(within)]
        while found[-1][1]["type"] != kind:
            found.append(await self.next(within))
        return found


@asynccontextmanager
async def closing(readers: Iterable[CheckedWebsocket]) -> AsyncIterator[None]:
    """Close all of them at the end, whatever happens."""
    try:
        yield
    finally:
        await asyncio.gather(*(reader.close() for reader in list(readers)), return_exceptions=True)
