"""What leaves: the members of the protocol, exactly, and the same bytes for the same document."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.jobs import encoding
from correlator.model.document import Comparison, ForecastState, StepAhead
from correlator.model.encoder import merge_patch
from correlator.model.facts import Kind, Line, Status
from correlator.model.messages import Synced
from correlator.model.published import Event, Forecast, JobForecast, JobView, PublishedJob
from correlator.model.rows import StepRecord
from tests.support.documents import document_of

AT = 1_758_553_933_123_456
STEPS = (
    StepRecord(7, "first", 1, "completed", AT - 9_000_000, AT - 7_000_000),
    StepRecord(9, "second", 2, "running", AT - 6_000_000),
    StepRecord(8, "third", 3, "running", AT - 5_000_000),
    StepRecord(6, "fourth", 4, "failed", AT - 4_000_000, AT - 3_000_000, "boom"),
    StepRecord(5, "fifth", 5, "skipped"),
)
VIEW = JobView(
    "j",
    Status.RUNNING,
    external_ids=("e1", "e2"),
    context_id="c",
    parent_job_id="p",
    job_type="failover",
    operation="live",
    category="failover",
    owner="system",
    started_at=AT - 10_000_000,
    percent=20.0,
    steps=STEPS,
    last=Line(AT - 1, 3, "WARN", "text"),
    warnings=1,
    errors=2,
    metadata='{"vm_name":"vm"}',
)
SHOWN = PublishedJob(VIEW, 17, AT, ("k1", "k2"))

MEMBERS = {
    "job_id", "external_ids", "context_id", "parent_job_id", "child_job_ids", "job_type", "operation", "category",
    "owner", "status", "terminal", "error", "started_at", "ended_at", "updated_at", "duration_seconds", "progress",
    "forecast", "compared_with", "current_step", "steps", "stalled", "last_event_at", "last_message", "warnings",
    "errors", "metadata", "source", "rev",
}  # fmt: skip


def test_a_forecast_is_published_with_its_percent_and_the_steps_that_are_expected():
    ahead = StepAhead("sixth", 0.97, 12.0), StepAhead("seldom", 0.2, 3.0)
    forecast = Forecast(AT, AT + 90_000_000, AT + 150_000_000, 41.7, 37, ForecastState.LATE, 96.0, 0.0831, ahead)
    document = document_of(replace(SHOWN, forecast=JobForecast(41.7, "history", forecast)))
    assert (document["progress"]["percent"], document["progress"]["basis"]) == (41.7, "history")
    assert document["progress"]["steps_expected"] == 6
    assert document["forecast"] == {
        "ends_at": {"p50": "2025-09-22T15:13:43.123456Z", "p90": "2025-09-22T15:14:43.123456Z"},
        "as_of": "2025-09-22T15:12:13.123456Z",
        "runs": 37,
        "state": "late",
        "typical_seconds": 96.0,
        "failure_rate": 0.083,
        "steps_ahead": [
            {"name": "sixth", "share": 0.97, "typical_seconds": 12.0},
            {"name": "seldom", "share": 0.2, "typical_seconds": 3.0},
        ],
    }


def test_a_document_that_lacks_steps_has_the_number_of_all():
    found = document_of(replace(SHOWN, steps_cut=900))
    assert (found["steps_cut"], found["progress"]["steps_seen"], len(found["steps"])) == (900, 900, 5)


def test_an_ended_job_is_published_beside_its_earlier_runs():
    document = document_of(replace(SHOWN, forecast=JobForecast(compared_with=Comparison(96.0, 37, 87.98))))
    assert document["compared_with"] == {"typical_seconds": 96.0, "runs": 37, "percentile": 88.0}
    assert (document["progress"]["percent"], document["progress"]["basis"]) == (20.0, "steps")


def test_the_values_are_those_of_the_view():
    document: dict[str, Any] = document_of(SHOWN)
    assert {k: document[k] for k in MEMBERS - {"steps", "progress"}} == {
        "job_id": "j",
        "external_ids": ["e1", "e2"],
        "context_id": "c",
        "parent_job_id": "p",
        "child_job_ids": ["k1", "k2"],
        "job_type": "failover",
        "operation": "live",
        "category": "failover",
        "owner": "system",
        "status": "running",
        "terminal": False,
        "error": None,
        "started_at": "2025-09-22T15:12:03.123456Z",
        "ended_at": None,
        "updated_at": "2025-09-22T15:12:13.123456Z",
        "duration_seconds": 10.0,
        "current_step": "third",
        "forecast": None,
        "compared_with": None,
        "stalled": False,
        "last_event_at": "2025-09-22T15:12:13.123455Z",
        "last_message": {"level": "WARN", "text": "text", "at": "2025-09-22T15:12:13.123455Z"},
        "warnings": 1,
        "errors": 2,
        "metadata": {"vm_name": "vm"},
        "source": "joblog",
        "rev": 17,
    }
    assert document["progress"] == {
        "percent": 20.0, "basis": "steps",
        "steps_done": 1, "steps_failed": 1, "steps_running": 2, "steps_skipped": 1, "steps_seen": 5,
        "steps_expected": None,
    }  # fmt: skip
    assert document["steps"]["6"] == {
        "seq": 4,
        "name": "fourth",
        "status": "failed",
        "started_at": "2025-09-22T15:12:09.123456Z",
        "ended_at": "2025-09-22T15:12:10.123456Z",
        "duration_seconds": 1.0,
        "error": "boom",
    }
    assert [document["steps"][i]["duration_seconds"] for i in ("7", "9", "5")] == [2.0, 6.0, None]


def test_an_ended_job_lasted_from_start_to_end_and_has_no_current_step():
    ended = replace(VIEW, status=Status.FAILED, ended_at=AT - 4_000_000, error="boom")
    document = document_of(replace(SHOWN, view=ended))
    assert (document["terminal"], document["duration_seconds"], document["current_step"]) == (True, 6.0, None)


@pytest.mark.parametrize("metadata", [None, "", "{", "[1]", "null"])
def test_metadata_that_is_no_object_is_an_empty_one(metadata):
    assert document_of(replace(SHOWN, view=replace(VIEW, metadata=metadata)))["metadata"] == {}


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (encoding.MAX_MICROS, "9999-12-31T23:59:59.999999Z"),
        (1 << 70, "9999-12-31T23:59:59.999999Z"),
        (-(1 << 70), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_times_are_rfc_3339_with_microseconds_and_clamped(at, text):
    assert encoding.rfc3339(at) == text


@given(st.text(alphabet=st.characters()))
def test_any_text_leaves_as_json(text):
    sent = document_of(replace(SHOWN, view=replace(VIEW, error=text)))
    assert sent["error"] == text.encode("utf-8", "replace").decode()


def test_half_a_surrogate_costs_only_itself():
    answer = {"type": "synced", "sub": 1, "seq": 2, "count": 0, "unknown": ["?"]}
    assert json.loads(encoding.encode(Synced(1, 2, 0, ["\ud800"]))) == answer
    assert json.loads(encoding.encode({"a\ud800": ["b\udfff", ("c",), {"d": 1}]})) == {"a?": ["b?", ["c"], {"d": 1}]}


def test_an_event_has_exactly_the_members_of_the_protocol():
    assert encoding.event(Event(Kind.STEP_FAILED, "j", AT, 5, 7, "s", "boom"), "epoch", 3) == {
        "event_id": 5,
        "kind": "step.failed",
        "job_id": "j",
        "step_id": 7,
        "step_name": "s",
        "error": "boom",
        "at": "2025-09-22T15:12:13.123456Z",
        "epoch": "epoch",
        "seq": 3,
    }


def test_metadata_is_shown_down_to_a_bounded_depth_and_patched():
    deep = '{"a":' * 1000 + "1" + "}" * 1000
    shown = replace(SHOWN, view=replace(SHOWN.view, metadata=deep))
    document = document_of(shown)
    assert encoding.encode(document).count(b'{"a":') == encoding.MAX_NESTED
    assert merge_patch(document, document_of(shown)) == {}
    assert merge_patch(document_of(SHOWN), document).keys() == {"metadata"}
