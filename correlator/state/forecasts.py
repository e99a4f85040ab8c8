"""The earlier runs as they are stored: one value for each operation, and one for what belongs to none.

Nothing is stored before the history has been read, and what belongs to all operations only once each of them was
stored: a restart in between reads the history again. An operation of 10 steps takes some 50 kB. Encode in the thread
that owns the forecaster, since its arrays change. Their numbers have the byte order of the machine.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct

from correlator.forecast.forecaster import Forecaster, Operation, OperationKey, OperationState
from correlator.forecast.window import Tails, floats
from correlator.jobs.forecasts import Accuracy, Forecasts, HistoryState
from correlator.model.rows import Micros


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


def decode(values: Mapping[str, bytes]) -> Decoded | None:
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
        if forecasts.history is not HistoryState.READ or not forecasts.changed:
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
