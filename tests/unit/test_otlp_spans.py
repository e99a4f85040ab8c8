"""An ended job becomes spans that follow the published schema of OTLP and the semantic conventions for CI/CD."""

from __future__ import annotations

import uuid
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator import __version__
from correlator.model.document import Failure
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import StepRecord
from correlator.sinks.otlp import protobuf, spans
from tests.support.otlp_receiver import attributes, parsed, spans_of

JOB = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
PARENT = "11111111-2222-4333-8444-555555555555"
SECOND = 1_000_000
NOW = 1_758_553_933 * SECOND


def ended(status=Status.COMPLETED, *steps, children=(), child_count=0, **view):
    view = {"started_at": NOW, "ended_at": NOW + 60 * SECOND, "operation": "live-failover", **view}
    found = JobView(view.pop("job_id", JOB), status, steps=steps, **view)
    return PublishedJob(found, 1, NOW, children=children, child_count=child_count or len(children))


def step(number=1, status="completed", started=NOW, completed=NOW + SECOND, **more):
    return StepRecord(number, f"step-{number}", number, status, started, completed, **more)


def exported(shown):
    """The spans of a job, which are the same in both encodings."""
    request = spans.request(spans.spans(shown), "appliance-1")
    message = parsed(request)
    assert type(message).FromString(protobuf.encode(request)) == message
    return spans_of(message)


def test_a_job_is_a_server_span_and_its_steps_are_internal_spans_below_it():
    job, first, second = exported(ended(Status.COMPLETED, step(1), step(2)))
    assert (job.kind, first.kind, second.kind) == (2, 1, 1)
    assert (job.name, first.name, second.name) == ("RUN live-failover", "step-1", "step-2")
    assert {span.trace_id for span in (job, first, second)} == {uuid.UUID(JOB).bytes}
    assert job.parent_span_id == b""
    assert first.parent_span_id == second.parent_span_id == job.span_id
    assert len({job.span_id, first.span_id, second.span_id}) == 3
    assert (job.start_time_unix_nano, job.end_time_unix_nano) == (NOW * 1000, (NOW + 60 * SECOND) * 1000)
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (NOW * 1000, (NOW + SECOND) * 1000)


def test_attributes_of_daemon_job_and_step_have_the_names_of_the_semantic_conventions():
    shown = ended(
        Status.COMPLETED,
        step(7),
        external_ids=("gui-1", "gui-2"),
        context_id="ctx",
        job_type="failover",
        category="migration",
        owner="system",
        metadata='{"vm_name": "pgtest2"}',
        warnings=2,
    )
    shown = replace(shown, failure=Failure("0123456789ab", "copy", "stated", "text", "new"))
    job, task = exported(shown)
    assert attributes(job) == {
        "cicd.pipeline.name": "live-failover",
        "cicd.pipeline.action.name": "RUN",
        "cicd.pipeline.run.id": JOB,
        "cicd.pipeline.result": "success",
        "correlator.external_ids": ["gui-1", "gui-2"],
        "correlator.context_id": "ctx",
        "correlator.job_type": "failover",
        "correlator.category": "migration",
        "correlator.owner": "system",
        "correlator.vm_name": "pgtest2",
        "correlator.source": "joblog",
        "correlator.warnings": 2,
        "correlator.errors": 0,
        "correlator.failure.fingerprint": "0123456789ab",
    }
    assert attributes(task) == {
        "cicd.pipeline.task.name": "step-7",
        "cicd.pipeline.task.run.id": "7",
        "cicd.pipeline.task.run.result": "success",
        "cicd.pipeline.run.id": JOB,
        "correlator.step.seq": 7,
    }
    (resource,) = parsed(spans.request(spans.spans(shown), "appliance-1")).resource_spans
    assert attributes(resource.resource) == {
        "service.name": "correlator",
        "service.version": __version__,
        "service.instance.id": "appliance-1",
    }


@pytest.mark.parametrize(
    ("status", "result", "code"),
    [(Status.COMPLETED, "success", 0), (Status.FAILED, "failure", 2), (Status.CANCELLED, "cancellation", 0)],
)
def test_result_and_status_follow_from_the_end_of_the_job(status, result, code):
    (job,) = exported(ended(status, error="no space left" if status is Status.FAILED else None))
    assert attributes(job)["cicd.pipeline.result"] == result
    assert attributes(job).get("error.type") == ("_OTHER" if code else None)
    assert (job.status.code, job.status.message) == (code, "no space left" if code else "")


def test_a_failed_step_carries_its_error_and_an_unfinished_one_the_result_of_the_job():
    failed = step(1, "failed", error_message="boom")
    running = step(2, "running", NOW + SECOND, None)
    skipped = step(3, "skipped", None, None)
    job, *steps = exported(ended(Status.FAILED, failed, running, skipped, error="boom"))
    assert [(one.status.code, one.status.message) for one in steps] == [(2, "boom"), (0, ""), (0, "")]
    results = [attributes(one)["cicd.pipeline.task.run.result"] for one in steps]
    assert results == ["failure", "failure", "skip"]
    assert steps[1].end_time_unix_nano == job.end_time_unix_nano
    assert steps[2].start_time_unix_nano == job.start_time_unix_nano


def test_ids_follow_from_the_job_alone_as_documented():
    job, task = exported(ended(Status.COMPLETED, step(7)))
    assert job.span_id == sha256(f"job:{JOB}".encode()).digest()[:8]
    assert task.span_id == sha256(f"step:7:{JOB}".encode()).digest()[:8]
    (legacy,) = exported(ended(job_id="failover-17", source="legacy"))
    assert legacy.trace_id == sha256(b"trace:failover-17").digest()[:16]
    assert spans.trace_id(JOB.upper()) == uuid.UUID(JOB).hex
    for other in (JOB.replace("-", ""), "{" + JOB + "}", "urn:uuid:" + JOB, str(uuid.UUID(int=0))):
        assert spans.trace_id(other) == sha256(f"trace:{other}".encode()).hexdigest()[:32]


def test_parent_and_its_newest_children_are_linked_in_both_directions_and_the_others_counted():
    (child,) = exported(ended(job_id="child-999", parent_job_id=PARENT))
    children = tuple(f"child-{n}" for n in range(1_000))
    (parent,) = exported(ended(job_id=PARENT, children=children, child_count=5_000))
    assert [(link.trace_id, link.span_id) for link in child.links] == [(parent.trace_id, parent.span_id)]
    assert (parent.links[-1].trace_id, parent.links[-1].span_id) == (child.trace_id, child.span_id)
    assert [attributes(span.links[0])["correlator.relation"] for span in (child, parent)] == ["parent", "child"]
    assert (len(parent.links), parent.dropped_links_count) == (spans.MAX_LINKS, 4_900)


def test_times_that_are_missing_or_in_whole_seconds_are_completed_by_those_of_the_steps():
    late = step(1, completed=NOW + 60 * SECOND + 400_000)
    job, task = exported(ended(Status.COMPLETED, late))
    assert job.end_time_unix_nano == task.end_time_unix_nano
    job, _ = exported(ended(Status.COMPLETED, step(1, completed=NOW + 90 * SECOND)))
    assert job.end_time_unix_nano == (NOW + 60 * SECOND) * 1000
    job, _ = exported(ended(Status.FAILED, step(1, started=NOW + 5), started_at=None, ended_at=None))
    assert (job.start_time_unix_nano, job.end_time_unix_nano) == ((NOW + 5) * 1000, (NOW + SECOND) * 1000)


def test_long_texts_are_cut_and_a_span_stays_small():
    shown = ended(
        Status.FAILED,
        step(1, "failed", error_message="x" * 500_000),
        error="y" * 500_000,
        owner="z" * 50_000,
        external_ids=tuple(f"{n}" * 2_000 for n in range(100)),
    )
    job, task = exported(shown)
    assert (len(job.status.message), job.status.message[-1]) == (spans.MAX_ERROR, "…")
    assert len(task.status.message) == spans.MAX_ERROR
    assert len(attributes(job)["correlator.external_ids"]) == spans.MAX_IDS
    assert max(map(len, spans.spans(shown))) < 60_000


def times():
    return st.none() | st.integers(-(1 << 62), 1 << 62)


@given(
    status=st.sampled_from([Status.COMPLETED, Status.FAILED, Status.CANCELLED]),
    texts=st.lists(st.none() | st.text(alphabet=st.characters(exclude_categories=())), min_size=6, max_size=6),
    job_times=st.tuples(times(), times()),
    step_times=st.tuples(times(), times()),
    step_status=st.sampled_from(["running", "completed", "failed", "skipped", "unheard-of"]),
)
def test_any_job_is_accepted_by_the_published_schema(status, texts, job_times, step_times, step_status):
    operation, job_type, error, parent, owner, name = texts
    one = StepRecord(1, name or "", 0, step_status, step_times[0], step_times[1], error)
    view = {"operation": operation, "job_type": job_type, "error": error, "parent_job_id": parent, "owner": owner}
    shown = ended(status, one, started_at=job_times[0], ended_at=job_times[1], job_id=name or "j", **view)
    for span in exported(shown):
        assert (len(span.trace_id), len(span.span_id)) == (16, 8)
        assert any(span.trace_id)
        assert span.name
        assert span.start_time_unix_nano <= span.end_time_unix_nano < 1 << 63
