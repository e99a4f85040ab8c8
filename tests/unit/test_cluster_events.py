"""Events for the stream: the bounds of a batch, and IDs that do not depend on the process that makes them."""

import orjson

from correlator.model.facts import Kind
from correlator.model.published import Event
from correlator.sinks.cluster.events import (
    EventQueue,
    StreamEvent,
    stream_event,
)
from correlator.sinks.event_log import EventLog

AT = 1_758_553_933_000_000


def test_a_batch_is_bounded_in_number_and_bytes_and_has_at_least_one_event():
    events = EventQueue(EventLog(), lambda: 0.0)
    for number, size in enumerate((50, 60, 500, 1, 1)):
        events.add(StreamEvent("j", f"dc1:{number}", b"x" * size))
    for most_bytes, due in ((100, ["dc1:0"]), (110, ["dc1:1"]), (100, ["dc1:2"]), (100, ["dc1:3", "dc1:4"])):
        assert [one.message_id for one in events.batch(2, most_bytes)] == due
        events.acknowledged()


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
