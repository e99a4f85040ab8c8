"""A message to clients, and the interface of the connection that it is written to. Imports no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeAlias

from msgspec import Struct


class Message(Struct, frozen=True, gc=False):
    """Encoded JSON. `seq`: the position that the client reaches by it; None for log lines and other messages.

    `is_event`: it is an `event`, which event streams send under that name.
    """

    body: bytes
    seq: int | None = None
    is_event: bool = False


Framing: TypeAlias = Callable[[Sequence[Message]], bytes]
"""Encodes a sequence of messages for one kind of connection. Pure, so that clients can share the result."""


class Client(Protocol):
    """A connection that consumes a stream. No method waits; all are called on the event loop's thread."""

    transport: ClassVar[str]

    @property
    def address(self) -> str:
        """Where it comes from: addresses take turns."""

    @property
    def is_restricted(self) -> bool:
        """True if its token is for one job, or for one VM."""

    @property
    def framing(self) -> Framing: ...

    def write(self, framed: bytes) -> None:
        """Write what `framing` returned."""

    def waiting(self) -> int:
        """Bytes in the transport's buffer."""

    def synced(self) -> None:
        """The snapshot is complete: the positions of the following messages may be used to resume."""

    def give_up(self) -> None:
        """Disconnect the client because it is too slow."""


class Resume(Struct, frozen=True):
    """The last position of an earlier connection: `seq` in the run `epoch` of the daemon."""

    epoch: str
    seq: int
