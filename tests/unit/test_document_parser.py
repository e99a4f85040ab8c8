"""Parsing a document is the exact inverse of encoding it."""

import msgspec
import orjson
import pytest
from hypothesis import given

from correlator.jobs import document_parser, job_document
from correlator.jobs.index import Index
from correlator.jobs.model.facts import Status
from correlator.jobs.model.views import JobView, PublishedJob
from tests.support.fact_strategies import BASE, facts
from tests.support.published_jobs import published_jobs

SHOWN = PublishedJob(JobView("j", Status.RUNNING), 3, 1_758_553_933_123_456)


def encoded(shown):
    return job_document.encode(job_document.document(shown))


@given(published_jobs())
def test_the_document_of_a_job_that_was_read_has_the_bytes_that_were_read(shown):
    assert encoded(document_parser.parse(encoded(shown))) == encoded(shown)


@given(facts())
def test_all_that_filters_and_lookups_use_is_read_back(made):
    index = Index()
    index.apply(made, BASE)
    for shown in index.published.all():
        view, read = shown.view, document_parser.parse(encoded(shown)).view
        assert (read.names(), read.age_key, read.terminal) == (view.names(), view.age_key, view.terminal)
        assert (read.status, read.job_type, read.operation) == (view.status, view.job_type, view.operation)
        assert (read.source, read.parent_job_id) == (view.source, view.parent_job_id)


def test_a_gateway_gives_the_job_its_revision_and_its_appliance():
    read = document_parser.parse(encoded(SHOWN), 1044, "dc1")
    assert (read.rev, read.instance) == (1044, "dc1")
    assert orjson.loads(encoded(read)) == {**orjson.loads(encoded(SHOWN)), "rev": 1044, "instance": "dc1"}


def test_what_a_newer_version_adds_is_no_obstacle():
    document = job_document.document(SHOWN)
    progress = {**document["progress"], "basis": "stars", "percent": 7.0}
    newer = {**document, "progress": progress, "colour": "red"}
    read = job_document.document(document_parser.parse(orjson.dumps(newer)))
    assert (read["progress"]["basis"], read["progress"]["percent"]) == ("stars", 7.0)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"job_id":1}'])
def test_what_is_no_document_is_refused(body):
    with pytest.raises(msgspec.MsgspecError):
        document_parser.parse(body)


@pytest.mark.parametrize("time", ["", "yesterday", "2025-09-22T10:00:00Z"])
def test_a_time_of_another_form_is_refused(time):
    with pytest.raises(ValueError, match=r"."):
        document_parser.parse(orjson.dumps({**job_document.document(SHOWN), "updated_at": time}))
