"""The events that wait for a receiver: order, bounds, age, bytes and what the next run gets, in the queue of each sink.

Which events a bound drops first, and when an event is tried again, is in the tests of each queue.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import encode

from correlator.sinks import webhooks
from correlator.sinks.cluster import events as cluster
from correlator.sinks.cluster.events import EventQueue, StreamEvent
from correlator.sinks.event_log import EventLog
from correlator.sinks.mqtt import outbox as mqtt
from correlator.sinks.mqtt.outbox import MqttEvent, MqttEvents
from correlator.sinks.webhooks import Deliveries, Delivery, StoredDelivery
from tests.support.saved_index import kept

STEP, START, END = b"step.started", b"job.started", b"job.completed"


class Event(NamedTuple):
    """An event of a queue. `size`: the bytes that it counts. `at`: when it was added."""

    job_id: str
    kind: bytes
    size: int
    at: float


Events = dict[int, Event]


class Queue:
    """The queue of a sink for a test, whose events have numbers. `pop`: numbers that are in flight from then on."""

    overhead: ClassVar[int]
    restores: ClassVar[bool] = True
    """It has the events of the last run. Those of webhooks are given back by their sink."""
    drops_in_flight: ClassVar[bool] = False
    pending: Any

    def __init__(self, event_log: EventLog, **bounds: int) -> None:
        self.now, self.event_log = 0.0, event_log
        self.in_flight: dict[int, Any] = {}
        self.begin(bounds)

    def begin(self, bounds: dict[str, Any]) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        """What is in flight is to be sent again."""
        self.pending.restart()

    def numbers(self) -> list[int]:
        """The numbers of all events, as their bodies have them."""
        return sorted(number(body) for _, _, body in kept(self.event_log).values())

    def goes(self, dropped: int, waiting: Events, ended: set[str]) -> bool:
        """Whether it is this event that a bound drops. `ended`: the jobs whose end waits, or did with other events."""
        del ended
        return dropped == min(waiting)


def text(number: int, kind: bytes, size: int) -> bytes:
    return b'{"event_id":%d,"error":"%b","kind":"%b","epoch":"e"}' % (number, b"x" * size, kind)


def number(body: bytes) -> int:
    return int(body.split(b":")[1].split(b",")[0])


class MqttQueue(Queue):
    overhead = mqtt.OVERHEAD

    def begin(self, bounds: dict[str, Any]) -> None:
        self.pending = MqttEvents(self.event_log, lambda: self.now, **bounds)

    def add(self, number: int, job_id: str, body: bytes) -> int:
        return int(self.pending.add(MqttEvent(job_id, body)))

    def pop(self) -> list[int]:
        tag, event = self.pending.pop_next() or (0, None)
        self.in_flight |= {number(event.payload): tag} if event else {}
        return [number(event.payload)] if event else []

    def acknowledged(self, number: int) -> None:
        self.pending.acknowledged(self.in_flight[number])

    def goes(self, dropped: int, waiting: Events, ended: set[str]) -> bool:
        """Steps of running jobs go first, then those of ended jobs, then events of jobs: the oldest of a job."""
        ranks = {n: 2 if e.kind != STEP else int(e.job_id in ended) for n, e in waiting.items()}
        of_job = [n for n, e in waiting.items() if (e.job_id, ranks[n]) == (waiting[dropped].job_id, ranks[dropped])]
        return (ranks[dropped], dropped) == (min(ranks.values()), min(of_job))


class ClusterQueue(Queue):
    overhead, drops_in_flight = cluster.OVERHEAD, True

    def begin(self, bounds: dict[str, Any]) -> None:
        self.batch: list[int] = []
        self.pending = EventQueue(self.event_log, lambda: self.now, **bounds)

    def add(self, number: int, job_id: str, body: bytes) -> int:
        return int(self.pending.add(StreamEvent(job_id, f"dc1:job.stalled:{job_id}::{10**15 + number}", body)))

    def pop(self) -> list[int]:
        if self.batch:
            return []
        self.batch = [number(event.payload) for event in self.pending.batch(2, 500)]
        return [*self.batch]

    def acknowledged(self, number: int) -> None:
        self.batch.clear()
        self.pending.acknowledged()

    def lost(self) -> None:
        self.batch.clear()
        self.pending.unacknowledged()


class WebhookQueue(Queue):
    overhead, restores = webhooks.OVERHEAD, False

    def begin(self, bounds: dict[str, Any]) -> None:
        self.pending = Deliveries(self.event_log, **bounds)

    def add(self, number: int, job_id: str, body: bytes) -> int:
        name = f"evt_{number:032}"
        key = self.event_log.add("webhooks", StoredDelivery("receiver", job_id, name, 0.5 + number), body)
        return len(self.pending.add(Delivery(key, job_id, name, body, self.now)))

    def pop(self) -> list[int]:
        if (one := self.pending.pop_next(self.now)) is None:
            return []
        self.in_flight[number(one.body)] = one
        return [number(one.body)]

    def acknowledged(self, number: int) -> None:
        self.pending.delivered(self.in_flight[number])


QUEUES: dict[str, Any] = {"mqtt": MqttQueue, "cluster": ClusterQueue, "webhook": WebhookQueue}


def drained(queue: Any) -> Iterator[int]:
    """All events, as they are sent by a sink whose receiver takes each at once."""
    while popped := queue.pop():
        yield from popped
        queue.acknowledged(popped[0])


@pytest.mark.parametrize("kind", QUEUES.values(), ids=QUEUES)
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_events_of_a_job_keep_their_order_and_none_goes_but_by_an_acknowledgement_or_a_bound(kind, data):
    most, most_bytes = data.draw(st.sampled_from([(4, 1 << 20), (1 << 20, 4 * kind.overhead + 900)]))
    queue = kind(EventLog(), max_events=most, max_bytes=most_bytes)
    events: Events = {}
    flying: list[int] = []
    ended: set[str] = set()

    def is_full() -> bool:
        return len(events) > int(most) or sum(e.size for e in events.values()) > int(most_bytes)

    for n in range(1, data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["add", "add", "add", "pop", "acknowledge", "lose"])):
            case "add":
                job_id, name = data.draw(st.sampled_from("abc")), data.draw(st.sampled_from([START, STEP, STEP, END]))
                body, queue.now = text(n, name, data.draw(st.sampled_from([0, 100, 700]))), float(n)
                dropped = queue.add(n, job_id, body)
                events[n] = Event(job_id, name, kind.overhead + len(body), queue.now)
                ended |= {job_id} if name == END else set()
                gone = sorted(events.keys() - {*queue.numbers()})
                assert len(gone) == dropped
                for one in gone:
                    if dropped == 1 or kind is not MqttQueue:  # In which order several of its events went is not seen.
                        assert is_full()
                        waiting = {m: e for m, e in events.items() if kind.drops_in_flight or m not in flying}
                        assert queue.goes(one, waiting, ended)
                    del events[one]
                flying = [m for m in flying if m in events]
                assert not is_full() or {*events} <= {*flying}, "only what is in flight may go beyond a bound"
            case "pop":
                for m in queue.pop():
                    older = [o for o, e in events.items() if o < m and e.job_id == events[m].job_id and o not in flying]
                    assert (m in flying, older) == (False, []), "the first of its job"
                    flying.append(m)
            case "acknowledge" if flying:
                done = [*flying] if kind is ClusterQueue else [data.draw(st.sampled_from(flying))]
                queue.acknowledged(done[0])
                events = {m: e for m, e in events.items() if m not in done}
                flying = [m for m in flying if m not in done]
            case "lose":
                queue.lost()
                ended |= {events[m].job_id for m in flying if events[m].kind == END}
                flying = []
        ended &= {e.job_id for m, e in events.items() if m not in flying}
        assert queue.numbers() == [*events]
        assert (len(queue.pending), queue.pending.size) == (len(events), sum(e.size for e in events.values()))
        assert queue.pending.oldest() == min((e.at for e in events.values()), default=None)
    queue.lost()
    if kind.restores:
        queue = kind(EventLog(kept(queue.event_log).values()))
    arrived = [*drained(queue)]
    for job_id in "abc":
        assert [m for m in arrived if events[m].job_id == job_id] == [m for m in events if events[m].job_id == job_id]
    assert (len(arrived), len(queue.pending), queue.pending.size, queue.numbers()) == (len(events), 0, 0, [])


COUNT = 5_600
"""Tables of hashes have grown a moment ago, and are two thirds empty."""


@pytest.mark.parametrize("kind", QUEUES.values(), ids=QUEUES)
def test_pending_events_take_no_more_bytes_than_are_counted(kind):
    tracemalloc.start()
    try:
        queue = kind(EventLog())
        for n in range(1, COUNT + 1):
            queue.add(n, f"{n:064}", text(n, STEP, 0))
        assert len(queue.pending) == COUNT
        assert tracemalloc.get_traced_memory()[0] <= queue.pending.size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head", [b"", b"\xc1", b"\xa1\xff", encode(["j"]), encode(5)])
def test_an_event_that_cannot_be_read_again_is_left_out(caplog, head):
    event_log = EventLog([("mqtt", head, b"1"), ("cluster", head, b""), ("mqtt", encode("b"), b"3")])
    events, others = MqttEvents(event_log, lambda: 0.0), EventQueue(event_log, lambda: 0.0)
    assert ([events[number] for number in events], len(others)) == ([MqttEvent("b", b"3")], 0)
    assert len(caplog.messages) == 2


def test_a_text_that_has_no_encoding_does_not_survive_a_restart():
    event_log = EventLog()
    assert [event_log.add("mqtt", "\ud800"), event_log.add("mqtt", "j", b"2")] == [1, 2]
    assert kept(event_log) == {2: ("mqtt", encode("j"), b"2")}
