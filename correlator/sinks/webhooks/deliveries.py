"""The events that one receiver has not acknowledged: which is sent next, when it is tried again, when it is given up.

Problem. A receiver may be slow, limited, away for hours, or refuse one event and accept the others. Every event must
arrive at least once, those of one job in order, and a receiver that is away must not be flooded.

Model. Each job has a queue of its own, of which at most one event is in flight: a later event of a job never overtakes
an earlier one, and an event that is refused delays no other job. After a failed attempt the event waits with backoff.
If the receiver itself failed (no response, 5xx, 429 and the like), it is paused with backoff as well, and then gets one
request at a time until one succeeds. A pause that the receiver itself asked for (Retry-After) is kept whatever happens:
requests that were in flight with the refused one may still succeed.

Invariants. An event leaves only when it is acknowledged, given up or dropped; the caller counts the last two. The
events are bounded in number and bytes; above either bound the oldest that is not in flight is dropped. An event is
given up only by a failed attempt, at least `give_up_after` after it was added. Nothing here reads a clock or does I/O:
times are arguments, in seconds, and must not decrease.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from itertools import takewhile

from msgspec import Struct
from msgspec.msgpack import Decoder

from correlator.model.published import Event
from correlator.sinks.event_log import EventLog, PendingEvents
from correlator.sinks.receiver import Response, Verdict
from correlator.tasks import Backoff


class WebhookTimings(Struct, frozen=True):
    """All of them, in seconds, but for the factor."""

    retry_base: float = 2.0
    retry_factor: float = 2.0
    retry_cap: float = 300.0
    """The limit of the first delay after a failure, its growth, and its maximum. See `correlator.tasks`."""

    max_retry_after: float = 3_600.0
    """The longest Retry-After of a receiver that is respected."""

    give_up_after: float = 24 * 3_600.0
    """For which an event is tried again."""

    after_start: float = 3_600.0
    """For which, at least, a new run tries an event of the last one again."""

    late_after: float = 60.0
    on_time_below: float = 30.0
    """A receiver that accepts events is too slow once one has waited for the first, until none has for the second."""

    goodbye_within: float = 3.0
    """That requests in flight have to end when the daemon stops. Those that do not are sent again."""


DEFAULT = WebhookTimings()


MAX_EVENTS = 10_000
MAX_BYTES = 24 * 1024 * 1024
"""Maximum number of events that wait for a receiver, and of the bytes that they take."""


OVERHEAD = 1_150
"""Bytes that an event takes besides its body."""


MAX_IN_FLIGHT = 4
"""Maximum number of requests to one receiver at a time."""


class Delivery(Struct, frozen=True):
    """An event to send. `number` orders events; `added_at`: seconds of the clock that all times here are of."""

    number: int
    job_id: str
    message_id: str
    body: bytes
    added_at: float


class Deliveries(PendingEvents[Delivery]):
    """The events for one receiver. Use it from one event loop only. `uniform` returns numbers in [0, 1)."""

    def __init__(
        self,
        event_log: EventLog,
        timings: WebhookTimings = DEFAULT,
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(event_log, max_events=max_events, max_bytes=max_bytes, overhead=OVERHEAD)
        self._timings = timings
        self._uniform = uniform
        self._queues: dict[str, _JobQueue] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()
        """The jobs whose first event may be sent now."""
        self._resting: list[tuple[float, int, str]] = []
        """A heap of jobs whose first event failed: when it may be sent again, its number, the job."""
        self._in_flight: set[int] = set()
        self._backoff = Backoff(timings.retry_base, timings.retry_factor, timings.retry_cap, uniform=uniform)
        self._paused_until = 0.0
        """Backoff. A success ends it."""
        self._asked_until = 0.0
        """When the longest pause ends that the receiver asked for."""
        self._is_away = False

    def add(self, delivery: Delivery) -> list[int]:
        """Append an event. Returns the numbers of the events that were dropped to make room."""
        self._append(delivery.number, delivery, delivery.body, delivery.added_at)
        self._enqueue(delivery)
        return self._shrink()

    def pop_next(self, now: float) -> Delivery | None:
        """Return the next event to send, which is in flight from now on. None if nothing may be sent at `now`."""
        while self._resting and self._resting[0][0] <= now:
            _, number, job_id = heapq.heappop(self._resting)
            queue = self._queues.get(job_id)
            if queue is not None and queue.waiting[0].number == number:
                self._ready[job_id] = None
        if now < max(self._paused_until, self._asked_until) or len(self._in_flight) >= (
            1 if self._is_away else MAX_IN_FLIGHT
        ):
            return None
        while self._ready:
            queue = self._queues.get(self._ready.popitem(last=False)[0])
            if queue is not None:
                delivery = queue.waiting[0]
                self._in_flight.add(delivery.number)
                return delivery
        return None

    def due(self, now: float) -> float | None:
        """Return the time at which `pop_next` may return an event. None: only after `add` or the end of an attempt."""
        if len(self._in_flight) >= (1 if self._is_away else MAX_IN_FLIGHT):
            return None
        paused_until = max(self._paused_until, self._asked_until)
        if self._ready:
            return max(now, paused_until)
        return max(self._resting[0][0], paused_until) if self._resting else None

    def delivered(self, delivery: Delivery) -> None:
        """The receiver has acknowledged the event."""
        self._backoff.reset()
        self._is_away, self._paused_until = False, 0.0
        self._remove(delivery)

    def failed(self, delivery: Delivery, now: float, *, away: bool, retry_after: float = 0.0) -> list[int]:
        """Try the event again later. `away`: the receiver failed. Returns the numbers of the events given up.

        `retry_after`: the seconds that the receiver asked to wait.
        """
        if delivery.number not in self:
            return []
        wait = min(max(0.0, retry_after), self._timings.max_retry_after)
        self._in_flight.discard(delivery.number)
        if away:
            self._is_away = True
            self._paused_until = max(self._paused_until, now + self._backoff.next())
            self._asked_until = max(self._asked_until, now + wait)
        queue = self._queues[delivery.job_id]
        timings = self._timings
        limit = min(timings.retry_cap, timings.retry_base * timings.retry_factor ** min(queue.failures, 16))
        queue.failures += 1
        retry_at = now + max(self._uniform() * limit, wait)
        heapq.heappush(self._resting, (retry_at, delivery.number, delivery.job_id))
        tried = map(self.__getitem__, self) if away else iter((delivery,))
        old = takewhile(lambda one: now - one.added_at >= timings.give_up_after, tried)
        expired = [one for one in old if one.number not in self._in_flight]
        for one in expired:
            self._remove(one)
        return [one.number for one in expired]

    def clear(self) -> list[int]:
        """Drop all events: the receiver is gone. Returns their numbers."""
        dropped = [*self]
        for number in dropped:
            self._forget(number)
        self.restart()
        return dropped

    def restart(self) -> None:
        """Nothing is in flight, and nothing waits for a retry: send all events again, in the old order."""
        for waiting in (self._queues, self._ready, self._resting, self._in_flight):
            waiting.clear()
        self._backoff.reset()
        self._is_away, self._paused_until, self._asked_until = False, 0.0, 0.0
        for number in self:
            self._enqueue(self[number])

    def _enqueue(self, delivery: Delivery) -> None:
        queue = self._queues.get(delivery.job_id)
        if queue is None:
            self._queues[delivery.job_id] = _JobQueue([delivery])
            self._ready[delivery.job_id] = None
        else:
            queue.waiting.append(delivery)

    def _shrink(self) -> list[int]:
        dropped: list[int] = []
        while self.is_full:
            oldest = next((number for number in self if number not in self._in_flight), None)
            if oldest is None:
                break
            self._remove(self[oldest])
            dropped.append(oldest)
        return dropped

    def _remove(self, delivery: Delivery) -> None:
        if delivery.number not in self:
            return
        self._forget(delivery.number)
        self._in_flight.discard(delivery.number)
        queue = self._queues[delivery.job_id]
        was_first = queue.waiting[0] is delivery
        queue.waiting.remove(delivery)
        if not queue.waiting:
            del self._queues[delivery.job_id]
        elif was_first:
            queue.failures = 0
            self._ready[delivery.job_id] = None


class _JobQueue(Struct):
    """The events of one job. `failures`: failed attempts of the first one.

    A job is in one place at a time: its first event may be sent (`_ready`), is in flight, or waits (`_resting`).
    """

    waiting: list[Delivery]
    failures: int = 0


_VERDICTS = {**dict.fromkeys((400, 409, 413, 415, 422), Verdict.REFUSED), HTTPStatus.GONE: Verdict.GONE}


def judge(response: Response) -> Verdict:
    """Judge a response. See Standard Webhooks, "Delivery success and failure"."""
    return response.verdict(_VERDICTS, Verdict.AWAY)


# -- what the checkpoint keeps


class StoredDelivery(Struct, frozen=True, tag="delivery"):
    """The head of an event with a body, for one webhook. `at`: Unix seconds at which it was added."""

    webhook: str
    job_id: str
    message_id: str
    at: float


class StoredEvent(Struct, frozen=True, tag="arrival"):
    """The head of an event whose body has not been made: it is sent to every webhook that wants it."""

    event: Event
    at: float


StoredHead = StoredDelivery | StoredEvent
STORED_HEADS: Decoder[StoredHead] = Decoder(StoredHead)
