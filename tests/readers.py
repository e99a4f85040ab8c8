"""Readers that hold every message to the contract: a websocket to be dropped and frozen, an event stream.

What always holds: a message that breaks the contract raises AssertionError where it is heard, so that a reader which
is still running at the end of a test has seen nothing but what docs/protocol.md promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from tests.daemon import HELLO, merge
from tests.subscriptions import Document, Truth, Wanted, same

Event = tuple[str | None, Document]
"""Of an event stream: its own id, if it has one, and its message."""


@dataclass
class Fold:
    """What a reader holds, folded from messages. It lives on when the connection does not."""

    jobs: dict[int, dict[str, Document]] = field(default_factory=dict)
    """sub → job id → document."""
    lines: dict[int, Document] = field(default_factory=dict)
    dropped: int = 0
    position: tuple[str, int] | None = None
    """What it would say in `hello.resume`."""
    epoch: str = ""
    resyncs: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """How many messages there were, by their type."""
    _seq: int = 0
    _open: set[int] = field(default_factory=set)
    _synced: set[int] = field(default_factory=set)
    _fresh: dict[int, dict[str, Document]] = field(default_factory=dict)
    _revs: dict[str, int] = field(default_factory=dict)

    def connect(self) -> None:
        """A new connection begins: what was on its way to the old one is lost."""
        self._seq = 0
        self._open.clear()
        self._fresh.clear()

    def subscribe(self, sub: int, *, resume: bool) -> None:
        """A subscription is asked for; `resume`: it goes on from what it has."""
        self._open.add(sub)
        self._synced.discard(sub)
        if not resume:
            self._fresh[sub] = {}

    @property
    def synced(self) -> bool:
        """Whether every subscription of this connection has all of its snapshot."""
        return bool(self._open) and self._open <= self._synced

    def hear(self, message: Document) -> None:
        """Take one message in. Raises AssertionError where it is not what the contract promises."""
        kind = message["type"]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if "seq" in message:
            assert message["seq"] >= self._seq, f"seq fell from {self._seq}: {message}"
            self._seq = message["seq"]
        match kind:
            case "welcome":
                if message["epoch"] != self.epoch:
                    self.epoch = message["epoch"]
                    self._revs.clear()
            case "snapshot":
                self._snapshot(message)
            case "synced":
                self._sync(message)
            case "put" | "delta" | "delete":
                for sub in message["sub"]:
                    self._change(sub, message)
            case "log":
                self._line(message)
            case "resync":
                self.resyncs.append(message["reason"])
            case "bookmark" | "status" | "bye" | "pong":
                pass
            case _:
                raise AssertionError(message)
        if "seq" in message and kind != "welcome" and self.synced:
            self.position = (self.epoch, message["seq"])

    def _snapshot(self, message: Document) -> None:
        sub = message["sub"]
        assert sub in self._open
        assert sub not in self._synced, "a snapshot comes once"
        fresh = self._fresh.setdefault(sub, {})
        for job in message["jobs"]:
            job_id = job["job_id"]
            assert job_id not in fresh, f"{job_id} is in the snapshot twice, or was put before it"
            self._rev(job_id, job["rev"])
            fresh[job_id] = job

    def _sync(self, message: Document) -> None:
        sub = message["sub"]
        assert sub in self._open
        assert sub not in self._synced
        if sub in self._fresh:
            self.jobs[sub] = self._fresh.pop(sub)
        self._synced.add(sub)

    def _change(self, sub: int, message: Document) -> None:
        assert sub in self._open, message
        job_id = message["job_id"]
        held = self._fresh[sub] if sub in self._fresh else self.jobs.setdefault(sub, {})
        before = held.get(job_id)
        if message["type"] == "delete":
            assert message["reason"] in ("retention", "filter", "gone", "merged"), message
            # What is told on resume may begin inside a batch, part of which was heard before.
            assert before is not None or sub not in self._synced, f"never there: {message}"
            held.pop(job_id, None)
            return
        if message["type"] == "put":
            job = message["job"]
        else:
            assert before is not None, f"a delta on nothing: {message}"
            assert message["base"] == before["rev"], f"a delta on {message['base']}, not on {before['rev']}: {message}"
            job = merge(before, message["set"])
        assert (job["rev"], job["job_id"]) == (message["rev"], job_id), message
        self._rev(job_id, job["rev"])
        held[job_id] = job

    def _rev(self, job_id: str, rev: int) -> None:
        assert rev >= self._revs.get(job_id, 0), f"{job_id}: rev fell from {self._revs[job_id]} to {rev}"
        self._revs[job_id] = rev

    def _line(self, message: Document) -> None:
        assert set(message["sub"]) <= self._open, message
        if "dropped" in message:
            assert message["dropped"] > 0
            self.dropped += message["dropped"]
            return
        assert message["event_id"] not in self.lines, f"told twice: {message}"
        self.lines[message["event_id"]] = message


class Reader:
    """A websocket client that folds what it is told, in a task of its own, and can be dropped and come back.

    `receive_buffer`: bytes of the kernel's buffer, for one that is to stop reading.
    """

    def __init__(self, url: str, wanted: Mapping[int, Wanted], *, receive_buffer: int | None = None) -> None:
        self.wanted = dict(wanted)
        self.fold = Fold()
        self.resumed: list[bool] = []
        """What each `welcome` after the first said."""
        self.closed: int | None = None
        """The code of the close frame, if there was one."""
        self.heard_at: dict[int, float] = {}
        """event id → when its log line came, by the loop's clock."""
        self._url = url
        self._buffer = receive_buffer
        self._session: aiohttp.ClientSession | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()

    async def connect(self) -> None:
        """Connect; go on from the position remembered, if there is one."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=self._socket))
        self._ws = await self._session.ws_connect(f"{self._url}/ws", max_msg_size=0, autoping=True)
        self.fold.connect()
        self.closed = None
        position = self.fold.position
        back = position is not None
        resume = {"resume": {"epoch": position[0], "seq": position[1]}} if position is not None else {}
        await self._say([HELLO | resume, *(w.message(sub, resume=back) for sub, w in self.wanted.items())])
        welcome = orjson.loads((await self._ws.receive(10)).data)
        first, *rest = welcome if isinstance(welcome, list) else [welcome]
        assert first["type"] == "welcome", first
        if back:
            self.resumed.append(first["resumed"])
        self.fold.hear(first)
        for sub in self.wanted:
            self.fold.subscribe(sub, resume=bool(first["resumed"]))
        self._hear(rest)
        self._task = asyncio.create_task(self._read(self._ws))

    def drop(self) -> None:
        """The connection is gone without a word, and what it had not read is lost."""
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
        """Raise what was wrong with what it heard."""
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
        """Where what it holds is not what the tables say. Empty is what is wanted."""
        self.check()
        found = []
        for sub, wanted in self.wanted.items():
            held, due = self.fold.jobs.get(sub, {}), truth.matching(wanted)
            found += [f"{wanted}: {job_id} is too much" for job_id in held.keys() - due.keys()]
            found += [f"{wanted}: {job_id} is missing" for job_id in due.keys() - held.keys()]
            found += [f"{wanted}: {i} {h} is not {due[i]}" for i, h in held.items() if i in due and not same(h, due[i])]
        return found

    async def _say(self, messages: Sequence[Document]) -> None:
        assert self._ws is not None
        await self._ws.send_str(orjson.dumps(messages).decode())

    def _hear(self, messages: Iterable[Document]) -> None:
        now = asyncio.get_running_loop().time()
        for message in messages:
            self.fold.hear(message)
            if "event_id" in message:
                self.heard_at[message["event_id"]] = now

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await self._reading.wait()
            message = await ws.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                self.closed = message.data if message.type is aiohttp.WSMsgType.CLOSE else ws.close_code
                return
            told = orjson.loads(message.data)
            self._hear(told if isinstance(told, list) else [told])

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


class Stream:
    """One response, event by event; `fold` holds each to the contract."""

    def __init__(self, response: aiohttp.ClientResponse, fold: Fold) -> None:
        self.response = response
        self.fold = fold
        self.last_id: str | None = None
        self.retry: int | None = None
        fold.connect()

    async def next(self, within: float = 5.0) -> Event:
        """The next event with its own id, if it has one. Raises EOFError at the end of the stream."""
        own: str | None = None
        async with asyncio.timeout(within):
            while line := (await self.response.content.readline()).decode():
                field, _, value = line.rstrip("\n").partition(": ")
                match field:
                    case "":
                        own = None
                    case "id":
                        own = self.last_id = value
                    case "retry":
                        self.retry = int(value)
                    case "data":
                        return own, self._heard(json.loads(value))
                    case _:
                        raise AssertionError(line)
        raise EOFError

    def _heard(self, message: dict[str, Any]) -> dict[str, Any]:
        self.fold.hear(message)
        if message["type"] == "welcome":
            self.fold.subscribe(1, resume=bool(message["resumed"]))
        return message

    async def until(self, kind: str, within: float = 5.0) -> list[Event]:
        """Everything up to the next message of a type."""
        found = [await self.next(within)]
        while found[-1][1]["type"] != kind:
            found.append(await self.next(within))
        return found


@asynccontextmanager
async def closing(readers: Iterable[Reader]) -> AsyncIterator[None]:
    """Close all of them at the end, whatever happens."""
    try:
        yield
    finally:
        await asyncio.gather(*(reader.close() for reader in list(readers)), return_exceptions=True)
