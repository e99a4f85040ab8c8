"""The format of what a checkpoint keeps: one value per operation, one for all, one per running job.

An operation of 10 steps takes some 50 kB. Encode in the thread that owns the forecaster, since its arrays change.
Running jobs are plain structures that msgspec encodes by itself. The numbers have the byte order of the machine.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
from msgspec import Struct

from correlator.jobs.forecast.forecaster import Forecaster, OperationKey
from correlator.jobs.forecast.operation import Operation, OperationState
from correlator.jobs.forecast.tails import Tails
from correlator.jobs.forecast.window import floats


class General(Struct, frozen=True):
    """What belongs to no single operation. `order`: the operations, the least recently learned first."""

    level: float
    tails: Tails
    order: tuple[OperationKey, ...]


def encode_operation(operation: Operation) -> bytes:
    return msgspec.msgpack.encode(operation.state, enc_hook=_pack)


def decode_operation(stored: bytes) -> Operation:
    """Raises ValueError (`msgspec.ValidationError` is one) if `stored` is not what `encode_operation` returned."""
    state = msgspec.msgpack.decode(stored, type=OperationState, dec_hook=_unpack)
    return Operation(state.level, state)


def encode_general(forecaster: Forecaster) -> bytes:
    return msgspec.msgpack.encode(General(forecaster.level, forecaster.tails, tuple(key for key, _ in forecaster)))


def decode_general(stored: bytes) -> General:
    """Raises ValueError if `stored` is not what `encode_general` returned."""
    return msgspec.msgpack.decode(stored, type=General)


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
