"""Events that receivers have not acknowledged: numbered, in order, bounded in number and bytes, and in the checkpoint.

An event is a fact, so none is conflated: it is pending until its receiver has acknowledged it, or a bound drops it.
What is sent next, when it is sent again and which one a bound drops differs between the sinks, and stands there.
`EventLog` has what the checkpoint keeps of the events of all sinks, `PendingEvents` the events for one receiver.
Nothing here reads a clock or does I/O. Whether a receiver is too slow is judged in `lateness.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from msgspec import MsgspecError
from msgspec.msgpack import Decoder, encode

from correlator.model.persisted import PersistedEvent

log = logging.getLogger(__name__)


T = TypeVar("T")


class EventLog:
    """What the checkpoint keeps of the events of all sinks. `restored`: those of the last run, in order."""

    def __init__(self, restored: Iterable[PersistedEvent] = ()) -> None:
        self._restored: dict[str, list[tuple[bytes, bytes]]] = {}
        for sink, head, body in restored:
            self._restored.setdefault(sink, []).append((head, body))
        self._stored: dict[int, PersistedEvent] = {}
        self._last_number = 0
        self._passed_to = 0
        """The last number of which `changed` has ever passed anything on."""
        self._added_after = 0
        """The next `changed` passes on the events with a higher number, and the removals `_removed`."""
        self._removed: list[int] = []

    def pop_restored(self, sink: str, heads: Decoder[T]) -> Iterator[tuple[T, bytes]]:
        """Yield head and body of the events that a sink had in the last run, in order. It adds them again."""
        for head, body in self._restored.pop(sink, ()):
            try:
                yield heads.decode(head), body
            except (MsgspecError, UnicodeDecodeError):
                log.warning("an event of %s in the checkpoint cannot be read, and is not sent", sink)

    def add(self, sink: str, head: object, body: bytes = b"") -> int:
        """Return the number of a new event. `head`: what its sink has to know beside the body, to send it again.

        A head with a text that has no encoding (a lone surrogate) does not survive a restart.
        """
        self._last_number += 1
        with contextlib.suppress(ValueError):
            self._stored[self._last_number] = sink, encode(head), body
        return self._last_number

    def remove(self, number: int) -> None:
        """The event is not pending any more."""
        if self._stored.pop(number, None) is not None and number <= self._passed_to:
            self._removed.append(number)

    def changed(self) -> dict[int, PersistedEvent | None]:
        """Return what was added since the last call, by number; None: it was removed. The next call has later changes.

        The event of a number does not change during this run.
        """
        numbers = range(self._added_after + 1, self._last_number + 1) if self._added_after else self._stored
        added = {number: self._stored[number] for number in numbers if number in self._stored}
        removed, self._removed = dict.fromkeys(self._removed), []
        self._passed_to = self._added_after = self._last_number
        return {**removed, **added}

    def mark_all(self) -> None:
        """Return every event with the next `changed`: it is the first write of a store."""
        self._added_after = 0


class PendingEvents(Generic[T]):
    """The events for one receiver, in order. Use it from one event loop only.

    `max_events`, `max_bytes`: a subclass drops some above either bound. `overhead`: bytes of an event besides its body.
    """

    def __init__(self, event_log: EventLog, *, max_events: int, max_bytes: int, overhead: int) -> None:
        self._event_log = event_log
        self._max_events, self._max_bytes, self._overhead = max_events, max_bytes, overhead
        self._entries: dict[int, tuple[T, int, float]] = {}
        """Each event by its number, with its bytes, and when it was added. Numbers ascend."""
        self._first = 0
        """No event has a lower number. A dict would find its first one by a step for each that was removed."""
        self.size = 0
        """Bytes of all events."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def __getitem__(self, number: int) -> T:
        return self._entries[number][0]

    def __iter__(self) -> Iterator[int]:
        """The numbers of all events."""
        return iter(self._entries)

    def oldest(self) -> float | None:
        """Return the time at which the oldest event was added. None if there is none."""
        return self._entries[self._first_number()][2] if self._entries else None

    @property
    def is_full(self) -> bool:
        """True above a bound."""
        return len(self._entries) > self._max_events or self.size > self._max_bytes

    def _append(self, number: int, event: T, body: bytes, since: float) -> None:
        size = len(body) + self._overhead
        if not self._entries:
            self._first = number
        self._entries[number] = event, size, since
        self.size += size

    def _first_number(self) -> int:
        """Return the number of the oldest event. There must be one."""
        while self._first not in self._entries:
            self._first += 1
        return self._first

    def _forget(self, number: int) -> None:
        self.size -= self._entries.pop(number)[1]
        self._event_log.remove(number)
