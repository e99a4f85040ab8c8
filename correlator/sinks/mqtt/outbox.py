"""What the broker lacks: topics whose newest message it has not acknowledged (`Outbox`), and events (`PendingEvents`).

The two differ in what may be lost. A topic holds state: only the newest message counts, so the outbox stores keys and
no payloads, and memory does not grow with the number of changes. An event is a fact: each is stored with its payload,
in the order of its job, until the broker has acknowledged it, up to `MAX_EVENTS` and `MAX_BYTES`.

A broker may be too slow for all of them, for hours. Then what is late is chosen: a state that has waited for
`STATES_WITHIN` goes before events, an event of a job that has ended before one of a job that runs, and each of them
still has every eighth turn. What does not fit is chosen as well: events of steps of running jobs are dropped first.

Invariants: a topic is clean only after the broker has acknowledged a message that was built after the last `mark`; of
one topic at most one message is in flight, so an older version never overtakes a newer one. Nothing here reads a clock
or does I/O: times are arguments.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct

from correlator.jobs.model.facts import Kind
from correlator.sinks.mqtt.topics import SPACING, Key

MAX_EVENTS = 50_000
MAX_BYTES = 64 * 1024 * 1024
"""Maximum number of events that wait for the broker, and of the bytes that they take. Above it some are dropped."""

OVERHEAD = 500
"""Bytes that an event takes besides its payload."""

STATES_WITHIN = 1.0
"""Seconds that a changed topic waits before it goes before everything else."""

TURNS = 8
"""Each eighth message is one of those that others go before."""


def no_clock() -> float:
    """The clock where nobody measures ages."""
    return 0.0


class PendingEvent(NamedTuple):
    """An event that the broker has not acknowledged. The next run of the daemon publishes it again."""

    job_id: str
    payload: bytes

    @property
    def kind(self) -> bytes:
        """The value of its member ``kind``. In no text of the JSON can these bytes occur: its quotes are escaped."""
        return self.payload.partition(b'"kind":"')[2].partition(b'"')[0]


class _InFlight(Struct):
    """A topic from `pop_next` until its message is acknowledged and its spacing has elapsed."""

    changed: bool
    """It was in the queue of changes."""
    acknowledged: bool = False
    spaced: bool = False
    marked: bool = False
    since: float = 0.0
    """Clock time of the first mark while in flight."""


class Outbox:
    """Topics to send, each once, at most one message of a topic in flight.

    Two queues are served alternately: a change does not wait behind thousands of topics that are published again, and
    changes that never end do not starve those. While changes are late, they have all turns but one of `TURNS`.
    `spacing`: minimum seconds between two messages of one topic. `clock`: returns seconds, as the argument of
    `pop_next`.
    """

    def __init__(self, spacing: float = SPACING, clock: Callable[[], float] = no_clock) -> None:
        self._spacing = spacing
        self._clock = clock
        self._since: dict[Key, float] = {}
        """Clock time since which each topic is not clean."""
        self._changed: OrderedDict[Key, None] = OrderedDict()
        self._republish: OrderedDict[Key, None] = OrderedDict()
        self._turn = 0
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
        self._turn = (self._turn + 1) % TURNS
        serve_changed = self._turn != 0 if self.is_late(now) else self._turn % 2 == 1
        queue = (self._changed or self._republish) if serve_changed else (self._republish or self._changed)
        if not queue:
            return None
        key = queue.popitem(last=False)[0]
        self._in_flight[key] = _InFlight(queue is self._changed)
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

    def is_late(self, now: float) -> bool:
        """Return True if the first of the changed topics has waited for `STATES_WITHIN`."""
        first = next(iter(self._changed), None)
        return first is not None and now - self._since[first] >= STATES_WITHIN

    def oldest_change(self) -> float | None:
        """As `oldest`, without topics that are published again."""
        first = next(iter(self._changed), None)
        keys = [key for key, in_flight in self._in_flight.items() if in_flight.changed]
        times = [self._since[key] for key in ([first, *keys] if first is not None else keys) if key in self._since]
        return min(times, default=None)

    def oldest(self) -> float | None:
        """Return the clock time since which the oldest pending topic is not clean. None if all are clean.

        A topic that is published again and has changed since counts from its place in the queue of changes.
        """
        firsts = (next(iter(queue), None) for queue in (self._changed, self._republish))
        keys = [*(key for key in firsts if key is not None), *self._in_flight]
        return min((self._since[key] for key in keys if key in self._since), default=None)

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


class _Link(Struct, gc=False):
    """The waiting events of the same job before and after a waiting one; 0 if there is none."""

    before: int
    after: int


class _Queue(Struct, gc=False):
    """The first and the last waiting event of a job. `ended`: one of them is its end, or was."""

    first: int
    last: int
    ended: bool = False


_ENDS = frozenset(kind.value.encode() for kind in Kind if kind.ends_job)


class PendingEvents:
    """Events, each stored until the broker has acknowledged it; those of one job in their order.

    Events of jobs that have ended are sent first, job by job in the order of the ends; then those of running jobs, the
    oldest first, which also have one of `TURNS` turns meanwhile. `bound`, `max_bytes`: see `MAX_EVENTS`; above either,
    events are dropped, the oldest first: of steps of running jobs, then of steps of other jobs, then of jobs. `clock`:
    returns seconds; only `oldest` depends on it.
    """

    def __init__(
        self,
        restored: Iterable[PendingEvent] = (),
        bound: int = MAX_EVENTS,
        clock: Callable[[], float] = no_clock,
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock = clock
        self._bound, self._max_bytes = bound, max_bytes
        self._last_number = 0
        self._all: dict[int, PendingEvent] = {}
        """All pending events by number, in order. The checkpoint copies it every second."""
        self._since: dict[int, float] = {}
        self._in_flight: dict[int, None] = {}
        self._links: dict[int, _Link] = {}
        """The events that wait: they are pending and not in flight."""
        self._queues: dict[str, _Queue] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        """The jobs whose queue has ended, in this order."""
        self._running: deque[int] = deque()
        """The events that were added while their job ran, in order; also some that wait no more, or whose job ended."""
        self._steps: deque[int] = deque()
        """The events of steps, in order; also some that wait no more."""
        self._ended_steps: deque[int] = deque()
        """Those that were passed over in `_steps`, as their job had ended."""
        self._turn = 0
        self.size = 0
        """Bytes of all events."""
        for event in restored:
            self.add(event)

    def add(self, event: PendingEvent) -> int:
        """Append an event. Returns the number of events that were dropped to make room."""
        self._last_number += 1
        self._all[self._last_number] = event
        self._since[self._last_number] = self._clock()
        self.size += len(event.payload) + OVERHEAD
        self._enqueue(self._last_number)
        dropped = 0
        while (len(self._links) > self._bound or self.size > self._max_bytes) and self._links:
            self._drop()
            dropped += 1
        return dropped

    def pop_next(self) -> tuple[int, PendingEvent] | None:
        """Dequeue the next event, with the number that `acknowledged` takes. None if no event waits."""
        self._turn = (self._turn + 1) % TURNS
        if self._turn != 0:
            number = self._first_ended() or self._first_running()
        else:
            number = self._first_running() or self._first_ended()
        if number is None:
            return None
        self._unlink(number)
        self._in_flight[number] = None
        return number, self._all[number]

    def acknowledged(self, number: int) -> None:
        """The broker has the event: forget it."""
        del self._in_flight[number]
        self._forget(number)

    def restart(self) -> None:
        """Start a new connection: events that were sent and not acknowledged are sent again, in the old order."""
        for number in sorted(self._in_flight, reverse=True):
            self._enqueue(number, again=True)
        self._in_flight.clear()

    def oldest(self) -> float | None:
        """Return the clock time at which the oldest pending event was added. None if there is none."""
        return next(iter(self._since.values()), None)

    def __len__(self) -> int:
        return len(self._all)

    def numbered(self) -> dict[int, tuple[str, bytes]]:
        """Return all pending events in order, by a number that does not change during this run."""
        return {**self._all}

    def _enqueue(self, number: int, *, again: bool = False) -> None:
        """Make an event the last one of its job; `again`: the first one, as it was sent before."""
        event = self._all[number]
        job_id, kind = event.job_id, event.kind
        queue = self._queues.get(job_id)
        if queue is None:
            self._links[number] = _Link(0, 0)
            queue = self._queues[job_id] = _Queue(number, number)
        elif again:
            self._links[number] = _Link(0, queue.first)
            self._links[queue.first].before = number
            queue.first = number
        else:
            self._links[number] = _Link(queue.last, 0)
            self._links[queue.last].after = number
            queue.last = number
        if kind in _ENDS and not queue.ended:
            queue.ended = True
            self._ended[job_id] = None
        if not queue.ended:
            _append(self._running, number, again=again)
        if kind.startswith(b"step."):
            _append(self._ended_steps if again and queue.ended else self._steps, number, again=again)
        self._compact()

    def _unlink(self, number: int) -> None:
        link = self._links.pop(number)
        job_id = self._all[number].job_id
        queue = self._queues[job_id]
        if link.before:
            self._links[link.before].after = link.after
        else:
            queue.first = link.after
        if link.after:
            self._links[link.after].before = link.before
        else:
            queue.last = link.before
        if not queue.first:
            del self._queues[job_id]
            self._ended.pop(job_id, None)

    def _forget(self, number: int) -> None:
        self.size -= len(self._all.pop(number).payload) + OVERHEAD
        del self._since[number]

    def _first_ended(self) -> int | None:
        job_id = next(iter(self._ended), None)
        return self._queues[job_id].first if job_id is not None else None

    def _first_running(self) -> int | None:
        while self._running and not self._runs(self._running[0]):
            self._running.popleft()
        return self._running[0] if self._running else None

    def _runs(self, number: int) -> bool:
        """Return True if the event waits, and its job has not ended."""
        return number in self._links and not self._queues[self._all[number].job_id].ended

    def _drop(self) -> None:
        number = self._step_of_running() or self._step_of_ended() or next(n for n in self._all if n in self._links)
        self._unlink(number)
        self._forget(number)

    def _step_of_running(self) -> int | None:
        while self._steps:
            number = self._steps.popleft()
            if self._runs(number):
                return number
            if number in self._links:
                self._ended_steps.append(number)
        return None

    def _step_of_ended(self) -> int | None:
        while self._ended_steps:
            if (number := self._ended_steps.popleft()) in self._links:
                return number
        return None

    def _compact(self) -> None:
        """Remove from the queues what waits no more, once that is the larger part."""
        for numbers in (self._running, self._steps, self._ended_steps):
            if len(numbers) > 2 * len(self._links) + 1000:
                waiting = [number for number in numbers if number in self._links]
                numbers.clear()
                numbers.extend(waiting)


def _append(numbers: deque[int], number: int, *, again: bool) -> None:
    if again:
        numbers.appendleft(number)
    else:
        numbers.append(number)
