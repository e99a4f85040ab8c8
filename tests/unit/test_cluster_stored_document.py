"""The value of a job's key: the document without `rev`, and how one that is too large is cut."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.model.facts import Line, Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import StepRecord
from correlator.sinks.cluster import documents
from tests.support.documents import document_of

AT = 1_758_553_933_000_000
SHOWN = PublishedJob(JobView("j", Status.RUNNING, metadata='{"vm_name":"vm"}'), 17, AT)


def job(*, metadata=None, steps=(), children=(), error=None):
    view = JobView(
        "j", Status.FAILED, metadata=metadata, steps=tuple(steps), error=error, last=Line(AT, 1, "INFO", "x")
    )
    return PublishedJob(view, 17, AT, tuple(children), len(children))


def steps(count, error=None):
    return [StepRecord(n, f"step {n}", n, "completed", AT, AT + n, error) for n in range(1, count + 1)]


def decoded(shown, limit=documents.MAX_VALUE):
    value = documents.encode(shown, limit)
    assert len(value) <= limit
    return orjson.loads(value)


def test_a_value_is_the_document_without_its_revision():
    document = document_of(SHOWN)
    assert document.pop("rev") == 17
    assert decoded(SHOWN) == document


def test_metadata_of_a_megabyte_loses_its_largest_members_and_says_so():
    metadata = {"blob": "x" * 1_000_000, "vm_name": "vm", "small": 1, "_cut": {"earlier": 7, "*": 3}}
    found = decoded(job(metadata=orjson.dumps(metadata).decode()))
    assert found["metadata"] == {
        "vm_name": "vm", "small": 1, "_cut": {"blob": 1_000_000, "earlier": 7, "*": 3},
    }  # fmt: skip
    many = {f"member {n}": "x" * 10_000 for n in range(30)}
    assert 23 <= len(decoded(job(metadata=orjson.dumps(many).decode()))["metadata"]) - 1 <= 26, "and no more"


def test_long_errors_are_cut_after_the_metadata():
    found = decoded(job(metadata='{"vm_name":"vm"}', steps=steps(40, "e" * 8_000), error="f" * 20_000))
    assert (len(found["error"]), found["error_cut"]) == (8_000, 20_000)
    assert {(len(step["error"]), step["error_cut"]) for step in found["steps"].values()} == {(200, 8_000)}
    assert (len(found["steps"]), "steps_cut" in found) == (40, False)


def test_too_many_steps_lose_the_oldest_and_the_document_has_their_number():
    found = decoded(job(steps=steps(10_000)))
    assert found["steps_cut"] == found["progress"]["steps_seen"] == 10_000
    assert 1_000 < len(found["steps"]) < 2_500
    assert list(found["steps"])[-1] == "10000"
    found = decoded(job(steps=[replace(step, name="n" * 400) for step in steps(1_000)]))
    assert found["steps_cut"] == 1_000
    assert len(orjson.dumps(found)) > documents.MAX_VALUE - 2 * documents.MARGIN, "and no more"


def test_children_are_cut_and_the_document_has_their_number():
    found = decoded(job(children=[f"{n:036}" for n in range(1_000)]), limit=20_000)
    assert (len(found["child_job_ids"]), found["child_job_ids_cut"]) == (100, 1_000)
    assert found["child_job_ids"][-1].endswith("999")


def test_a_document_that_cannot_be_cut_so_far_is_refused():
    with pytest.raises(ValueError, match="cannot be cut"):
        documents.encode(SHOWN, 100)


texts = st.text(max_size=3_000)


@settings(max_examples=50)
@given(
    st.dictionaries(st.text(max_size=20), texts | st.integers(0, 9) | st.lists(texts, max_size=3), max_size=12),
    st.lists(st.builds(StepRecord, id=st.integers(1, 1 << 40), name=texts, error_message=texts), max_size=20),
    st.lists(st.text(max_size=255), max_size=50),
    texts,
)
def test_whatever_a_document_has_its_value_is_within_the_limit(metadata, many, children, error):
    limit = 60_000
    shown = job(metadata=orjson.dumps(metadata).decode(), steps=many, children=children, error=error)
    assert decoded(shown, limit)["job_id"] == "j"
