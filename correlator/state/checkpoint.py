"""What survives a restart: the content of a checkpoint, as values, and as rows of keys and values for a stream.

`Saver` gathers it once a second; `checkpoint_file` writes it to SQLite, and `checkpoint_stream` to NATS in a cluster.
`Saved` is what a start reads, `Changes` one write. `Content` makes the rows of a write, `saved_of` the values of the
rows that were read. The position in the log, the jobs and the events without acknowledgement are those of one moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from correlator.model.persisted import (
    Cursor,
    IndexState,
    PersistedEvent,
    PersistedExports,
    PersistedJob,
    PersistedLegacy,
)
from correlator.state import forecasts as stored_forecasts
from correlator.state.forecasts import Decoded

VERSION = 4
"""Version of the form of the checkpoint, in the file and in the cluster. Increase it when a table, or a type that is
stored in one, changes. A checkpoint of another version is not read."""

log = logging.getLogger(__name__)

Name = tuple[str, ...]
"""The table and the key of a row."""

MAX_ROWS = 500
MAX_BYTES = 450_000
"""Bounds of one batch, and of one chunk of the redo log. A single row may exceed the bytes."""

MAX_ROW = MAX_BYTES
"""Bytes of a row. A larger one is left out: the next active reads such a job from the tables again, has no earlier runs
of such an operation for its forecasts, and does not send such a pending event again. A link of 1 Mbit/s takes 4 s for
this row, in which no ping of the connection is answered. The position (`Cursor`) has 260 kB at most: its row is
of a light reading, which leaves out long texts (`correlator.sources.db.log_rows`); its holes and marks are bounded."""

SLICE = 100
"""Rows that are encoded or decoded before other tasks run."""

PART = 200_000
"""Bytes of a part of the index's state, which has no bound of its own."""

NUMBERED = ("event", "memory")
"""The tables of which every write has all rows: those that it has not are removed."""

REDO = ("state", "redo")
WHOLE = ("state", "whole")
"""The row that every write of everything changes."""
FORM = ("state", "form")
"""The row with the `VERSION` of the rows."""
CURSOR = ("state", "cursor")
"""Rows without this one are of a first write that is not complete."""
LAST = ("state", "memory")
"""The row with the length of the index's state, the last one of each write: its sequence is that of the write."""
STATE = frozenset({REDO, WHOLE, FORM, CURSOR, LAST, ("state", "at")})
"""The rows that the batches of a write have beside its content, which never removes them."""

_KINDS: Mapping[str, type[PersistedJob | PersistedLegacy]] = {"job": PersistedJob, "legacy": PersistedLegacy}
"""What is in the tables of jobs."""

Row = tuple[Name, bytes]
Rows = dict[Name, bytes]


class Saved(Struct, frozen=True):
    """What the last run saved. `at`: Unix seconds; `events`: the pending events of all sinks, in order.

    `forecasts`: the earlier runs; None if they were not read yet. `exports`: None if ended jobs were not exported.
    `position`: the position in the stream of a cluster.
    """

    at: float
    cursor: Cursor
    memory: IndexState
    jobs: tuple[PersistedJob, ...]
    legacy: tuple[PersistedLegacy, ...]
    events: tuple[PersistedEvent, ...]
    forecasts: Decoded | None = None
    exports: PersistedExports | None = None
    position: bytes | None = None


class Changes(Struct, frozen=True):
    """One write. `jobs`: the changed jobs by ID, None for a removed one. `events`: all pending events, by number.

    The event of a number does not change. `forecasts`: the changed values of `StoredForecasts` by name, None for a
    removed one. `exports`: what changed of them, None if ended jobs are not exported. `position`: see `Saved`.
    """

    at: float
    cursor: Cursor
    memory: IndexState
    jobs: Mapping[str, PersistedJob | PersistedLegacy | None]
    events: Mapping[int, PersistedEvent]
    forecasts: Mapping[str, bytes | None] = {}
    exports: PersistedExports | None = None
    position: bytes | None = None


class Content:
    """The rows of one write. `groups` yields the same rows each time it is called, as nothing in `changes` changes.

    `stored`: the rows that the stream has, each with the hash of its value; the same value is not written again.
    `room`: returns the bytes of a group. `state`: the rows of the last batch, with their values. `written`, `gone`: the
    other rows that the stream has afterwards, and the names of those that are removed, once `groups` has ended.
    """

    def __init__(
        self,
        changes: Changes,
        stored: Mapping[Name, int],
        *,
        everything: bool,
        max_rows: int,
        room: Callable[[], int] = lambda: MAX_BYTES,
    ) -> None:
        self.everything = everything
        self._changes = changes
        self._stored = stored
        self._max_rows = max_rows
        self._room = room
        self._memory = msgspec.msgpack.encode(changes.memory)
        state = {"form": VERSION, "at": changes.at, "cursor": changes.cursor, "memory": len(self._memory)}
        self.state: list[Row] = [(("state", name), msgspec.msgpack.encode(value)) for name, value in state.items()]
        self.written: dict[Name, int] = {}
        self.gone: set[Name] = set()

    async def groups(self) -> AsyncGenerator[list[Row], None]:
        """Yield the rows, as many at a time as fit a batch and a chunk. An empty value: the row is removed."""
        group: list[Row] = []
        size = 0
        async with contextlib.aclosing(self._values()) as values:
            async for name, value in values:
                if group and (len(group) >= self._max_rows or size + len(value) > min(MAX_BYTES, self._room())):
                    yield group
                    group, size = [], 0
                group.append((name, value))
                size += len(value)
        if group:
            yield group

    async def _values(self) -> AsyncGenerator[Row, None]:
        written: dict[Name, int] = {}
        gone: set[Name] = set()
        current: set[Name] = set()
        for n, (name, make) in enumerate(_rows_of(self._changes, self._memory)):
            if n % SLICE == 0:
                await asyncio.sleep(0)
            if name[0] in NUMBERED:
                current.add(name)
                if not self.everything and name in self._stored and name[0] != "memory":
                    continue  # The value of a number does not change.
            value = make()
            if value is None or len(value) > MAX_ROW:
                gone.add(name)
            else:
                written[name] = hash(value)
                if self._stored.get(name) != written[name]:
                    yield name, value
        gone &= self._stored.keys()
        for n, name in enumerate(self._stored):
            if n % SLICE == 0:
                await asyncio.sleep(0)
            if name in STATE or name in written:
                continue
            if self.everything or (name[0] in NUMBERED and name not in current):
                gone.add(name)
        self.written, self.gone = written, gone
        for name in gone:
            yield name, b""


def _rows_of(changes: Changes, memory: bytes) -> Iterator[tuple[Name, Callable[[], bytes | None]]]:
    """Yield every row but those of the last batch, with what encodes it. None: the row is to be removed."""
    encode = msgspec.msgpack.encode
    for job_id, value in changes.jobs.items():
        for table, kind in _KINDS.items():
            yield (table, job_id), partial(encoded, value) if isinstance(value, kind) else partial(_as_it_is, None)
    for name, blob in changes.forecasts.items():
        yield ("forecast", name), partial(_as_it_is, blob)
    exports = changes.exports
    yield ("state", "exports"), partial(_as_it_is, encode(exports.since) if exports is not None else None)
    for job_id, exported in (exports.jobs if exports is not None else {}).items():
        yield ("export", job_id), partial(_as_it_is, None if exported is None else (b"\x01" if exported else b"\x00"))
    yield ("state", "position"), partial(_as_it_is, changes.position)
    for n, event in changes.events.items():
        yield ("event", str(n)), partial(encode, event)
    for start in range(0, len(memory), PART):
        yield ("memory", str(start)), partial(_as_it_is, memory[start : start + PART])


def _as_it_is(value: bytes | None) -> bytes | None:
    return value


def encoded(value: PersistedJob | PersistedLegacy) -> bytes | None:
    """Encode a job; None if it cannot be encoded (a lone surrogate). It is read from the tables again."""
    try:
        return msgspec.msgpack.encode(value)
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        log.debug("a job is left out of the checkpoint: %s", error)
        return None


async def saved_of(rows: Rows) -> Saved | None:
    """Decode the rows, some at a time. None if they are not of one moment, or if there are none."""
    decode = msgspec.msgpack.decode
    if CURSOR not in rows:
        if rows:
            log.warning("the checkpoint in the cluster is incomplete: everything is read again")
        return None
    if (form := decode(rows[FORM]) if FORM in rows else None) != VERSION:
        log.warning(
            "the checkpoint in the cluster has the form %s of another version, and this one reads %d: all is read from"
            " the tables, as at a first start, and no event of the meantime is published",
            *(form, VERSION),
        )
        return None
    found: dict[str, list[Any]] = {"job": [], "legacy": []}
    events: dict[int, PersistedEvent] = {}
    for n, (name, value) in enumerate(rows.items()):
        if n % SLICE == 0:
            await asyncio.sleep(0)
        if name[0] in _KINDS:
            found[name[0]].append(decode(value, type=_KINDS[name[0]]))
        elif name[0] == "event":
            events[int(name[1])] = decode(value, type=PersistedEvent)
    memory = b"".join(value for _, value in sorted((int(name[1]), rows[name]) for name in rows if name[0] == "memory"))
    if len(memory) != decode(rows["state", "memory"], type=int):
        raise ValueError("a part of the index's state is missing")
    since = rows.get(("state", "exports"))
    exports = {name[1]: value == b"\x01" for name, value in rows.items() if name[0] == "export"}
    return Saved(
        decode(rows["state", "at"], type=float),
        decode(rows[CURSOR], type=Cursor),
        decode(memory, type=IndexState),
        tuple(found["job"]),
        tuple(found["legacy"]),
        tuple(events[n] for n in sorted(events)),
        stored_forecasts.decode({name[1]: value for name, value in rows.items() if name[0] == "forecast"}),
        PersistedExports(decode(since, type=int), exports) if since is not None else None,
        rows.get(("state", "position")),
    )
