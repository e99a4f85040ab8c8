"""What readers were told and has not been written yet.

Readers that were told the same share it, down to the bytes of the frame: a change makes no object for each of thousands
of them (docs/decisions/0021-shared-outboxes.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from correlator.sinks.messages import Framing, Message, Reader

TOGETHER = 0.02
"""Seconds within which what is sent goes out together, at the most, under load."""

REST = 1.0
"""After writing it rests for so many times as long as that took: writing takes half of the time at the most.

What comes meanwhile goes out together.
"""


@dataclass(slots=True, frozen=True, eq=False)
class Outbox:
    """One or more messages: `last`, after all of `before`; `size` in bytes."""

    before: Outbox | None
    last: Message
    size: int

    def messages(self) -> list[Message]:
        found: list[Message] = []
        step: Outbox | None = self
        while step is not None:
            found.append(step.last)
            step = step.before
        found.reverse()
        return found


class Outboxes:
    """Of all readers. `clock`: monotonic seconds; `later` calls after so many of them."""

    def __init__(self, clock: Callable[[], float], later: Callable[[float, Callable[[], None]], object]) -> None:
        self._clock = clock
        self._later = later
        self._out: dict[Reader, Outbox] = {}
        self._steps: dict[tuple[int, int], Outbox] = {}
        """By the identities of what was before and of the message: what readers share until the next flush."""
        self._last: Outbox | None = None
        self._next = 0.0
        """When writing is due again, at the soonest."""
        self._flushing = False

    def size(self, reader: Reader) -> int:
        """Bytes that wait for it."""
        outbox = self._out.get(reader)
        return outbox.size if outbox is not None else 0

    def put(self, reader: Reader, message: Message) -> None:
        """One more."""
        before, step = self._out.get(reader), self._last
        if step is None or step.last is not message or step.before is not before:  # else as the reader before this one
            key = (id(before), id(message))
            step = self._last = self._steps.get(key)
            if step is None:
                size = len(message.body) + (before.size if before is not None else 0)
                step = self._last = self._steps[key] = Outbox(before, message, size)
        self._out[reader] = step

    def take(self, reader: Reader) -> list[Message]:
        """All that waits for it; the caller writes it, or drops it."""
        outbox = self._out.pop(reader, None)
        return outbox.messages() if outbox is not None else []

    def flush(self) -> None:
        """Write what was told. Equal messages become one frame, which all their readers share."""
        self._flushing = False
        out, self._out = self._out, {}
        self._steps, self._last = {}, None
        if not out:
            return
        began = self._clock()
        framed: dict[tuple[Framing, int], bytes] = {}
        last, last_framing, frame = None, None, b""
        for reader, outbox in out.items():
            framing = reader.framing
            if outbox is not last or framing is not last_framing:
                last, last_framing, key = outbox, framing, (framing, id(outbox))
                frame = framed.get(key) or framed.setdefault(key, framing(outbox.messages()))
            reader.write(frame)
        ended = self._clock()
        self._next = ended + min(TOGETHER, REST * (ended - began))

    def flush_soon(self) -> None:
        """At once, unless the last time was so long and so lately that writing would take most of the time."""
        if self._flushing or not self._out:
            return
        wait = self._next - self._clock()
        if wait <= 0:
            self.flush()
        else:
            self._flushing = True
            self._later(wait, self.flush)
