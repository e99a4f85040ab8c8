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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from correlator.cluster import keys
from correlator.cluster.batches import Fence, Message, put
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable, Fenced, Refused, Unacknowledged
from correlator.jobs import stored_forecasts
from correlator.jobs.model.persisted import Cursor, IndexState, PersistedExports, PersistedJob
from correlator.jobs.model.rows import LegacyRecord
from correlator.pipeline.checkpoint import Changes, Saved

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

SLICE = 100
"""Rows that are encoded or decoded before other tasks run."""

STATE = frozenset(("state", name) for name in ("at", "cursor", "memory", "begun", "done"))
"""The rows that are not removed."""

Rows = dict[tuple[str, ...], bytes]


class StreamCheckpoint:
    """The checkpoint of `instance` in the stream. Event loop's thread only.

    `owner`: the value of the owner key of the lease's holder, which is this process. `on_lost`: called when it is not
    any more.
    """

    def __init__(self, connection: Connection, instance: str, owner: bytes, on_lost: Callable[[], None]) -> None:
        self._connection = connection
        self._instance = instance
        self._owner = owner
        self._on_lost = on_lost
        self._fence: Fence | None = None
        self._rows: set[tuple[str, ...]] = set()
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
            if message.data and name is not None and name != ("owner",):
                rows[name] = message.data
        if not complete:
            raise ClusterUnavailable("the server that was asked lags behind")
        self._rows = set(rows)
        try:
            saved = await _saved(rows)
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

    async def _write(
        self, fence: Fence, changes: Changes, *, everything: bool
    ) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
        """Returns the names of the rows that were written, and of those that were removed."""
        written: set[tuple[str, ...]] = set()
        gone: set[tuple[str, ...]] = set()
        batch: list[Message] = []
        size, mark = 0, b""
        pending = _pending(changes)
        for n, (name, value) in enumerate(_rows(changes, pending)):
            if n % SLICE == 0:
                await asyncio.sleep(0)
            if value is None or len(value) > MAX_ROW:
                gone.add(name)
                continue
            if batch and (len(batch) >= MAX_ROWS or size + len(value) > MAX_BYTES):
                if not mark:
                    mark = secrets.token_hex(8).encode()
                    batch.append(self._message(("state", "begun"), mark))
                await fence.write(batch)
                batch, size = [], 0
            batch.append(self._message(name, value))
            written.add(name)
            size += len(value)
        numbered = {name for name in self._rows if name[0] in ("event", "webhook", "cluster")}
        gone = (gone & self._rows) | (numbered - set(pending))
        if everything:
            gone |= {name for name in self._rows - written if name not in STATE}
        for name in gone:
            if len(batch) >= MAX_ROWS:
                if not mark:
                    mark = secrets.token_hex(8).encode()
                    batch.append(self._message(("state", "begun"), mark))
                await fence.write(batch)
                batch = []
            batch.append(self._message(name, b""))
        if everything and not mark:  # An incomplete checkpoint of a former active is complete now.
            mark = b"1"
            batch.append(self._message(("state", "begun"), mark))
        if mark:
            batch.append(self._message(("state", "done"), mark))
        await fence.write([*batch, *(self._message(name, value) for name, value in _state(changes).items())])
        return written, gone

    async def _own(self) -> Fence:
        """Write the owner key of this stream, if this process is the owner of the instance."""
        subject = keys.checkpoint_owner(self._instance)
        for _ in range(20):
            before = await self._connection.last(keys.CHECKPOINT, subject)
            owner = await self._connection.last(keys.STATE, keys.owner(self._instance))
            if owner is None or owner.data != self._owner:
                raise Fenced(f"another process owns {self._instance}")
            seq = int((before.headers or {})["Nats-Sequence"]) if before is not None else 0
            try:
                return Fence(self._connection, subject, await put(self._connection, subject, self._owner, expected=seq))
            except Fenced:
                await asyncio.sleep(0.05)  # Another process wrote it meanwhile, or the answer was old.
        raise Unacknowledged("the owner key of the checkpoint cannot be written")

    def _message(self, name: tuple[str, ...], value: bytes) -> Message:
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
                    try:
                        message = await asyncio.wait_for(queue.get(), READ_WITHIN)
                    except TimeoutError:
                        raise ClusterUnavailable("the checkpoint cannot be read: no answer") from None
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


def newest(file: Saved | None, stream: Saved | None) -> Saved | None:
    """Return the one that was saved later. The clocks of two hosts may differ, so the file must also be further on."""
    if file is None or stream is None:
        return file or stream
    return file if file.at > stream.at and file.cursor.head >= stream.cursor.head else stream


def _name(subject: str) -> tuple[str, ...] | None:
    try:
        return tuple(keys.unescape(token) for token in subject.split(".")[3:])
    except ValueError:
        return None


def _state(changes: Changes) -> Rows:
    """The rows that go with the last batch."""
    encode = msgspec.msgpack.encode
    rows = {"at": changes.at, "cursor": changes.cursor, "memory": changes.memory}
    return {("state", name): encode(value) for name, value in rows.items()}


def _pending(changes: Changes) -> Rows:
    """The rows of what is not acknowledged, by its number."""
    encode = msgspec.msgpack.encode
    tables = {"event": changes.events, "webhook": changes.webhooks, "cluster": changes.cluster}
    return {(table, str(n)): encode(value) for table, values in tables.items() for n, value in values.items()}


def _rows(changes: Changes, pending: Rows) -> Iterator[tuple[tuple[str, ...], bytes | None]]:
    """Yield every row but those of the last batch. None: the row is to be removed."""
    for job_id, value in changes.jobs.items():
        yield ("job", job_id), _encoded(value) if isinstance(value, PersistedJob) else None
        yield ("legacy", job_id), _encoded(value) if isinstance(value, LegacyRecord) else None
    for name, blob in changes.forecasts.items():
        yield ("forecast", name), blob
    exports = changes.exports
    yield ("state", "exports"), msgspec.msgpack.encode(exports.since) if exports is not None else None
    for job_id, exported in (exports.jobs if exports is not None else {}).items():
        yield ("export", job_id), None if exported is None else (b"\x01" if exported else b"\x00")
    yield ("state", "position"), changes.position
    yield from pending.items()


def _encoded(value: PersistedJob | LegacyRecord) -> bytes | None:
    try:
        return msgspec.msgpack.encode(value)
    except (ValueError, OverflowError, TypeError, RecursionError):
        return None


async def _saved(rows: Rows) -> Saved | None:
    """Decode the rows, some at a time. None if they are not of one moment, or if there are none."""
    decode = msgspec.msgpack.decode
    if ("state", "cursor") not in rows:
        return None
    if rows.get(("state", "begun")) != rows.get(("state", "done")):
        log.warning("the checkpoint in the cluster is incomplete: everything is read again")
        return None
    found: dict[str, list[Any]] = {"job": [], "legacy": []}
    kinds: Mapping[str, type[PersistedJob | LegacyRecord]] = {"job": PersistedJob, "legacy": LegacyRecord}
    numbered: dict[str, dict[int, Any]] = {"event": {}, "webhook": {}, "cluster": {}}
    for n, (name, value) in enumerate(rows.items()):
        if n % SLICE == 0:
            await asyncio.sleep(0)
        if name[0] in kinds:
            found[name[0]].append(decode(value, type=kinds[name[0]]))
        elif name[0] == "event":
            numbered["event"][int(name[1])] = decode(value, type=tuple[str, bytes])
        elif name[0] in numbered:
            numbered[name[0]][int(name[1])] = decode(value, type=tuple[bytes, bytes])
    since = rows.get(("state", "exports"))
    exports = {name[1]: value == b"\x01" for name, value in rows.items() if name[0] == "export"}
    in_order = {table: tuple(values[n] for n in sorted(values)) for table, values in numbered.items()}
    return Saved(
        decode(rows["state", "at"], type=float),
        decode(rows["state", "cursor"], type=Cursor),
        decode(rows["state", "memory"], type=IndexState),
        tuple(found["job"]),
        tuple(found["legacy"]),
        in_order["event"],
        stored_forecasts.decode({name[1]: value for name, value in rows.items() if name[0] == "forecast"}),
        PersistedExports(decode(since, type=int), exports) if since is not None else None,
        in_order["webhook"],
        in_order["cluster"],
        rows.get(("state", "position")),
    )
