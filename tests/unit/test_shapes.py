"""The shapes: their closed sets are those of the core, and what is built has them, member by member."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import jsonschema_rs
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from correlator.errors import BadRequest
from correlator.jobs import encoding, fold
from correlator.jobs.index import Index
from correlator.model import document as model
from correlator.model import messages, replies
from correlator.model.document import Comparison, ForecastState, StepAhead
from correlator.model.facts import Job, Kind, Line, Reading, Status
from correlator.model.published import Change, Event, Forecast, JobForecast, JobView, LogLine, PublishedJob
from correlator.model.replies import Resolved
from correlator.model.rows import JobRecord, LegacyRecord, StepRecord
from correlator.pipeline import hub
from correlator.sinks.event_log import EventLog
from correlator.sinks.http import failover_status
from correlator.sinks.http.frames import decode
from correlator.sinks.http.openapi import asyncapi, openapi
from correlator.sinks.mqtt import topics
from correlator.sinks.mqtt.outbox import MqttEvents, MqttOutbox
from tests.support.documents import document_of, document_text
from tests.support.schemas import Shapes
from tests.support.there import there

AT = 1_758_553_933_123_456
REST, STREAMED = Shapes(openapi()), Shapes(asyncapi())
STEPS = (
    StepRecord(7, "first", 1, "completed", AT - 9_000_000, AT - 7_000_000),
    StepRecord(9, "second", 2, "running", AT - 6_000_000),
    StepRecord(6, "fourth", 4, "failed", AT - 4_000_000, AT - 3_000_000, "boom"),
)
VIEW = JobView(
    "j",
    Status.RUNNING,
    external_ids=("e1", "e2"),
    job_type="failover",
    started_at=AT - 10_000_000,
    steps=STEPS,
    last=Line(AT - 1, 3, "WARN", "text"),
    metadata='{"vm_name":"vm","deep":{"er":[1,null]}}',
)
CUT = replace(VIEW, error="boo", error_cut=9_000, steps=(replace(STEPS[2], error_cut=8_000),))
FULL, BARE = PublishedJob(VIEW, 17, AT, ("k1",)), PublishedJob(fold.view(Job("j")), 1, AT)
LEGACY = LegacyRecord(3, "legacy-a", "creating_vm", "test", created_at=AT, started_at=AT, source_vm_spec='{"cpus":4}')


def literal(alias: Any) -> set[Any]:
    """The values of a Literal, also of one that says what they mean."""
    values = get_args(alias)
    return literal(values[0]) if hasattr(alias, "__metadata__") else set(values)


FORECAST = Forecast(AT, AT + 1, AT + 2, 41.7, 37, ForecastState.ROUGH, 96.0, 0.08, (StepAhead("next", 0.97, 12.0),))


@pytest.mark.parametrize(
    ("shape", "core"),
    [
        (model.JobStatus, {s.value for s in Status if s is not Status.SKIPPED}),
        (replies.ResolvedBy, literal(get_type_hints(Resolved)["resolved_by"])),
    ],
    ids=["job", "resolved_by"],
)
def test_a_closed_set_is_that_of_the_core(shape, core):
    assert literal(shape) == core


@pytest.mark.parametrize(
    "shown",
    [
        FULL,
        BARE,
        PublishedJob(CUT, 18, AT),
        PublishedJob(fold.legacy_view(LEGACY), 2, AT),
        replace(FULL, forecast=JobForecast(41.7, "history", FORECAST)),
        replace(FULL, forecast=JobForecast(100.0, "reported", None, Comparison(96.0, 37, 88.0))),
    ],
    ids=["full", "bare", "cut", "legacy", "forecast", "compared"],
)
@pytest.mark.parametrize("steps", [True, False])
def test_a_document_has_its_shape_to_the_last_member(shown, steps):
    document = document_of(shown, steps=steps)
    assert REST.wrong("JobDocument", document) == []
    cut = ["error_cut"] if shown.view.error_cut is not None else []
    assert list(document) == [f.name for f in fields(model.JobDocument) if f.required] + cut + ["failure"]
    assert (
        REST.wrong(
            "JobsPage", {"jobs": [document], "next_cursor": None, "complete": True, "reason": None, "searched_to": None}
        )
        == []
    )


@pytest.mark.parametrize(
    ("member", "incomplete"),
    [
        ("counts_complete", replace(FULL, complete=False)),
        ("steps_complete", replace(FULL, view=replace(FULL.view, steps_complete=False))),
    ],
)
def test_a_document_says_that_its_counts_or_steps_are_not_complete_only_while_they_are_not(member, incomplete):
    document = document_of(incomplete)
    assert document.pop(member) is False
    assert REST.wrong("JobDocument", document | {member: False}) == []
    assert document == document_of(FULL)


times = st.none() | st.integers(-(1 << 62), 1 << 62)
texts = st.none() | st.text(max_size=5)
step_records = st.builds(
    StepRecord,
    id=st.integers(),
    seq=st.integers(-5, 1 << 31),
    status=st.sampled_from([s.value for s in Status]),
    started_at=times,
    completed_at=times,
    error_message=texts,
)
views = st.builds(
    JobView,
    job_id=st.text(),
    status=st.sampled_from([s for s in Status if s is not Status.SKIPPED]),
    error=texts,
    started_at=times,
    ended_at=times,
    percent=st.floats(0, 100),
    steps=st.lists(step_records, max_size=3).map(tuple),
    last=st.none() | st.builds(Line, at=st.integers(), event_id=st.integers(), text=st.text(max_size=5)),
    metadata=st.sampled_from([None, "", "{", "[1]", '{"a":{"b":null}}']),
)


LONGEST = JobView(
    "j", Status.RUNNING, started_at=-(1 << 62), steps=(StepRecord(1, "s", 1, "running", started_at=-(1 << 62)),)
)


@settings(max_examples=settings().max_examples // 4)
@given(view=views, updated_at=st.integers(-(1 << 62), 1 << 62), stalled=st.booleans())
@example(view=LONGEST, updated_at=1 << 62, stalled=False)
def test_every_job_there_may_be_has_the_shape(view, updated_at, stalled):
    document = document_of(PublishedJob(view, 1, updated_at, stalled=stalled))
    assert REST.wrong("JobDocument", orjson.loads(encoding.encode(document))) == []


LINE = LogLine(5, "WARN", "text", 7, {"a": 1}, AT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Put", encoding.put([1, 2], 18, FULL, document_text(FULL))),
        ("Put", encoding.put([], 18, BARE, document_text(BARE))),
        ("Snapshot", encoding.snapshot(1, 18, [document_text(FULL)], more=False)),
        ("Delta", encoding.delta([1], 18, FULL, 16, b'{"status":"failed","steps":{"7":null}}')),
        ("LogDropped", encoding.dropped([1], 3)),
        ("Delete", encoding.delete([1], 18, "j", "merged")),
        ("LogMessage", encoding.encode({"type": "log", "sub": [1], "job_id": "j", **encoding.log_line(LINE)})),
        (
            "JobEvent",
            encoding.encode(encoding.event(Event(Kind.STEP_FAILED, "j", AT, 5, 7, "first", "boom"), "e", 18)),
        ),
        ("JobEvent", encoding.encode(encoding.event(Event(Kind.JOB_STALLED, "j", AT), "e", 18))),
        ("EventMessage", encoding.stream_event([1], 18, Event(Kind.JOB_LATE, "j", AT))),
    ],
)
def test_a_message_has_its_shape_to_the_last_member(name, message):
    assert STREAMED.wrong(name, orjson.loads(message)) == []


@pytest.mark.parametrize("attrs", [{"a": 1}, None, "no JSON", [1], 7])
def test_a_log_line_has_its_shape_whatever_was_logged_with_it(attrs):
    line = orjson.loads(encoding.encode(encoding.log_line(replace(LINE, attrs=attrs))))
    assert REST.wrong("LogEvent", line) == []
    page = {"events": [line], "next_after": "5", "more": True, "complete": True, "reason": None}
    assert REST.wrong("EventsPage", page) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Put", {"type": "put", "sub": [1], "seq": 18, "job_id": "j", "rev": 17, "job": {}}),
        ("Delete", {"type": "delete", "sub": [1], "seq": 18, "job_id": "j", "reason": "boredom"}),
        ("Delete", {"type": "delete", "sub": [1], "seq": 18, "job_id": "j", "reason": "gone", "why": "so"}),
        ("Bookmark", {"type": "bookmark", "seq": 18, "at": "2025-09-22T10:00:00Z"}),
    ],
)
def test_a_message_of_another_shape_is_seen(name, message):
    assert STREAMED.wrong(name, message)


def test_no_message_has_the_shape_of_two():
    log = {"type": "log", "sub": [1], "job_id": "j", **encoding.log_line(LINE)}
    server_messages = {kind.__name__ for kind in messages.SERVER_MESSAGES}
    assert STREAMED.one_of(server_messages, orjson.loads(encoding.encode(log))) == "LogMessage"
    assert STREAMED.one_of(server_messages, {"type": "log", "sub": [1], "dropped": 3}) == "LogDropped"


def tree(record: JobRecord) -> tuple[MqttOutbox, Index]:
    index = Index()
    index.loading = False
    index.apply([Reading(record.job_id, 1, record, STEPS)], AT)
    events = MqttEvents(EventLog(), lambda: 0.0)
    built = MqttOutbox(topics.Topics("p/i"), index.published, "e", events, lambda: 0.0, devices=True)
    for _ in built.begin():
        pass
    return built, index


def test_what_is_retained_has_its_shape_to_the_last_member():
    metadata = '{"vm_name": "v"}'
    built, index = tree(JobRecord("j", status="running", external_job_id="x", started_at=AT, metadata=metadata))
    (vm,), (device,) = (built.messages(topics.TopicKey(kind, "v")) for kind in ("vm", "discovery"))
    (state,) = built.messages(topics.TopicKey("state", "j"))
    (ext,) = built.messages(topics.TopicKey("ext", "x"))
    built.on_batch(hub.Batch(5, [Change("j", 5, there(index.published.get("j")), None, "retention")]))
    index.apply([Reading("j", 2, None)], AT)
    deleted, nothing = built.messages(topics.TopicKey("state", "j"))
    built.on_retained("p/i/job/left/state")
    least, _ = built.messages(topics.TopicKey("state", "left"))
    assert nothing.payload == b""
    for name, message in {
        "JobState": state,
        "ExternalId": ext,
        "VmState": vm,
        "HomeAssistantDevice": device,
        "DeletedJobState": deleted,
        "DaemonStatus": built.status("online", AT),
        "DaemonIndex": built.index(),
    }.items():
        assert STREAMED.wrong(name, orjson.loads(message.payload)) == []
    assert STREAMED.wrong("DeletedJobState", orjson.loads(least.payload)) == []
    for payload, name in ((state.payload, "JobState"), (deleted.payload, "DeletedJobState")):
        assert STREAMED.one_of({"JobState", "DeletedJobState"}, orjson.loads(payload)) == name
    loose = {"$ref": "#/components/schemas/JobState", "components": asyncapi()["components"]}
    assert not jsonschema_rs.Draft202012Validator(loose).is_valid(orjson.loads(deleted.payload))


@pytest.mark.parametrize(
    ("details", "body"),
    [
        ("DirectDetails", failover_status.reply(FULL, Resolved("j", "uuid", ()), "j", AT)),
        ("DirectDetails", failover_status.reply(BARE, Resolved("j", "context_id", ()), "c", AT)),
        ("EnhancedDetails", failover_status.reply(FULL, Resolved("j", "external_id", ()), "e1", AT)),
        ("LegacyDetails", failover_status.legacy_reply(LEGACY, AT)),
    ],
)
def test_the_appliances_reply_has_just_one_shape_of_details_which_its_discriminator_names(details, body):
    reply = orjson.loads(encoding.encode(body))
    assert REST.one_of({"StatusReply", "UnknownReply"}, reply) == "StatusReply"
    assert REST.one_of({"DirectDetails", "EnhancedDetails", "LegacyDetails"}, reply["job_details"]) == details
    named = openapi()["components"]["schemas"]["StatusDetails"]["discriminator"]
    assert named["mapping"][reply["job_details"][named["propertyName"]]] == f"#/components/schemas/{details}"


def test_the_appliances_404_has_its_own_shape():
    reply = orjson.loads(encoding.encode(failover_status.not_found("nobody")))
    assert REST.one_of({"StatusReply", "UnknownReply"}, reply) == "UnknownReply"


SAID: list[tuple[str, dict[str, Any]]] = [
    ("Hello", {"type": "hello", "version": 1}),
    ("Hello", {"type": "hello", "version": 1, "token": "t", "resume": {"epoch": "e", "seq": 5}}),
    ("Subscribe", {"type": "subscribe", "id": 1}),
    ("Subscribe", {"type": "subscribe", "id": 1, "jobs": ["a"], "status": ["running"], "logs": "WARN", "resume": True}),
    ("Unsubscribe", {"type": "unsubscribe", "id": 1}),
    ("Get", {"type": "get", "job_id": "a"}),
    ("Ping", {"type": "ping"}),
]


@pytest.mark.parametrize(("name", "message"), SAID)
def test_what_a_client_may_say_is_what_is_understood(name, message):
    assert STREAMED.wrong(name, message) == []
    decode(orjson.dumps(message))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Subscribe", {"type": "subscribe", "id": -1}),
        ("Subscribe", {"type": "subscribe", "id": 1, "status": ["skipped"]}),
        ("Subscribe", {"type": "subscribe", "id": 1, "jobs": [""]}),
        ("Get", {"type": "get"}),
    ],
)
def test_what_is_not_understood_is_not_described(name, message):
    assert STREAMED.wrong(name, message)
    with pytest.raises(BadRequest):
        decode(orjson.dumps(message))
