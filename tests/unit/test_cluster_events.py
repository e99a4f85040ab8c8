"""Events that the stream may not have: order, bounds, and IDs that do not depend on the process that makes them."""

import orjson

from correlator.model.facts import Kind
from correlator.model.published import Event
from correlator.sinks.cluster.events import (
    OVERHEAD,
    EventQueue,
    StreamEvent,
    stream_event,
)
from correlator.sinks.event_log import EventLog

AT = 1_758_553_933_000_000


def event(n, size=0):
    return StreamEvent("j", f"dc1:{n}", b"x" * size)


def pending(*events, **bounds):
    """A queue of these events, given as such or as their numbers."""
    made = EventQueue(EventLog(), lambda: 0.0, **bounds)
    for one in events:
        made.add(event(one) if isinstance(one, int) else one)
    return made


def ids(events):
    return [one.message_id for one in events]


def kept(events):
    return ids(events[number] for number in events)


def test_events_are_sent_in_order_and_forgotten_once_acknowledged():
    events = pending(1, 2, 3)
    assert ids(events.batch(2, 1_000)) == ["dc1:1", "dc1:2"]
    events.acknowledged()
    assert ids(events.batch(2, 1_000)) == ["dc1:3"]
    assert len(events) == 1


def test_events_without_an_acknowledgement_are_sent_again_in_the_same_order():
    events = pending(1, 2)
    events.batch(1, 1_000)
    events.unacknowledged()
    events.add(event(3))
    assert ids(events.batch(9, 1_000)) == ["dc1:1", "dc1:2", "dc1:3"]


def test_an_event_that_arrives_in_flight_is_not_acknowledged_with_the_batch():
    events = pending(1)
    events.batch(9, 1_000)
    events.add(event(2))
    events.acknowledged()
    assert kept(events) == ["dc1:2"]


def test_a_batch_is_bounded_in_bytes_and_has_at_least_one_event():
    events = pending(event(1, 50), event(2, 60), event(3, 500))
    assert ids(events.batch(9, 100)) == ["dc1:1"]
    events.acknowledged()
    assert ids(events.batch(9, 110)) == ["dc1:2"]
    events.acknowledged()
    assert ids(events.batch(9, 100)) == ["dc1:3"]


def test_above_a_bound_the_oldest_events_are_dropped():
    events = pending(1, 2, max_events=2)
    assert events.add(event(3)) == 1
    assert kept(events) == ["dc1:2", "dc1:3"]
    events = pending(1, 2, max_bytes=2 * OVERHEAD + 10)
    assert events.add(event(3, 200)) == 2
    assert kept(events) == ["dc1:3"]


def test_an_event_that_is_dropped_in_flight_does_not_acknowledge_a_later_one():
    events = pending(1, 2, max_events=2)
    assert len(events.batch(1, 1_000)) == 1
    events.add(event(3))
    events.acknowledged()
    assert kept(events) == ["dc1:2", "dc1:3"]


def test_the_id_of_an_event_is_its_log_row_or_else_what_happened_when():
    logged = stream_event(Event(Kind.JOB_STARTED, "j", AT, event_id=7), "dc1")
    assert logged.message_id == "dc1:7"
    assert orjson.loads(logged.payload) == {
        "instance": "dc1", "kind": "job.started", "event_id": 7, "job_id": "j", "step_id": None, "step_name": None,
        "error": None, "at": "2025-09-22T15:12:13.000000Z",
    }  # fmt: skip
    derived = [
        stream_event(Event(kind, job_id, at, step_id=step), "dc1").message_id
        for kind, job_id, at, step in [
            (Kind.JOB_STALLED, "j k", AT, None),
            (Kind.JOB_STALLED, "j k", AT + 1, None),
            (Kind.JOB_RECOVERED, "j k", AT, None),
            (Kind.STEP_FAILED, "j", AT, 4),
            (Kind.STEP_FAILED, "j", AT, 5),
        ]
    ]
    assert derived[0] == f"dc1:job.stalled:j=20k::{AT}"
    assert len(set(derived)) == len(derived)
