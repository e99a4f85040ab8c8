"""Outboxes: the messages that have been sent to clients and not been written to their transports yet.

Clients with equal pending messages share one outbox and the bytes of one frame, so a change creates no
object per client (docs/decisions/0021-shared-outboxes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from msgspec import Struct

from correlator.ops.stalls import timed
from correlator.sinks.streaming.messages import Client, Framing, Message

TOGETHER = 0.02
"""Seconds for which messages are collected under load, at most."""

REST = 1.0
"""After a flush that took t seconds, wait min(20 ms, REST × t) before the next.

Messages that arrive meanwhile share frames.
"""


class Outbox(Struct, frozen=True, eq=False):
    """A linked list of pending messages: those of `before`, then those of `last`. `size`: bytes of all bodies."""

    before: Outbox | None
    last: Sequence[Message]
    size: int

    def messages(self) -> list[Message]:
        found: list[Sequence[Message]] = []
        step: Outbox | None = self
        while step is not None:
            found.append(step.last)
            step = step.before
        return list(chain.from_iterable(reversed(found)))


class Outboxes:
    """Pending messages per client.

    Args:
        clock: Monotonic seconds.
        call_later: `call_later(delay_s, fn)` schedules `fn`.
    """

    def __init__(self, clock: Callable[[], float], call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._clock = clock
        self._call_later = call_later
        self._out: dict[Client, Outbox] = {}
        self._steps: dict[tuple[int, int], Outbox] = {}
        """Outboxes by the identities of `before` and of what was put; shared by clients until the next flush."""
        self._next = 0.0
        """Monotonic seconds before which `flush_soon` does not write."""
        self._flushing = False

    def __bool__(self) -> bool:
        """True if messages are pending for any client."""
        return bool(self._out)

    def size(self, client: Client) -> int:
        """Bytes that are pending for a client."""
        outbox = self._out.get(client)
        return outbox.size if outbox is not None else 0

    def put(self, client: Client, message: Message) -> None:
        """Append a message to a client's outbox."""
        self._append((client,), (message,), id(message))

    def put_all(self, clients: Sequence[Client], messages: Sequence[Message]) -> None:
        """Append all `messages`, a sequence that does not change any more, to the outbox of each of `clients`."""
        if messages:
            self._append(clients, messages, id(messages))

    def _append(self, clients: Sequence[Client], messages: Sequence[Message], identity: int) -> None:
        out, first, step = self._out, None, None
        for client in clients:
            before = out.get(client)
            if step is None or before is not first:  # else it is as for the previous client
                first, key = before, (id(before), identity)
                step = self._steps.get(key)
                if step is None:
                    size = sum([len(message.body) for message in messages], before.size if before is not None else 0)
                    step = self._steps[key] = Outbox(before, messages, size)
            out[client] = step

    def pop(self, client: Client) -> list[Message]:
        """Remove and return the pending messages of a client."""
        outbox = self._out.pop(client, None)
        return outbox.messages() if outbox is not None else []

    def flush(self) -> None:
        """Write all pending messages. Clients with equal messages and the same framing get the same frame."""
        self._flushing = False
        out, self._out = self._out, {}
        self._steps = {}
        if not out:
            return
        with timed("write"):
            self._write(out)

    def _write(self, out: dict[Client, Outbox]) -> None:
        began = self._clock()
        framed: dict[tuple[Framing, int], bytes] = {}
        last, last_framing, frame = None, None, b""
        for client, outbox in out.items():
            framing = client.framing
            if outbox is not last or framing is not last_framing:
                last, last_framing, key = outbox, framing, (framing, id(outbox))
                frame = framed.get(key) or framed.setdefault(key, framing(outbox.messages()))
            client.write(frame)
        ended = self._clock()
        self._next = ended + min(TOGETHER, REST * (ended - began))

    def flush_soon(self) -> None:
        """Flush now, or schedule a flush if the previous one was too recent (see `REST`)."""
        if self._flushing or not self._out:
            return
        wait = self._next - self._clock()
        if wait <= 0:
            self.flush()
        else:
            self._flushing = True
            self._call_later(wait, self.flush)
