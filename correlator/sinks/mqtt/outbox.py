"""What the broker lacks: topics whose newest message it has not acknowledged (`Outbox`), and events (`PendingEvents`).

The two differ in what may be lost. A topic holds state: only the newest message counts, so the outbox stores keys and
no payloads, and memory does not grow with the number of changes. An event is a fact: each is stored with its payload,
in order, until the broker has acknowledged it, up to `MAX_EVENTS`.

Invariants: a topic is clean only after the broker has acknowledged a message that was built after the last `mark`; of
one topic at most one message is in flight, so an older version never overtakes a newer one. Nothing here reads a clock
or does I/O: times are arguments.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct

from correlator.sinks.mqtt.topics import SPACING, Key

MAX_EVENTS = 50_000
"""Maximum number of events that wait for the broker. Above it the oldest are dropped."""


def no_clock() -> float:
    """The clock where nobody measures ages."""
    return 0.0


class PendingEvent(NamedTuple):
    """An event that the broker has not acknowledged. The next run of the daemon publishes it again."""

    job_id: str
    payload: bytes


class _InFlight(Struct):
    """A topic from `pop_next` until its message is acknowledged and its spacing has elapsed."""

    acknowledged: bool = False
    spaced: bool = False
    marked: bool = False
    since: float = 0.0
    """Clock time of the first mark while in flight."""


class Outbox:
    """Topics to send, each once, at most one message of a topic in flight.

    Two queues are served alternately: a change does not wait behind thousands of topics that are published again, and
    changes that never end do not starve those. `spacing`: minimum seconds between two messages of one topic. `clock`:
    returns seconds; only `oldest` depends on it.
    """

    def __init__(self, spacing: float = SPACING, clock: Callable[[], float] = no_clock) -> None:
        self._spacing = spacing
        self._clock = clock
        self._since: dict[Key, float] = {}
        """Clock time since which each topic is not clean."""
        self._changed: OrderedDict[Key, None] = OrderedDict()
        self._republish: OrderedDict[Key, None] = OrderedDict()
        self._serve_changed = False
        self._in_flight: dict[Key, _InFlight] = {}
        self._spacings: deque[tuple[float, Key]] = deque()

    def mark(self, key: Key) -> None:
        """The content of the topic has changed: send it again."""
        self._since.setdefault(key, self._clock())
        if (in_flight := self._in_flight.get(key)) is not None:
            in_flight.since = in_flight.since if in_flight.marked else self._clock()
            in_flight.marked = True
        else:
            self._republish.pop(key, None)
            self._changed[key] = None

    def restart(self) -> None:
        """Start a new connection: nothing is in flight, and nothing is pending until `add`."""
        self._in_flight.clear()
        self._spacings.clear()
        self._changed.clear()
        self._republish.clear()
        self._since.clear()

    def add(self, keys: Iterable[Key]) -> None:
        """Add `keys` to the topics that are published again, except those that are pending already."""
        now = self._clock()
        for key in keys:
            if key not in self._since:
                self._republish[key] = None
                self._since[key] = now

    def pop_next(self, now: float) -> Key | None:
        """Dequeue the next topic that may be sent at `now` (seconds, must not decrease). None if there is none."""
        while self._spacings and self._spacings[0][0] <= now:
            key = self._spacings.popleft()[1]
            self._in_flight[key].spaced = True
            self._release(key)
        self._serve_changed = not self._serve_changed
        queue = (self._changed or self._republish) if self._serve_changed else (self._republish or self._changed)
        if not queue:
            return None
        key = queue.popitem(last=False)[0]
        self._in_flight[key] = _InFlight()
        self._spacings.append((now + self._spacing, key))
        return key

    def acknowledged(self, key: Key) -> bool:
        """Record the acknowledgement. Returns True if the topic was not marked while the message was in flight."""
        in_flight = self._in_flight[key]
        in_flight.acknowledged = True
        if in_flight.marked:
            self._since[key] = in_flight.since
        else:
            self._since.pop(key, None)
        self._release(key)
        return not in_flight.marked

    def due(self) -> float | None:
        """Return the time at which the next spacing elapses, or None: until then only `mark` makes a topic ready."""
        return self._spacings[0][0] if self._spacings else None

    def oldest(self) -> float | None:
        """Return the clock time since which the oldest pending topic is not clean. None if all are clean."""
        return min(self._since.values(), default=None)

    @property
    def pending(self) -> int:
        """Number of topics that are not clean."""
        return len(self._since)

    def _release(self, key: Key) -> None:
        in_flight = self._in_flight[key]
        if in_flight.acknowledged and in_flight.spaced:
            del self._in_flight[key]
            if in_flight.marked:
                self._changed[key] = None


class PendingEvents:
    """Events in order, each stored until the broker has acknowledged it.

    `bound`: maximum number of events that wait; above it the oldest are dropped. `clock`: returns seconds; only
    `oldest` depends on it.
    """

    def __init__(
        self, restored: Iterable[PendingEvent] = (), bound: int = MAX_EVENTS, clock: Callable[[], float] = no_clock
    ) -> None:
        self._clock = clock
        self._bound = bound
        self._last_number = 0
        self._all: dict[int, PendingEvent] = {}
        """All pending events by number, in order. The checkpoint copies it every second."""
        self._since: dict[int, float] = {}
        self._waiting: deque[int] = deque()
        """The numbers of the events that are not in flight."""
        for event in restored:
            self.add(event)

    def add(self, event: PendingEvent) -> int:
        """Append an event. Returns the number of older events that were dropped to make room."""
        self._last_number += 1
        self._all[self._last_number] = event
        self._since[self._last_number] = self._clock()
        self._waiting.append(self._last_number)
        if len(self._waiting) <= self._bound:
            return 0
        self.acknowledged(self._waiting.popleft())
        return 1

    def pop_next(self) -> tuple[int, PendingEvent] | None:
        """Dequeue the next event, with the number that `acknowledged` takes. None if no event waits."""
        if not self._waiting:
            return None
        number = self._waiting.popleft()
        return number, self._all[number]

    def acknowledged(self, number: int) -> None:
        """The broker has the event: forget it."""
        del self._all[number], self._since[number]

    def restart(self) -> None:
        """Start a new connection: events that were sent and not acknowledged are sent again, in the old order."""
        self._waiting = deque(self._all)

    def oldest(self) -> float | None:
        """Return the clock time at which the oldest pending event was added. None if there is none."""
        return next(iter(self._since.values()), None)

    def __len__(self) -> int:
        return len(self._all)

    def numbered(self) -> dict[int, tuple[str, bytes]]:
        """Return all pending events in order, by a number that does not change during this run."""
        return {**self._all}
