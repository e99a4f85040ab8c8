"""The checkpoint in NATS JetStream, beside the SQLite file: another host goes on where this one stopped.

Problem. A standby has no file of the active's. It needs the position in the log, the jobs, and what has not been
acknowledged, as they were at one moment, and nothing that a former active writes later.

Model. Each row of the file is a key of the stream, with the same encoding. A write is one fenced atomic batch if it
fits, else several: then the key `begun` is written with the first, and `done` with the same text in the last, after
all rows. A start that finds the two different does not use the checkpoint, because its rows are not of one moment.
An empty value is a removed row; NATS deletes it after `REMOVED_FOR` seconds.

Invariants. Only the holder of the lease writes: taking over writes the owner key of this stream too, and only after
that the rows are read. After a batch without an acknowledgement the owner key is written again first, so that the lost
batch cannot be stored after newer ones, and then everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from correlator.cluster import keys
from correlator.cluster.batches import Fence, Message, put
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable, Fenced, Refused, Unacknowledged
from correlator.pipeline.checkpoint import Changes, Saved
from correlator.pipeline.checkpoint_rows import NUMBERED, SLICE, STATE, Name, Rows, rows_of, saved_of

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

MAX_ROWS = 500
MAX_BYTES = 500_000
"""Bounds of one batch."""

MAX_ROW = 900_000
"""Bytes of a row. A larger job is left out: it is read from the tables again."""

REMOVED_FOR = 3600
"""Seconds that the marker of a removed row stays."""

READ_AT_ONCE = 1000
READ_BYTES = 4_000_000
READ_WITHIN = 5.0
"""Rows and bytes of one answer to a read, and seconds without a row after which it has failed."""


class StreamCheckpoint:
    """The checkpoint of `instance` in the stream. Event loop's thread only.

    `owner`: the value of the owner key of the lease's holder, which is this process; `lease`: the key's fence.
    `on_lost`: called when this process holds the lease no longer.
    """

    def __init__(
        self, connection: Connection, instance: str, owner: bytes, lease: Fence, on_lost: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._instance = instance
        self._owner = owner
        self._lease = lease
        self._on_lost = on_lost
        self._fence: Fence | None = None
        self._rows: set[Name] = set()
        """The rows that the stream may have."""
        self._lost = False
        self.everything = True
        """True if the next write must have every row."""

    @property
    def writable(self) -> bool:
        return self._connection.connected and not self._lost

    async def open(self) -> Saved | None:
        """Take the stream over, and return what the last active saved; None if there is nothing usable.

        Raises: `Fenced` if the lease is lost, `ClusterUnavailable`, `Refused`.
        """
        fence = self._fence = await self._own()
        rows: Rows = {}
        complete = False
        async for message in self._read():
            headers = message.headers or {}
            name = _name(headers.get("Nats-Subject", ""))
            complete = complete or int(headers.get("Nats-Sequence", "0")) == fence.seq
            if name is None or name == ("owner",):
                continue
            if message.data:
                rows[name] = message.data
            else:  # Another server than the last one may answer, and know that a row was removed.
                rows.pop(name, None)
        if not complete:
            raise ClusterUnavailable("the server that was asked lags behind")
        self._rows = set(rows)
        try:
            saved = await saved_of(rows)
        except (msgspec.MsgspecError, LookupError, TypeError, ValueError, UnicodeError) as error:
            log.warning("the checkpoint in the cluster cannot be used (%s): everything is read again", error)
            return None
        return saved

    async def write(self, changes: Changes) -> None:
        """Store `changes`, in one batch or several. They must have every row if `everything` is set.

        Raises: `Fenced`, after calling `on_lost`; `Unacknowledged` or `Refused`, after which `everything` is set.
        """
        everything, self.everything = self.everything, True
        try:
            if self._fence is None:
                self._fence = await self._own()
            written, gone = await self._write(self._fence, changes, everything=everything)
        except Fenced:
            self._lost = True
            self._on_lost()
            raise
        except BaseException:
            self._fence = None  # A batch may be under way.
            raise
        self._rows = (self._rows - gone) | written
        self.everything = False

    async def _write(self, fence: Fence, changes: Changes, *, everything: bool) -> tuple[set[Name], set[Name]]:
        """Returns the names of the rows that were written, and of those that were removed."""
        written: set[Name] = set()
        gone: set[Name] = set()
        current: set[Name] = set()
        batches = _Batches(fence, self._message)
        memory = msgspec.msgpack.encode(changes.memory)
        for n, (name, make) in enumerate(rows_of(changes, memory)):
            if n % SLICE == 0:
                await asyncio.sleep(0)
            if name[0] in NUMBERED:
                current.add(name)
                if not everything and name in self._rows and name[0] != "memory":
                    continue  # The value of a number does not change.
            value = make()
            if value is None or len(value) > MAX_ROW:
                gone.add(name)
            else:
                await batches.add(name, value)
                written.add(name)
        gone = (gone & self._rows) | {name for name in self._rows - current if name[0] in NUMBERED}
        if everything:
            gone |= {name for name in self._rows - written if name not in STATE}
        for name in gone:
            await batches.add(name, b"")
        state = {"at": changes.at, "cursor": changes.cursor, "memory": len(memory)}
        # After `everything`, what a former active did not complete is complete.
        await batches.end({name: msgspec.msgpack.encode(value) for name, value in state.items()}, mark=everything)
        return written, gone

    async def _own(self) -> Fence:
        """Write the owner key of this stream, if this process is the owner of the instance."""
        subject = keys.checkpoint_owner(self._instance)
        for _ in range(20):
            before = await self._connection.last(keys.CHECKPOINT, subject)
            seq = int((before.headers or {})["Nats-Sequence"]) if before is not None else 0
            try:
                await self._lease.verify(keys.STATE, self._owner)
            except Unacknowledged:
                await asyncio.sleep(0.05)
                continue
            try:
                return Fence(self._connection, subject, await put(self._connection, subject, self._owner, expected=seq))
            except Fenced:
                await asyncio.sleep(0.05)  # Another process wrote it meanwhile, or the answer was old.
        raise Unacknowledged("the owner key of the checkpoint cannot be written")

    def _message(self, name: Name, value: bytes) -> Message:
        subject = keys.checkpoint(self._instance, *name)
        return Message(subject, value) if value else Message(subject, b"", {"Nats-TTL": f"{REMOVED_FOR}s"})

    async def _read(self) -> AsyncIterator[Msg]:
        """Yield the last message of every row, by direct gets of many messages at once."""
        rows = keys.checkpoint_rows(self._instance)
        client, first = self._connection.client, 1
        queue: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=queue.put, pending_bytes_limit=4 * READ_BYTES)
        try:
            while True:
                request = {"seq": first, "next_by_subj": rows, "batch": READ_AT_ONCE, "max_bytes": READ_BYTES}
                await self._connection.publish(
                    f"$JS.API.DIRECT.GET.{keys.CHECKPOINT}", msgspec.json.encode(request), reply=inbox
                )
                more = True
                while more:
                    message = queue.get_nowait() if queue.qsize() else await _within(queue.get())
                    headers = message.headers or {}
                    status = headers.get("Status")
                    if status is None:
                        first = int(headers["Nats-Sequence"]) + 1
                        yield message
                    elif status == "204":
                        more = False
                        if int(headers.get("Nats-Num-Pending", "0")) == 0:
                            return
                    elif status == "404":
                        return
                    else:
                        raise Refused(f"the checkpoint cannot be read: {headers.get('Description', status)}")
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()


class _Batches:
    """Collects rows, and writes them as soon as they fill a batch. See the module for `begun` and `done`."""

    def __init__(self, fence: Fence, message: Callable[[Name, bytes], Message]) -> None:
        self._fence = fence
        self._message = message
        self._batch: list[Message] = []
        self._size = 0
        self._mark = b""

    async def add(self, name: Name, value: bytes) -> None:
        if self._batch and (len(self._batch) >= MAX_ROWS or self._size + len(value) > MAX_BYTES):
            self._begin()
            await self._fence.write(self._batch)
            self._batch, self._size = [], 0
        self._batch.append(self._message(name, value))
        self._size += len(value)

    async def end(self, state: Mapping[str, bytes], *, mark: bool) -> None:
        """Write the last batch, with the rows of `state`. `mark`: write both marks also if there is one batch."""
        if mark:
            self._begin()
        if self._mark:
            self._batch.append(self._message(("state", "done"), self._mark))
        await self._fence.write([*self._batch, *(self._message(("state", name), state[name]) for name in state)])

    def _begin(self) -> None:
        if not self._mark:
            self._mark = secrets.token_hex(8).encode()
            self._batch.append(self._message(("state", "begun"), self._mark))


def newest(file: Saved | None, stream: Saved | None) -> Saved | None:
    """Return the one that was saved later. The clocks of two hosts may differ, so the file must also be further on."""
    if file is None or stream is None:
        return file or stream
    return file if file.at > stream.at and file.cursor.head >= stream.cursor.head else stream


async def _within(message: Awaitable[Msg]) -> Msg:
    try:
        async with asyncio.timeout(READ_WITHIN):
            return await message
    except TimeoutError:
        raise ClusterUnavailable("the checkpoint cannot be read: no answer") from None


def _name(subject: str) -> Name | None:
    try:
        return tuple(keys.unescape(token) for token in subject.split(".")[3:])
    except ValueError:
        return None
