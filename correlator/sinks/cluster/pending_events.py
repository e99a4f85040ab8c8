"""The events that the stream may not have, each with its payload and its message ID, in order.

An event is a fact, so none is conflated: each is kept until the stream has acknowledged it, and the checkpoint holds
those that are pending. The stream drops a message whose ID it has seen in the last ten minutes
(`correlator.cluster.streams`), so an event that is sent again after a lost acknowledgement, or that is found again by
a successor, is stored once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import orjson

from correlator.cluster import keys
from correlator.jobs import job_document, sizes
from correlator.jobs.model.changes import Event

MAX_EVENTS = 50_000
MAX_BYTES = 64_000_000
"""Bounds of the pending events. Above them the oldest are dropped."""

OVERHEAD = 300
"""Bytes that a pending event takes besides its payload."""


class PendingEvent(NamedTuple):
    """An event that the stream has not acknowledged. The next holder of the lease sends it again."""

    job_id: str
    message_id: str
    payload: bytes


def to_checkpoint(event: PendingEvent) -> tuple[bytes, bytes]:
    """Return head and body, the form in which the checkpoint keeps an event."""
    return f"{keys.escape(event.job_id)} {event.message_id}".encode("ascii"), event.payload


def from_checkpoint(head: bytes, body: bytes) -> PendingEvent | None:
    """Return the event that became `head` and `body`. None if they cannot be read."""
    try:
        job, _, message_id = head.decode("ascii").partition(" ")
        return PendingEvent(keys.unescape(job), message_id, body) if message_id else None
    except ValueError:
        return None


def pending_event(event: Event, instance: str) -> PendingEvent:
    """Return the message of an event. Its ID is the same whichever process makes it, and how often."""
    payload = {"instance": instance, "kind": event.kind.value, **job_document.transition(event)}
    if event.event_id is not None:
        message_id = f"{instance}:{event.event_id}"
    else:
        step = "" if event.step_id is None else event.step_id
        message_id = f"{instance}:{event.kind.value}:{keys.escape(event.job_id)}:{step}:{event.at}"
    return PendingEvent(event.job_id, message_id, job_document.compact(job_document.encode(payload)))


def fitting(payload: bytes, limit: int) -> bytes:
    """Return an event in at most `limit` bytes: its error is cut, so that it does not stop those behind it."""
    if len(payload) <= limit:
        return payload
    try:
        found = dict(orjson.loads(payload))
    except (TypeError, ValueError):
        return b"{}"  # A checkpoint had it, and no collector wrote it.
    error = str(found.get("error") or "")
    room = limit - len(payload) + len(error)
    short, full = sizes.cut_text(error, max(0, room // 6))  # A character takes up to six bytes in JSON.
    found |= {"error": short, "error_cut": found.get("error_cut") or full}
    return job_document.compact(job_document.encode(found))


class PendingEvents:
    """The events in order. One batch of them is in flight at a time. Use it from one event loop only.

    `clock`: returns seconds; only `oldest` depends on it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        restored: Iterable[PendingEvent] = (),
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock = clock
        self._max_events, self._max_bytes = max_events, max_bytes
        self._last_number = 0
        self._waiting: deque[tuple[int, PendingEvent, float]] = deque()
        self._all: dict[int, tuple[bytes, bytes]] = {}
        """All pending events as the checkpoint keeps them, by number. It copies this every second."""
        self._size = 0
        self._in_flight = 0
        """The number of events at the front of `_waiting` that are in flight."""
        for event in restored:
            self.add(event)

    def add(self, event: PendingEvent) -> int:
        """Append an event. Returns the number of older events that were dropped to make room."""
        self._last_number += 1
        self._all[self._last_number] = to_checkpoint(event)
        self._waiting.append((self._last_number, event, self._clock()))
        self._size += len(event.payload) + OVERHEAD
        dropped = 0
        while len(self._all) > self._max_events or (self._size > self._max_bytes and len(self._all) > 1):
            self._drop_first()
            self._in_flight = max(0, self._in_flight - 1)
            dropped += 1
        return dropped

    def batch(self, most_events: int, most_bytes: int) -> list[PendingEvent]:
        """Return the first events, which are in flight from now on: at least one if there is any."""
        chosen: list[PendingEvent] = []
        size = 0
        for _, event, _ in islice(self._waiting, most_events):
            size += len(event.payload)
            if chosen and size > most_bytes:
                break
            chosen.append(event)
        self._in_flight = len(chosen)
        return chosen

    def acknowledged(self) -> None:
        """The stream has the events in flight: forget them."""
        for _ in range(self._in_flight):
            self._drop_first()
        self._in_flight = 0

    def unacknowledged(self) -> None:
        """The stream may not have the events in flight: the next `batch` begins with them."""
        self._in_flight = 0

    def oldest(self) -> float | None:
        """Return the clock time at which the oldest pending event was added. None if there is none."""
        return self._waiting[0][2] if self._waiting else None

    def __len__(self) -> int:
        return len(self._all)

    def numbered(self) -> Mapping[int, tuple[bytes, bytes]]:
        """Return all pending events for the checkpoint, by a number that does not change during this run."""
        return {**self._all}

    def _drop_first(self) -> None:
        number, event, _ = self._waiting.popleft()
        del self._all[number]
        self._size -= len(event.payload) + OVERHEAD
