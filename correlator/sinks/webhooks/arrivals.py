"""Events between the hub and the queues of the receivers: noted synchronously, turned into bodies one at a time.

Making a body takes longer than the hub may be delayed, so a batch only notes its events with the jobs as they are then.
An event of a job that is not published yet, because its tables have not been read, waits for the job, and so do the
later events of this job; after `PUBLISHED_WITHIN` they are sent without a document, but not while the daemon loads.
Nothing here does I/O or reads a clock: times are arguments, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from msgspec import Struct

from correlator.jobs.model.changes import Event
from correlator.jobs.model.views import PublishedJob

MAX_ARRIVALS = 20_000
"""Maximum number of events. Above it the oldest are dropped."""

MAX_WEIGHT = 200_000
"""Maximum number of steps of the noted jobs in sum. Above it an event is sent with its job as it is at its turn."""

PUBLISHED_WITHIN = 5.0
"""Seconds for which an event waits for its job to be published."""


class Arrival(Struct, frozen=True):
    """An event. `at`: when it was noted. `shown`: its job at that time; None: as it is at its turn."""

    number: int
    event: Event
    at: float
    shown: PublishedJob | None = None


class Arrivals:
    """The noted events, in order per job. Use it from one event loop only."""

    def __init__(self) -> None:
        self._ready: deque[Arrival] = deque()
        self._held: OrderedDict[str, list[Arrival]] = OrderedDict()
        """The events of jobs that are not published yet, the job that waits longest first."""
        self._held_count = 0
        self._weight = 0

    def __len__(self) -> int:
        return len(self._ready) + self._held_count

    def __iter__(self) -> Iterator[Arrival]:
        yield from self._ready
        for held in self._held.values():
            yield from held

    def add(self, number: int, event: Event, at: float, shown: PublishedJob | None) -> list[Arrival]:
        """Note an event. `shown`: its job, None if it is not published. Returns the events dropped to make room."""
        held = self._held.get(event.job_id)
        if shown is None or held is not None:
            self._held.setdefault(event.job_id, []).append(Arrival(number, event, at))
            self._held_count += 1
        else:
            weight = len(shown.view.steps)
            fits = self._weight + weight <= MAX_WEIGHT
            self._weight += weight if fits else 0
            self._ready.append(Arrival(number, event, at, shown if fits else None))
        return self._shrink()

    def published(self, job_id: str) -> None:
        """The job is published now."""
        if (held := self._held.pop(job_id, None)) is not None:
            self._held_count -= len(held)
            self._ready.extend(held)

    def pop_next(self, now: float, *, loading: bool = False) -> Arrival | None:
        """Return the next event whose body can be made, or None. `loading`: jobs are still being published."""
        while not loading and (due := self.due()) is not None and due <= now:
            self.published(next(iter(self._held)))
        return self._pop_ready()

    def _pop_ready(self) -> Arrival | None:
        if not self._ready:
            return None
        arrival = self._ready.popleft()
        if arrival.shown is not None:
            self._weight -= len(arrival.shown.view.steps)
        return arrival

    def due(self) -> float | None:
        """Return the time at which the next held event stops to wait for its job, or None."""
        return next(iter(self._held.values()))[0].at + PUBLISHED_WITHIN if self._held else None

    def _shrink(self) -> list[Arrival]:
        dropped: list[Arrival] = []
        while len(self) > MAX_ARRIVALS:
            if not self._ready:
                self.published(next(iter(self._held)))
            if (oldest := self._pop_ready()) is not None:
                dropped.append(oldest)
        return dropped
