"""Deltas: what is merged into the document that a reader holds gives the next one (RFC 7386)."""

import itertools
import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.jobs import encoding
from correlator.jobs.encoding import Documents
from correlator.model import encoder
from correlator.model.encoder import merge_patch
from correlator.model.facts import Status
from correlator.model.published import Change, JobView, PublishedJob, goes_on
from correlator.model.rows import StepRecord
from tests.support.client_fold import merge
from tests.support.documents import document_of, document_text
from tests.support.published_jobs import published_jobs
from tests.support.yardstick import assert_costs

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2).map(lambda f: round(f, 1)) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def plain(value):
    """Where a missing member and null mean the same, at every level that a patch reaches."""
    return {k: plain(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@given(OBJECTS, OBJECTS)
def test_the_patch_merged_into_the_old_gives_the_new(old, new):
    patch = json.loads(encoding.encode(merge_patch(old, new)))
    assert json.dumps(plain(merge(old, patch)), sort_keys=True) == json.dumps(plain(new), sort_keys=True)
    assert merge_patch(new, new) == {}


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), (0, False), ([1], [True]), ([1], [1.0])])
def test_what_is_equal_in_python_and_not_in_json_is_patched(old, new):
    assert merge_patch({"a": old}, {"a": new}) == {"a": new}


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(published_jobs(), min_size=2, max_size=4), st.data())
def test_a_document_that_shares_what_has_not_changed_is_the_one_made_anew(jobs, data):
    documents, last = Documents(), jobs[0]
    for rev, other in enumerate(jobs[1:], last.rev + 1):
        names = data.draw(st.sets(st.sampled_from([name for name in JobView.__struct_fields__ if name != "job_id"])))
        view = replace(last.view, **{name: getattr(other.view, name) for name in names})
        more = data.draw(
            st.sets(st.sampled_from(["updated_at", "stalled", "complete", "forecast", "titles", "children"]))
        )
        new = replace(last, view=view, rev=rev, **{name: getattr(other, name) for name in more})
        patch = orjson.loads(documents.patch(last, new))
        assert patch == merge_patch(document_of(last), document_of(new))
        assert documents.encoded(new) == document_text(new)
        documents.forget([Change(new.job_id, rev, last, new)])
        last = new


@settings(max_examples=settings().max_examples // 2)
@given(published_jobs(), published_jobs(), st.booleans())
def test_the_patch_of_a_job_that_goes_on_is_that_of_its_documents(old, other, keeps_time):
    view = replace(old.view, last=other.view.last, warnings=other.view.warnings, errors=other.view.errors)
    time = old.updated_at if keeps_time else other.updated_at
    new = replace(old, view=view, rev=old.rev + 1, updated_at=time, alive_at=other.alive_at)
    assert goes_on(old, new)
    documents = (encoding.document(one) for one in (old, new))
    assert Documents().patch(old, new) == encoder.encode(encoder.patch(*documents))
    assert Documents().patch(old, old) == b"{}"


def test_thirty_changes_of_a_job_of_ten_thousand_steps_cost_less_than_its_document():
    steps = tuple(StepRecord(i, "step", i, "completed", 0, 5) for i in range(10_000))
    jobs = [PublishedJob(JobView("j", Status.RUNNING, steps=steps, warnings=n), n, 10 + n) for n in range(31)]
    documents = Documents()

    def changes() -> None:
        for old, new in itertools.pairwise(jobs):
            documents.patch(old, new)

    assert_costs(1, lambda: document_text(jobs[-1]), changes)
