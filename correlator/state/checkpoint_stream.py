"""The checkpoint in NATS JetStream, beside the SQLite file: another host goes on where this one stopped.

Problem. A standby has no file of the active's. It needs the position in the log, the jobs, and what has not been
acknowledged, as they were at one moment, and nothing that a former active writes later. A batch of JetStream is atomic,
but the rows of all jobs are more than one batch can have, and the process may end between two of them.

Model. Each row (`correlator.state.checkpoint`) is a key of the stream. A write that fits is one fenced atomic
batch. A larger one has a redo log:

1. All its rows are stored as chunks, which no start uses yet.
2. One small batch commits it: the last chunk, and the row `redo`, which names all. From now on, a start takes the rows
   from the chunks.
3. The rows are copied to their own keys, in several batches.
4. The last batch has the row `moment`, and removes the row `redo`. Then the chunks are removed.

So whatever the moment at which the process ends, a start finds the rows of the last write or of the one before. The
chunks need as much space again, for the time of the write. They have one of two slots, because those of a write that
ended in step 3 stay in use until the next write is committed.

An empty value is a removed row; NATS deletes it after `REMOVED_FOR` seconds.

Invariants. Only the holder of the lease writes: taking over writes the owner key of this stream too, and only after
that the rows are read. After a batch without an acknowledgement the owner key is written again first, so that the lost
batch cannot be stored after newer ones; then the rows are read again, as the lost batch may have been stored or not,
and then all that differs is written. The same follows if an older copy of the stream is back, e.g. of a backup of
NATS's files: a batch that commits a write is refused unless the row `moment` has the sequence of the write before.

A first write needs no chunks: its last batch has the row `moment`, without which no start uses the others.

Versions can be mixed: the row `form` has the version of the rows. A start that finds another one reads the tables, and
its first write has every row and removes those that it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import msgspec
from msgspec import Struct

from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Connection, Fenced, Refused, Unacknowledged, seq_of
from correlator.cluster.fence import Fence, StreamMessage
from correlator.cluster.stream_reader import StreamReader
from correlator.state.checkpoint import (
    MOMENT,
    VERSION,
    Changes,
    Name,
    Row,
    Saved,
    Unusable,
    rows_of,
    saved_of,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

CHUNKS = "redo"
"""The kind of the chunks."""

REDO = ("state", "redo")
WHOLE = ("state", "whole")
"""The row that every write of everything changes."""
FORM = ("state", "form")
"""The row with the `VERSION` of the rows."""
OWN = frozenset({REDO, WHOLE, FORM})
"""The rows that the stream has beside those of every store. No write removes them."""

MAX_ROWS = 500
MAX_BYTES = 450_000
"""Bounds of one batch, and of one chunk of the redo log. A single row may exceed the bytes."""

MAX_ROW = MAX_BYTES
"""Bytes of a row. A larger one is left out: the next active reads such a job from the tables again, has no earlier runs
of such an operation for its forecasts, and does not send such a pending event again. A link of 1 Mbit/s takes 4 s for
this row, in which no ping of the connection is answered. The position (`Cursor`) has 260 kB at most: its row is
of a light reading, which leaves out long texts (`Queries.light_rows_from`); its holes and marks are bounded."""

MAX_COPY = 512_000_000
OF_A_ROW = 1_000
"""Bytes of all rows, each of which counts for so many more. 20,000 jobs have 60 MB. A start with more would not fit in
the memory of the unit, or take minutes to read them, so it reads the tables."""

REMOVED_FOR = 3600
"""Seconds that the marker of a removed row stays."""

FOLLOW_EVERY = 2.0
"""Seconds between two reads of a standby, or as long as the last one took: half of a slow link is left to others."""

Rows: TypeAlias = dict[Name, bytes]


class Content:
    """The rows of one write, as the stream needs them.

    `stored`: the rows that the stream has, each with the hash of its value; the same value is not written again.
    `written`, `gone`: the rows that the stream has afterwards, and the names of those that are removed, once `groups`
    has ended.
    """

    def __init__(self, changes: Changes, stored: Mapping[Name, int], *, everything: bool, max_rows: int) -> None:
        self.everything = everything
        self._changes = changes
        self._stored = stored
        self._max_rows = max_rows
        self.last: list[Row] = []
        """The rows of the last batch, which are in no group, once `groups` has ended."""
        self.written: dict[Name, int] = {}
        self.gone: set[Name] = set()

    def groups(self, room: Callable[[], int] = lambda: MAX_BYTES) -> Iterator[list[Row]]:
        """Yield the rows, as many at a time as fit a batch, a chunk and `room()` bytes. An empty value: removed.

        They are the same each time, as nothing in the changes changes. A group takes milliseconds, or 0.3 s if the
        stream has nearly all of 20,000 rows: call it in a worker thread.
        """
        group: list[Row] = []
        size = 0
        for row in self._rows():
            if group and (len(group) >= self._max_rows or size + len(row[1]) > min(MAX_BYTES, room())):
                yield group
                group, size = [], 0
            group.append(row)
            size += len(row[1])
        if group:
            yield group

    def _rows(self) -> Iterator[Row]:
        written: dict[Name, int] = {}
        gone: set[Name] = set()
        for name, value in rows_of(self._changes):
            if value is None or len(value) > MAX_ROW:
                gone.add(name)
            elif name == MOMENT:
                self.last = [(FORM, msgspec.msgpack.encode(VERSION)), (name, value)]
            else:
                written[name] = hash(value)
                if self._stored.get(name) != written[name]:
                    yield name, value
        gone &= self._stored.keys()
        if self.everything:
            gone |= self._stored.keys() - written.keys() - OWN - {MOMENT}
        self.written, self.gone = written, gone
        for name in gone:
            yield name, b""


class StreamCheckpoint:
    """The checkpoint of `instance` in the stream. Event loop's thread only.

    `lease`: the fence of the lease, which this process holds; `on_lost`: called when it holds it no longer. `copy`:
    what has been read as the standby. `max_rows`: rows of one batch.
    """

    def __init__(
        self,
        instance: str,
        lease: Fence,
        on_lost: Callable[[], None],
        *,
        copy: StreamCopy | None = None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self._connection = lease.connection
        self._copy = copy
        self._instance = instance
        self._lease = lease
        self._on_lost = on_lost
        self._max_rows = max_rows
        self._fence: Fence | None = None
        """None: what the stream has is unknown."""
        self._written = 0
        """The sequence of the last write: that of its row `MOMENT`."""
        self._rows: dict[Name, int] = {}
        """The rows that the stream has, each with the hash of its value."""
        self._chunks: set[Name] = set()
        self._usable = False
        """True if a start would find a checkpoint in the stream."""
        self._slot = 0
        """The slot for the chunks of the next write."""
        self._lost = False

    @property
    def writable(self) -> bool:
        return self._connection.connected and not self._lost

    async def open(self) -> Saved | None:
        """Take the stream over, and return what the last active saved; None if there is nothing usable.

        Raises: `Fenced` if the lease is lost, `ClusterUnavailable`, `Refused`.
        """
        rows, chunks = await self._acquire()
        try:
            return await asyncio.to_thread(restored, rows, chunks) if rows else None
        except Exception as error:  # noqa: BLE001 - what a parser raises for rows of any bytes is not known
            log.warning(
                "the checkpoint in the cluster cannot be used (%s): all is read from the tables, as at a first start,"
                " and no event of the meantime is published",
                error,
            )
            if not isinstance(error, Unusable):
                self._connection.parser.note(keys.checkpoint_rows(self._instance), error)
            return None

    async def write(self, changes: Changes, *, everything: bool) -> None:
        """Store `changes`, all or nothing. `everything`: they have every row, as the first write and after an error.

        Raises: `Fenced`, after calling `on_lost`; `Unacknowledged`, `ClusterUnavailable`, `Refused`.
        """
        try:
            if self._fence is None:
                await self._acquire()
            assert self._fence is not None
            content = Content(changes, self._rows, everything=everything, max_rows=self._max_rows)
            await self._write(self._fence, content)
        except Fenced as error:
            await self._refused(error)
        except BaseException:
            self._fence = None  # A batch may be under way.
            raise
        for name in content.gone:
            self._rows.pop(name, None)
        self._rows.update(content.written)
        self._usable = True

    async def _refused(self, error: Fenced) -> NoReturn:
        """Find out whether this process has lost the lease, or NATS has lost what the stream had."""
        self._fence = None
        try:
            await self._lease.verify()
        except Fenced:
            self._lost = True
            self._on_lost()
            raise
        raise Unacknowledged(f"the stream was created again, or an older copy of it is back: {error}")

    async def _write(self, fence: Fence, content: Content) -> None:
        mark = secrets.token_hex(8)
        async with contextlib.aclosing(self._groups(content)) as groups:
            rows: list[Row] = await anext(groups, [])
            fits = await anext(groups, None) is None
        if not fits:
            if self._usable:  # Else there is nothing that this write could spoil.
                await self._log(fence, content, mark)
            async for rows in self._groups(content):
                await self._store(fence, rows)
            rows = []
        if content.everything:
            rows.append((WHOLE, mark.encode()))
        if not fits or REDO in self._rows:
            rows.append((REDO, b""))
        self._written = await self._store(fence, rows + content.last, commits=True)
        self._rows.pop(REDO, None)
        self._slot = 0
        # No start needs the chunks any more.
        while self._chunks:
            some = list(itertools.islice(self._chunks, self._max_rows))
            await self._store(fence, [(name, b"") for name in some])
            self._chunks.difference_update(some)

    async def _groups(self, content: Content) -> AsyncGenerator[list[Row], None]:
        """Yield the groups of rows, each made in a worker thread. What is not used yet leaves room for others."""
        window, room = self._connection.window, 0
        groups = content.groups(lambda: room)
        while True:
            room = window.share if self._usable else window.rest
            if (group := await asyncio.to_thread(next, groups, None)) is None:
                return
            yield group

    async def _log(self, fence: Fence, content: Content, mark: str) -> None:
        """Store all rows as chunks, and commit them with the last chunk."""
        number = 0
        async for rows in self._groups(content):
            await self._store(fence, [self._chunk(number, Chunk(mark, rows))])
            number += 1
        redo = msgspec.msgpack.encode(Redo(mark, self._slot, number + 1))
        await self._store(fence, [self._chunk(number, Chunk(mark, content.last)), (REDO, redo)], commits=True)

    def _chunk(self, number: int, chunk: Chunk) -> Row:
        """Return the row of a chunk, which the stream may have from now on."""
        name = name_of(self._slot, number)
        self._chunks.add(name)
        return name, msgspec.msgpack.encode(chunk)

    async def _store(self, fence: Fence, rows: Sequence[Row], *, commits: bool = False) -> int:
        """Store one batch. One that `commits` is refused if the last write is not in the stream, or not the last."""
        after = (keys.checkpoint(self._instance, *MOMENT), self._written) if commits else None
        return await fence.write([self._message(name, value) for name, value in rows], after=after)

    async def _acquire(self) -> tuple[Rows, Rows]:
        """Take the stream over, and return its rows and its chunks, each by name."""
        fence = await self._lease.own(keys.CHECKPOINT, keys.checkpoint_owner(self._instance))
        copy = self._copy
        if copy is None or copy.reader.seq >= fence.seq:  # The second: the stream is older than what was read.
            copy = StreamCopy(self._connection, self._instance)
        self._copy = copy
        await copy.read()
        if copy.owner_seq != fence.seq:
            raise ClusterUnavailable("the server that was asked lags behind")
        self._copy = None
        rows, chunks = copy.rows, copy.chunks
        self._rows = {name: hash(value) for name, value in rows.items()}
        self._usable = MOMENT in rows
        self._chunks, self._slot, self._fence, self._written = set(chunks), free_slot(rows), fence, copy.last_seq
        return rows, chunks

    def _message(self, name: Name, value: bytes) -> StreamMessage:
        subject = keys.checkpoint(self._instance, *name)
        return StreamMessage(subject, value) if value else StreamMessage(subject, b"", {"Nats-TTL": f"{REMOVED_FOR}s"})


class StreamCopy:
    """The rows of the checkpoint of `instance`, as far as this process has read them. Event loop's thread only.

    A standby keeps one up to date, so that little is left to read when it takes over. What was read before may differ
    from the stream, if that was created again or purged. Each write of everything changes the row `whole`: if it is not
    the one of the last time, all is read from the beginning. So it is `again_after` seconds after the last read.

    Whoever may write to the stream may fill it, so the copy has at most `most` bytes.
    """

    def __init__(
        self, connection: Connection, instance: str, again_after: float = REMOVED_FOR / 2, *, most: int = MAX_COPY
    ) -> None:
        self._connection = connection
        self._most = most
        self._again_after = again_after
        self._instance = instance
        self.reader = StreamReader(connection, keys.CHECKPOINT, keys.checkpoint_rows(instance))
        self._forget(b"")

    def _forget(self, whole: bytes) -> None:
        self._whole = whole
        self.rows: Rows = {}
        self.chunks: Rows = {}
        self._size = 0
        self.owner_seq = 0
        """The sequence of the owner key."""
        self.last_seq = 0
        """The sequence of the row `MOMENT`."""
        self.reader.seq = 0
        self._read_at = time.monotonic(), time.time()
        """When the last complete read began, by two clocks: one may stand still while the process does."""

    async def follow(self) -> None:
        """Read what is new again and again, until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.read()
            except (ClusterUnavailable, Refused) as error:
                log.debug("the checkpoint in the cluster cannot be read: %s", error)
            await asyncio.sleep(max(FOLLOW_EVERY, time.monotonic() - began))

    async def read(self) -> None:
        """Read what is new. Raises: `ClusterUnavailable`, `Refused`, also for too many rows; the next call goes on."""
        now = time.monotonic(), time.time()
        message = await self._connection.last(keys.CHECKPOINT, keys.checkpoint(self._instance, *WHOLE))
        whole = message.data if message is not None else b""
        passed = max(abs(then - before) for then, before in zip(now, self._read_at, strict=True))
        if whole != self._whole or passed > self._again_after:  # Later, the marker of a removed row may be gone.
            self._forget(whole)
        self._check_size()
        async with contextlib.aclosing(self.reader.messages()) as messages:
            async for message in messages:
                self._read(message)
                self._check_size()
        self._read_at = now

    def _read(self, message: Msg) -> None:
        name = _name((message.headers or {})["Nats-Subject"])
        if name == ("owner",):
            self.owner_seq = seq_of(message)
        elif name:
            self.last_seq = seq_of(message) if name == MOMENT else self.last_seq
            found = self.chunks if name[0] == CHUNKS else self.rows
            if (before := found.pop(name, None)) is not None:  # Another server than the last one may answer, and
                self._size -= OF_A_ROW + len(before)  # know that a row was removed.
            if message.data:
                found[name] = message.data
                self._size += OF_A_ROW + len(message.data)

    def _check_size(self) -> None:
        if self._size > self._most:
            self.rows, self.chunks = {}, {}
            rows = keys.checkpoint_rows(self._instance)
            raise Refused(
                f"it has more than {self._most} bytes; nats stream purge {keys.CHECKPOINT} --subject '{rows}' --force"
                " removes it, and the active collector writes it again"
            )


class Redo(Struct, frozen=True):
    """The value of `REDO`: the write `mark` has the chunks from 0 to `chunks` - 1 in `slot`."""

    mark: str
    slot: int
    chunks: int


class Chunk(Struct, frozen=True):
    """Some rows of the write `mark`. An empty value: the row is to be removed."""

    mark: str
    rows: Sequence[tuple[Name, bytes]]


def name_of(slot: int, number: int) -> Name:
    return CHUNKS, str(slot), str(number)


def free_slot(rows: Mapping[Name, bytes]) -> int:
    """Return the slot whose chunks no start needs."""
    try:
        return 0 if REDO not in rows else 1 - msgspec.msgpack.decode(rows[REDO], type=Redo).slot % 2
    except msgspec.MsgspecError:
        return 0  # No start can use it.


def restored(rows: Rows, chunks: Rows) -> Saved:
    """Return what the rows of the stream say. Call it in a worker thread. Raises: as `replay` and `saved_of`."""
    replay(rows, chunks)
    if MOMENT not in rows:
        raise Unusable("it is incomplete")
    if (form := msgspec.msgpack.decode(rows[FORM]) if FORM in rows else None) != VERSION:
        raise Unusable(f"it has version {form}, and this program needs version {VERSION}")
    return saved_of(rows.items())


def replay(rows: Rows, chunks: Rows) -> None:
    """If `rows` name a write, take its rows over from `chunks`, one chunk at a time; each that is used is removed.

    Raises: `Unusable` if a chunk is missing, `MsgspecError`.
    """
    if REDO not in rows:
        return
    redo = msgspec.msgpack.decode(rows[REDO], type=Redo)
    for number in range(redo.chunks):
        value = chunks.pop(name_of(redo.slot, number), None)
        chunk = msgspec.msgpack.decode(value, type=Chunk) if value is not None else None
        if chunk is None or chunk.mark != redo.mark:
            raise Unusable("it lacks a part")
        for name, row in chunk.rows:
            if row:
                rows[name] = row
            else:
                rows.pop(name, None)


def newest(file: Saved | None, stream: Saved | None) -> Saved | None:
    """Return the one that was saved later. The clocks of two hosts may differ, so the file must also be further on."""
    if file is None or stream is None:
        return file or stream
    return file if file.at > stream.at and file.cursor.head >= stream.cursor.head else stream


def _name(subject: str) -> Name | None:
    try:
        return tuple(keys.unescape(token) for token in subject.split(".")[3:])
    except ValueError:
        return None
