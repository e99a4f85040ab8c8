"""What survives a restart: the content of a checkpoint, as values, and as the rows that every store of it has.

`Saver` gathers a write once a second; `checkpoint_file` stores it in SQLite, and `checkpoint_stream` in NATS, in a
cluster. Both have the same rows: a kind, a key, and bytes. `Changes` is one write, of which `rows_of` makes the rows;
`Saved` is what a start reads, made of all rows by `saved_of`. All rows of a write are of one moment: a store has those
of the last write or those of the one before.

The earlier runs (`StoredForecasts`) are one value for each operation, and one for what belongs to none. Nothing is
stored before the history has been read, and what belongs to all operations only once each of them was stored: a restart
in between reads the history again. An operation of 10 steps takes some 50 kB. Encode in the thread that owns the
forecaster, since its arrays change. Their numbers have the byte order of the machine.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from correlator.forecast.forecaster import Forecaster, Operation, OperationKey, OperationState
from correlator.forecast.window import Tails, floats
from correlator.jobs.forecasts import Accuracy, Forecasts
from correlator.model.encoder import packed
from correlator.model.persisted import (
    Cursor,
    IndexState,
    PersistedEvent,
    PersistedExports,
    PersistedJob,
    PersistedLegacy,
)
from correlator.model.rows import Micros

T = TypeVar("T")


class General(Struct, frozen=True):
    """What belongs to no single operation. `order`: the operations, the least recently learned first.

    `accuracy`, `learned_to`: those of `Forecasts`.
    """

    level: float
    tails: Tails
    order: tuple[OperationKey, ...]
    accuracy: Accuracy
    learned_to: Micros


def encode_operation(operation: Operation) -> bytes:
    return msgspec.msgpack.encode(operation.state, enc_hook=_pack)


def decode_operation(stored: bytes) -> Operation:
    """Raises ValueError (`msgspec.ValidationError` is one) if `stored` is not what `encode_operation` returned."""
    state = msgspec.msgpack.decode(stored, type=OperationState, dec_hook=_unpack)
    return Operation(state.level, state)


def _pack(value: Any) -> bytes:
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(type(value))


def _unpack(kind: Any, value: Any) -> Any:
    if kind is not array or not isinstance(value, bytes):
        raise ValueError(f"{kind.__name__} cannot be read")
    numbers = floats()
    numbers.frombytes(value)
    return numbers


AT_ONCE = 32
"""Operations that one write stores: some 0.1 ms each. The others follow in the next."""

_GENERAL = "all operations"


class Decoded(Struct, frozen=True):
    """What an earlier run wrote, decoded. `names`: those of the values."""

    forecaster: Forecaster
    general: General
    names: frozenset[str]


def decode_forecasts(values: Mapping[str, bytes]) -> Decoded | None:
    """Decode what an earlier run wrote. None if nothing of it can be used; the history is then read again.

    Takes some 0.3 ms for an operation: call it in a worker thread.
    """
    try:
        general = msgspec.msgpack.decode(values[_GENERAL], type=General)
    except (KeyError, ValueError):
        return None
    forecaster = Forecaster(general.level, general.tails)
    for key in general.order:
        with contextlib.suppress(KeyError, ValueError):  # A damaged operation begins anew.
            forecaster.restore([(key, decode_operation(values[_name(key)]))])
    return Decoded(forecaster, general, frozenset(values) - {_GENERAL})


class StoredForecasts:
    """Names the values that have changed since the last write. Event loop's thread only, since arrays are encoded."""

    def __init__(self, forecasts: Forecasts) -> None:
        self._forecasts = forecasts
        self._written: set[str] = set()
        """The names of all values that were passed on for writing."""
        self._complete = False
        """True once every operation was: a file that lacks some must not pass for the whole history."""

    def changed(self, most: int = AT_ONCE) -> dict[str, bytes | None]:
        """Encode up to `most` operations that have changed. None: the value is to be deleted."""
        forecasts = self._forecasts
        if not forecasts.history_read or not forecasts.changed:
            return {}
        values: dict[str, bytes | None] = {}
        for key in list(islice(forecasts.changed, most)):
            del forecasts.changed[key]
            operation = forecasts.forecaster.operation(key)
            values[_name(key)] = encode_operation(operation) if operation is not None else None
        known = {_name(key) for key, _ in forecasts.forecaster}
        values |= dict.fromkeys(self._written - known)
        self._written = known & (self._written | values.keys())
        self._complete = self._complete or not forecasts.changed
        if self._complete:
            order = tuple(key for key, _ in forecasts.forecaster)
            level, tails = forecasts.forecaster.level, forecasts.forecaster.tails
            general = General(level, tails, order, forecasts.accuracy, forecasts.learned_to)
            values[_GENERAL] = msgspec.msgpack.encode(general)
        return values

    def mark_all(self) -> None:
        """Return everything with the next `changed`: it is the first write of a store."""
        self._written.clear()
        self._complete = False
        self._forecasts.changed.update(dict.fromkeys(key for key, _ in self._forecasts.forecaster))

    def restore(self, decoded: Decoded) -> None:
        """Go on with what an earlier run wrote."""
        self._written, self._complete = set(decoded.names), True
        self._forecasts.restore(decoded.forecaster, decoded.general.accuracy, decoded.general.learned_to)


def _name(key: OperationKey) -> str:
    return msgspec.json.encode(key).decode()


# -- the checkpoint


VERSION = 5
"""Version of the form of the checkpoint, in the file and in the cluster. Increase it when a kind of row, or a type that
is stored in one, changes. A checkpoint of another version is not read. A new member with a default, at the end of a
type, needs no other version: a version that does not know it leaves it out."""


Name: TypeAlias = tuple[str, ...]
"""Kind and key of a row."""

Row: TypeAlias = tuple[Name, bytes]

MOMENT = ("state", "moment")
"""The row that each write changes (`SavedMoment`)."""

PART = 200_000
"""Bytes of a row of the index's state, which has no bound of its own."""


class Saved(Struct, frozen=True):
    """What the last run saved. `at`: Unix seconds; `events`: the pending events of all sinks, in order.

    `forecasts`: the earlier runs; None if they were not read yet. `exports`: None if ended jobs were not exported.
    `position`: the position in the stream of a cluster. `source`: how the database was reached; "" if not in a file.
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
    source: str = ""


class Changes(Struct, frozen=True):
    """One write. `jobs`: the changed jobs by ID. `events`: the added events by number (`EventLog.changed`).

    `forecasts`: the changed values of `StoredForecasts` by name. Of all three None is a removed one. `exports`: what
    changed of them, None if ended jobs are not exported. `position`: see `Saved`.
    """

    at: float
    cursor: Cursor
    memory: IndexState
    jobs: Mapping[str, PersistedJob | PersistedLegacy | None]
    events: Mapping[int, PersistedEvent | None]
    forecasts: Mapping[str, bytes | None] = {}
    exports: PersistedExports | None = None
    position: bytes | None = None


class SavedMoment(Struct, frozen=True):
    """What is one value in a write. `memory`: bytes of the index's state, which has rows of its own."""

    at: float
    cursor: Cursor
    memory: int
    exports_since: Micros | None
    position: bytes | None


class Unusable(ValueError):
    """The checkpoint is intact, but not complete, or of another program, version or database."""


def rows_of(changes: Changes) -> Iterator[tuple[Name, bytes | None]]:
    """Yield the rows of a write, each encoded when its turn comes, the last one `MOMENT`. None: the row is removed.

    An earlier write may have had more parts of the index's state: they stay, and no start reads them.
    """
    encode = msgspec.msgpack.encode
    for name, job in _named("job", changes.jobs):
        yield name, packed(job)
    yield from _named("forecast", changes.forecasts)
    exports = changes.exports
    for name, exported in _named("export", exports.jobs if exports is not None else {}):
        yield name, packed(exported)
    state = changes.memory
    if (memory := packed(state)) is None:
        of_events = tuple(filter(packed, state.pending_events))
        memory = encode(replace(state, pending_events=of_events, removed=tuple(filter(packed, state.removed))))
    for start in range(0, len(memory), PART):
        yield ("memory", str(start)), memory[start : start + PART]
    for number, event in changes.events.items():
        yield ("event", str(number)), packed(event)
    since = exports.since if exports is not None else None
    yield MOMENT, encode(SavedMoment(changes.at, changes.cursor, len(memory), since, changes.position))


def _named(kind: str, values: Mapping[str, T]) -> Iterator[tuple[Name, T]]:
    """Name the rows of a kind. A key without an encoding (a lone surrogate) is left out: no store takes it."""
    for key, value in values.items():
        if key.isascii() or packed(key) is not None:
            yield (kind, key), value


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
    moment = decode(others["state"][MOMENT[1]], type=SavedMoment)
    starts = range(0, moment.memory, PART)
    memory = b"".join(others["memory"].get(str(start), b"") for start in starts[: len(others["memory"])])
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
        decode_forecasts(others["forecast"]),
        exports,
        moment.position,
    )
