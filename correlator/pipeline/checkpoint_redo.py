"""The redo log of a checkpoint in NATS: all rows of a write of several batches, stored before the first is copied.

A chunk is a row of the stream too. Its key has the slot, 0 or 1, and its number. The row `REDO` names the write whose
chunks a start has to use. A new write takes the other slot, so it never overwrites the chunks that are named there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from correlator.pipeline.checkpoint_rows import REDO, Name, Rows

CHUNKS = "redo"
"""The table of the chunks."""


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


async def replay(rows: Rows, chunks: Rows) -> bool:
    """If `rows` name a write, take its rows over from `chunks`, one chunk at a time; each that is used is removed.

    Returns False if a chunk is missing. Raises: `MsgspecError`.
    """
    if REDO not in rows:
        return True
    redo = msgspec.msgpack.decode(rows[REDO], type=Redo)
    for number in range(redo.chunks):
        await asyncio.sleep(0)
        value = chunks.pop(name_of(redo.slot, number), None)
        chunk = msgspec.msgpack.decode(value, type=Chunk) if value is not None else None
        if chunk is None or chunk.mark != redo.mark:
            return False
        for name, row in chunk.rows:
            if row:
                rows[name] = row
            else:
                rows.pop(name, None)
    return True
