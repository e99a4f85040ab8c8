"""The stores of a checkpoint, each as a run of the daemon uses it: SQLite, and a stream of NATS.

`start` begins a run, which ends the one before, and returns what was saved. `everything`: the next write must have
every row, or at least those of a failed one. `write_until` ends at a point: the process is killed, or the store fails
and the same run goes on; it returns False if the write ends before that. `put` changes one row, an empty value removes
it; `start` follows.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from correlator.cluster import keys
from correlator.cluster.connection import ClusterUnavailable, Connection
from correlator.cluster.fence import Fence, StreamMessage
from correlator.cluster.lease import Lease
from correlator.model.persisted import Cursor
from correlator.state.checkpoint import Changes, Decoded, Name, Saved, decode_forecasts, encode_operation
from correlator.state.checkpoint_file import Checkpoint
from correlator.state.checkpoint_stream import FORM, StreamCheckpoint
from tests.support.cluster import connected, create_streams, settings
from tests.support.saved_index import changes, filled

ROWS = 3
"""Rows of a batch of the stream, so that a few jobs need several."""

OLD = replace(changes(filled(6), Cursor(1), n1=b"one", n2=b"two"), position=b"old")
NEW = replace(changes(filled(8), Cursor(2), n1=None, n2=b"two", n3=b"three", n9=b"nine"), position=b"new")
NEWER = changes(filled(5), Cursor(3), n1=None, n2=None, n3=b"three", n4=b"four", n9=None)
NEWER = replace(NEWER, position=b"newer")
NEWER = replace(NEWER, jobs={**dict.fromkeys(NEW.jobs), **NEWER.jobs})
"""Three writes, each of which has everything."""


def content(saved: Saved | None) -> Any:
    """All that was saved, as `content_of` has it of a write."""
    if saved is None:
        return None
    jobs = {one.job.job_id: one for one in saved.jobs} | {one.job_id: one for one in saved.legacy}
    runs = _runs(saved.forecasts)
    return saved.at, saved.cursor, saved.memory, jobs, saved.events, runs, saved.exports, saved.position


def content_of(written: Changes) -> Any:
    """What a run reads after this write, which has every row."""
    jobs, exports = _there(written.jobs), written.exports
    if exports is not None:
        exports = replace(exports, jobs=_there(exports.jobs))
    events = tuple(event for _, event in sorted(_there(written.events).items()))
    runs = _runs(decode_forecasts(_there(written.forecasts)))
    return written.at, written.cursor, written.memory, jobs, events, runs, exports, written.position


def _there(values: Any) -> Any:
    return {key: value for key, value in values.items() if value is not None}


def _runs(decoded: Decoded | None) -> Any:
    """The earlier runs, without what is made from them."""
    if decoded is None:
        return None
    return decoded.general, {key: encode_operation(operation) for key, operation in decoded.forecaster}


class FileStore:
    def __init__(self, folder: Path) -> None:
        self.everything = False
        self._folder = folder
        self._number = 0
        self._file = self._opened()

    def _opened(self) -> Checkpoint:
        return Checkpoint(self._folder / str(self._number) / "c", "s")

    async def start(self) -> Saved | None:
        self.close()
        self._file = self._opened()
        return self._file.open()

    async def write(self, changes: Changes) -> None:
        self._file.write(changes)

    async def empty(self) -> None:
        self.close()
        self._number += 1

    async def write_until(self, changes: Changes, point: int, *, killed: bool) -> bool:
        return self._killed(changes, point * 512) if killed else self._failed(changes, point)

    def _killed(self, changes: Changes, size: int) -> bool:
        """SQLite appends a write to its log; a killed process leaves the first bytes of it."""
        path = self._file.path
        log = path.with_name(path.name + "-wal")
        end = log.stat().st_size + size
        self._file.write(changes)
        self._number += 1
        image = self._opened().path
        image.parent.mkdir()
        shutil.copyfile(path, image)
        image.with_name(log.name).write_bytes(log.read_bytes()[:end])
        return end < log.stat().st_size

    def _failed(self, changes: Changes, point: int) -> bool:
        """Have the write fail at one of its steps."""
        connection, steps = self._file._connection, 0
        assert connection is not None

        def step() -> bool:
            nonlocal steps
            steps += 1
            return steps > point

        connection.set_progress_handler(step, 10)
        with contextlib.suppress(sqlite3.OperationalError):
            self._file.write(changes)
        connection.set_progress_handler(None, 0)
        self.everything = steps > point
        return self.everything

    async def put(self, name: Name, value: bytes) -> None:
        put = ("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (*name, value))
        self._change(*put if value else ("DELETE FROM rows WHERE kind = ? AND key = ?", name))

    async def set_form(self, version: int) -> None:
        self._change(f"PRAGMA user_version = {version}", ())

    def _change(self, statement: str, values: tuple[object, ...]) -> None:
        self.close()
        with contextlib.closing(sqlite3.connect(self._file.path, isolation_level=None)) as connection:
            connection.execute(statement, values)

    def close(self) -> None:
        self._file.close()


class StreamStore:
    """All runs have the lease of one holder. `wire`: what they send."""

    def __init__(self, connection: Connection, lease: Fence) -> None:
        self.connection = connection
        self._lease = lease
        self.wire = Wire(connection)
        self.run = self.made()
        self.everything = True

    def made(self, max_rows: int = ROWS) -> StreamCheckpoint:
        """One more run."""
        return StreamCheckpoint("dc1", self._lease, lambda: None, max_rows=max_rows)

    async def start(self) -> Saved | None:
        self.run, self.everything = self.made(), True
        return await self.run.open()

    async def write(self, changes: Changes) -> None:
        everything, self.everything = self.everything, True
        await self.run.write(changes, everything=everything)
        self.everything = False

    async def empty(self) -> None:
        await self.connection.api(f"STREAM.PURGE.{keys.CHECKPOINT}")

    async def write_until(self, changes: Changes, point: int, *, killed: bool) -> bool:
        """Each request is a point, and its answer another one. A killed process is no other than one that goes on."""
        self.wire.end_after(point // 2, answers=point % 2 == 1)
        with contextlib.suppress(ClusterUnavailable):
            await self.write(changes)
        return self.wire.ended()

    async def put(self, name: Name, value: bytes) -> None:
        fence = await self._lease.own(keys.CHECKPOINT, keys.checkpoint_owner("dc1"))
        removed = {} if value else {"Nats-TTL": "60s"}
        await fence.write([StreamMessage(keys.checkpoint("dc1", *name), value, removed)])

    async def set_form(self, version: int) -> None:
        await self.put(FORM, msgspec.msgpack.encode(version))


Store: TypeAlias = FileStore | StreamStore


@contextlib.asynccontextmanager
async def stream_store(url: str) -> AsyncIterator[StreamStore]:
    """A store in a server of NATS that is empty."""
    await create_streams(url)
    async with connected(url) as connection:
        yield StreamStore(connection, await Lease(connection, connection, settings(url)).acquire())


class Wire:
    """What the process sends to the stream: `sent` messages so far, until it ends after a number of them.

    `batches`: the rows of each batch so far, with the number of messages that were sent before it.
    """

    def __init__(self, connection: Connection) -> None:
        self.sent = 0
        self.batches: list[tuple[int, set[str]]] = []
        self._last: int | None = None
        self._answers = self._ended = False
        for name, is_request in (("publish", False), ("request", True)):
            setattr(connection, name, self._counted(getattr(connection, name), is_request=is_request))

    def end_after(self, sends: int, *, answers: bool) -> None:
        """`answers`: if the message that is not sent is a request, it is sent, and its answer is lost."""
        self._last, self._answers, self._ended = self.sent + sends, answers, False

    def ended(self) -> bool:
        """True if the process has ended there. What follows is sent again."""
        self._last = None
        return self._ended

    def _counted(self, send: Callable[..., Awaitable[Any]], *, is_request: bool) -> Callable[..., Awaitable[Any]]:
        async def counted(subject: str, *args: Any, **options: Any) -> Any:
            if subject.startswith("$KV.cor_checkpoint."):
                if self._last is not None and self.sent >= self._last:
                    if self._answers and is_request and not self._ended:
                        await send(subject, *args, **options)
                    self._ended = True
                    raise ClusterUnavailable("the process is gone")
                if (options.get("headers") or {}).get("Nats-Batch-Sequence", "1") == "1":
                    self.batches.append((self.sent, set()))
                self.batches[-1][1].add(subject.rpartition(".")[2])
                self.sent += 1
            return await send(subject, *args, **options)

        return counted
