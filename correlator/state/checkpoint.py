"""What survives a restart: the content of a checkpoint, as values, and as the rows that every store of it has.

`Saver` gathers a write once a second; `checkpoint_file` stores it in SQLite, and `checkpoint_stream` in NATS, in a
cluster. Both have the same rows: a kind, a key, and bytes. `Changes` is one write, of which `rows_of` makes the rows;
`Saved` is what a start reads, made of all rows by `saved_of`. All rows of a write are of one moment: a store has those
of the last write or those of the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

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
from correlator.model.rows import Micros
from correlator.state import forecasts as stored_forecasts
from correlator.state.forecasts import Decoded

VERSION = 5
"""Version of the form of the checkpoint, in the file and in the cluster. Increase it when a kind of row, or a type that
is stored in one, changes. A checkpoint of another version is not read."""

log = logging.getLogger(__name__)

Name: TypeAlias = tuple[str, ...]
"""Kind and key of a row."""

Row: TypeAlias = tuple[Name, bytes]

MOMENT = ("state", "moment")
"""The row that each write changes (`Moment`)."""

PART = 200_000
"""Bytes of a row of the index's state, which has no bound of its own."""

NUMBERED = ("event", "memory")
"""The kinds of which every write has all rows: those that it has not are removed."""


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


class Moment(Struct, frozen=True):
    """What is one value in a write. `memory`: bytes of the index's state, which has rows of its own."""

    at: float
    cursor: Cursor
    memory: int
    exports_since: Micros | None
    position: bytes | None


class Unusable(ValueError):
    """The checkpoint is intact, but not complete, or of another program, version or database."""


def rows_of(changes: Changes, stored: set[Name]) -> Iterator[tuple[Name, bytes | None]]:
    """Yield the rows of a write, each encoded when its turn comes, the last one `MOMENT`. None: the row is removed.

    `stored`: the names of the numbered rows that the store has. An event that it has is not yielded again.
    """
    encode = msgspec.msgpack.encode
    for job_id, job in changes.jobs.items():
        yield ("job", job_id), _encoded(job)
    for name, blob in changes.forecasts.items():
        yield ("forecast", name), blob
    exports = changes.exports
    for job_id, exported in exports.jobs.items() if exports is not None else ():
        yield ("export", job_id), encode(exported) if exported is not None else None
    memory = encode(changes.memory)
    parts = {("memory", str(start)): memory[start : start + PART] for start in range(0, len(memory), PART)}
    events = {("event", str(n)): event for n, event in changes.events.items()}
    for gone in stored - events.keys() - parts.keys():
        yield gone, None
    for numbered, event in events.items():
        if numbered not in stored:
            yield numbered, encode(event)
    yield from parts.items()
    since = exports.since if exports is not None else None
    yield MOMENT, encode(Moment(changes.at, changes.cursor, len(memory), since, changes.position))


def _encoded(job: PersistedJob | PersistedLegacy | None) -> bytes | None:
    """Encode a job; None if it cannot be encoded (a lone surrogate). It is read from the tables again."""
    try:
        return msgspec.msgpack.encode(job) if job is not None else None
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        log.debug("a job is left out of the checkpoint: %s", error)
        return None


def saved_of(rows: Iterable[Row]) -> Saved:
    """Decode all rows of a store. It takes up to seconds: call it in a worker thread.

    Raises: `Unusable` if they are not of one moment; `ValueError`, `LookupError` or `TypeError` for damaged ones.
    """
    decode = msgspec.msgpack.decode
    job = msgspec.msgpack.Decoder(PersistedJob | PersistedLegacy)
    jobs: list[PersistedJob] = []
    legacy: list[PersistedLegacy] = []
    events: dict[int, PersistedEvent] = {}
    others: dict[str, dict[str, bytes]] = {kind: {} for kind in ("state", "memory", "forecast", "export")}
    for (kind, *key), value in rows:
        if kind == "job":
            decoded = job.decode(value)
            if isinstance(decoded, PersistedJob):
                jobs.append(decoded)
            else:
                legacy.append(decoded)
        elif kind == "event":
            events[int(key[0])] = decode(value, type=PersistedEvent)
        elif kind in others:
            others[kind][key[0]] = value
    if MOMENT[1] not in others["state"]:
        raise Unusable("it is incomplete")
    moment = decode(others["state"][MOMENT[1]], type=Moment)
    memory = b"".join(others["memory"].get(str(start), b"") for start in range(0, moment.memory, PART))
    if len(memory) != moment.memory:
        raise Unusable("a part of the index's state is missing")
    exports = None
    if moment.exports_since is not None:
        exports = PersistedExports(moment.exports_since, {i: decode(v, type=bool) for i, v in others["export"].items()})
    return Saved(
        moment.at,
        moment.cursor,
        decode(memory, type=IndexState),
        tuple(jobs),
        tuple(legacy),
        tuple(events[n] for n in sorted(events)),
        stored_forecasts.decode(others["forecast"]),
        exports,
        moment.position,
    )
