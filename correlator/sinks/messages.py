"""A message on its way to readers: its JSON and the position that it tells. Imports no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol


class Message(NamedTuple):
    """`seq` None: it says nothing of the position, as a log line or a status."""

    body: bytes
    seq: int | None = None


class Framing(Protocol):
    """How one kind of connection writes messages that belong together; pure, so that equal readers share the bytes."""

    def __call__(self, messages: Sequence[Message], /) -> bytes: ...


class Reader(Protocol):
    """One connection. `write` takes what its framing made, and never waits."""

    transport: ClassVar[str]

    @property
    def framing(self) -> Framing: ...

    def write(self, framed: bytes) -> None: ...

    def waiting(self) -> int:
        """Bytes that its transport has not got rid of yet."""

    def synced(self) -> None:
        """What it is told from now on is a position that it may come back with."""

    def give_up(self) -> None:
        """It is too slow: end it."""
