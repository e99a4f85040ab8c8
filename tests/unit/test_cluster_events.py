"""Events for the stream: the bounds of a batch, and IDs that do not depend on the process that makes them."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from correlator.model.facts import AttributedRow, Entry, Kind
from correlator.model.published import Event
from correlator.sinks.cluster import log_lines
from correlator.sinks.cluster.events import (
    EventQueue,
    StreamEvent,
    fitting,
    stream_event,
)
from correlator.sinks.cluster.log_lines import LineQueue
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


@given(
    st.text(st.sampled_from("x\x01é\U0001f600"), min_size=1, max_size=9), st.integers(1, 3_000), st.integers(500, 5_000)
)
def test_an_event_above_the_limit_keeps_the_beginning_of_its_error(part, times, limit):
    error = part * times
    event = stream_event(Event(Kind.STEP_FAILED, "j", AT, event_id=7, error=error), "dc1")
    fitted = fitting(event.payload, limit)
    assert len(fitted) <= limit
    found = orjson.loads(fitted)
    assert found["error"]
    assert error.startswith(found["error"])
    assert found.get("error_cut") == (len(error.encode()) if found["error"] != error else None)


# -- Log lines for gateways: numbers without a hole, messages of bounded size, and what is dropped shows as a hole


def row(event_id, message="text", job_id="j", attrs=None):
    return AttributedRow(Entry(event_id, AT, "WARN", message, 1, job_id, 3, attrs=attrs), job_id, "column")


def messages(lines):
    found = []
    while len(lines):
        found.append(lines.pop_message())
    return found


def test_a_message_has_the_members_of_a_line():
    lines = LineQueue("run")
    lines.add([row(5, attrs={"a": 1}), row(6)])
    assert [orjson.loads(message) for message in messages(lines)] == [
        {
            "run": "run",
            "first": 1,
            "lines": [
                {"job_id": "j", "event_id": 5, "level": "WARN", "step_id": 3, "message": "text", "attrs": {"a": 1},
                 "at": "2025-09-22T15:12:13.000000Z"},
                {"job_id": "j", "event_id": 6, "level": "WARN", "step_id": 3, "message": "text", "attrs": None,
                 "at": "2025-09-22T15:12:13.000000Z"},
            ],
        }
    ]  # fmt: skip


@given(st.lists(st.integers(0, 400), max_size=40), st.sets(st.integers(0, 39)), st.integers(600, 2_000))
def test_messages_are_within_their_size_and_the_lines_of_jobs_are_numbered_without_a_hole(lengths, of_none, most):
    lines = LineQueue("run", max_message=most)
    rows = [row(n, "x" * length, None if n in of_none else "j") for n, length in enumerate(lengths)]
    assert lines.add(rows) == 0
    found, follows = [], 1
    for message in messages(lines):
        assert len(message) <= most
        decoded = orjson.loads(message)
        assert decoded["first"] == follows
        follows += len(decoded["lines"])
        found += [line["event_id"] for line in decoded["lines"]]
    assert found == [n for n in range(len(lengths)) if n not in of_none]


def test_dropped_lines_leave_a_hole_in_the_numbers():
    lines = LineQueue("run", max_lines=2)
    assert lines.add([row(n) for n in range(5)]) == 3
    (message,) = map(orjson.loads, messages(lines))
    assert (message["first"], [line["event_id"] for line in message["lines"]]) == (4, [3, 4])
    lines.add([row(5)])
    assert lines.clear() == 1
    lines.add([row(6)])
    assert orjson.loads(messages(lines)[0])["first"] == 7


def test_waiting_lines_are_bounded_in_bytes():
    lines = LineQueue("run", max_bytes=10_000)
    assert lines.add([row(n, "x" * 1_000) for n in range(20)]) > 10
    assert sum(map(len, messages(lines))) < 10_000


def test_a_long_line_loses_its_attrs_and_then_the_end_of_its_message():
    lines = LineQueue("run")
    lines.add([row(1, attrs={"a": "x" * 200_000}), row(2, "\x01" * 65_000, attrs={"a": 1})])
    first, second = (orjson.loads(message)["lines"][0] for message in _single(lines))
    assert (first["message"], first["attrs"]) == ("text", None)
    assert (second["message"], second["attrs"]) == ("\x01" * 16_000, None)


def _single(lines):
    found = [orjson.dumps({"lines": [line]}) for m in messages(lines) for line in orjson.loads(m)["lines"]]
    assert all(len(message) <= log_lines.MAX_MESSAGE for message in found)
    return found
