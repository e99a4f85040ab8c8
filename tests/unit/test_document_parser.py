"""Reading a document is the exact inverse of encoding it."""

import orjson
import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from correlator.cluster.received import Unreadable
from correlator.jobs import encoding
from correlator.jobs.index import Index
from correlator.model import encoder
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.replies import Resolved
from correlator.pipeline.queries import JobQuery
from correlator.sinks.http import failover_status, rest
from tests.support.documents import document_of, document_text, read_document
from tests.support.fact_strategies import BASE, facts
from tests.support.published_jobs import published_jobs

SHOWN = PublishedJob(JobView("j", Status.RUNNING), 3, 1_758_553_933_123_456)


@given(published_jobs())
def test_the_document_of_a_job_that_was_read_is_the_one_that_was_read(shown):
    shown = replace(shown, instance="dc1")
    read = read_document(document_text(shown), shown.rev, "dc1")
    assert encoder.encode(encoding.document(read)) == document_text(read) == document_text(shown)


@settings(max_examples=settings().max_examples // 2)
@given(facts())
def test_all_that_filters_and_lookups_use_is_read_back(made):
    index = Index()
    index.apply(made, BASE)
    for shown in index.published.all():
        gateways = read_document(document_text(shown))
        view, read = shown.view, gateways.view
        assert (read.names(), read.age_key, read.terminal) == (view.names(), view.age_key, view.terminal)
        assert (read.status, read.job_type, read.operation) == (view.status, view.job_type, view.operation)
        assert (read.source, read.parent_job_id) == (view.source, view.parent_job_id)
        steps = [replace(s, started_at=None, completed_at=None, error_cut=None) for s in view.steps]
        assert (encoding.steps_of(gateways), encoding.steps_of(shown)) == (steps, view.steps)
        words = {word for step in steps for word in (step.name, step.error_message or "")} | {"nowhere"}
        for query in (JobQuery(words=frozenset({word})) for word in words):
            assert query.matches(gateways) == query.matches(shown)
        assert rest._names(gateways) == rest._names(shown)
        replies = (
            failover_status.reply(one, Resolved(one.job_id, "uuid", ()), one.job_id, BASE) for one in (gateways, shown)
        )
        assert next(replies) == next(replies)


def test_a_gateway_gives_the_job_its_revision_and_its_appliance():
    read = read_document(document_text(SHOWN), 1044, "dc1")
    assert (read.rev, read.instance) == (1044, "dc1")
    assert document_of(read) == {**document_of(SHOWN), "rev": 1044, "instance": "dc1"}
    again = encoding.revised(read, 2088)
    assert (again.rev, document_text(again)) == (2088, document_text(read_document(document_text(SHOWN), 2088, "dc1")))


def test_what_a_newer_version_adds_is_no_obstacle():
    document = document_of(SHOWN)
    progress = {**document["progress"], "basis": "stars", "percent": 7.0}
    newer = {**document, "progress": progress, "colour": "red", "source": "stars"}
    read = document_of(read_document(orjson.dumps(newer)))
    assert (read["progress"]["basis"], read["progress"]["percent"]) == ("stars", 7.0)


FIRST_VERSION = b"""{"job_id":"j","external_ids":["e"],"context_id":null,"parent_job_id":null,"child_job_ids":[],
"job_type":"failover","operation":"live","category":null,"owner":"system","status":"running","terminal":false,"error":null,
"started_at":"2025-09-22T15:12:01.000000Z","ended_at":null,"updated_at":"2025-09-22T15:12:13.000000Z",
"duration_seconds":12.0,"progress":{"percent":25.0,"basis":"history","steps_done":0,"steps_failed":0,"steps_running":1,
"steps_skipped":0,"steps_seen":1,"steps_expected":2},"forecast":{"ends_at":{"p50":"2025-09-22T15:14:01.000000Z",
"p90":"2025-09-22T15:15:01.000000Z"},"as_of":"2025-09-22T15:12:13.000000Z","runs":37,"state":"on_track",
"typical_seconds":96.0,"failure_rate":0.08,"steps_ahead":[{"name":"two","share":0.97,"typical_seconds":12.0}]},
"compared_with":{"typical_seconds":96.0,"runs":37,"percentile":50.0},"current_step":"one","steps":{"7":{"seq":1,
"name":"one","status":"running","started_at":"2025-09-22T15:12:01.000000Z","ended_at":null,"duration_seconds":12.0,
"error":null}},"stalled":false,"last_event_at":"2025-09-22T15:12:12.000000Z","last_message":{"level":"INFO","text":"t",
"at":"2025-09-22T15:12:12.000000Z"},"warnings":0,"errors":0,"metadata":{"vm_name":"v"},"source":"joblog"}"""
"""What the first version of a collector writes. Do not change it: a member that is added needs a default instead."""


def test_a_gateway_reads_the_documents_of_collectors_of_the_first_version():
    read = document_of(read_document(FIRST_VERSION, 9, "dc1"))
    assert read == {**orjson.loads(FIRST_VERSION), "rev": 9, "instance": "dc1", "failure": None}


@pytest.mark.parametrize("space", [b"\n", b"\r\n"])
def test_a_document_is_one_line_whatever_spaces_its_metadata_has(space: bytes):
    spaced = document_text(SHOWN).replace(b'"metadata":{}', b'"metadata":{"a":%b"b"}' % space)
    read = read_document(spaced)
    assert encoding.text(read).splitlines() == [encoding.text(read)]
    assert document_of(read)["metadata"] == {"a": "b"}


STEP = {"seq": 1, "name": "n", "status": "odd"} | dict.fromkeys(("started_at", "ended_at", "duration_seconds", "error"))
NO_DOCUMENTS = [b"", b"{", b"[]", b"{}", b'{"job_id":1}', document_text(SHOWN)[:-1], document_text(SHOWN)[:-2] + b"3"]
NO_DOCUMENTS += [document_text(SHOWN).replace(b'"metadata":{}', b'"metadata":' + m) for m in (b'{"n":1e999}', b"{1}")]


@pytest.mark.parametrize("body", NO_DOCUMENTS, ids=range(len(NO_DOCUMENTS)))
def test_what_is_no_document_is_refused(body):
    with pytest.raises(Unreadable):
        read_document(body)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"updated_at": at} for at in ("", "yesterday", "2025-09-22T10:00:00Z", "2025-13-22T10:00:00.000000Z")),
        *({"metadata": value} for value in (None, [1], "text", 7)),
        *({"steps": {key: STEP}} for key in ("x", "07", " 7", str(1 << 63))),
        {"warnings": 1 << 63},
        {"status": "stars"},
    ],
    ids=str,
)
def test_a_member_of_another_form_is_refused(wrong):
    assert read_document(orjson.dumps({**document_of(SHOWN), "steps": {"7": STEP}})).view.first_step == 7
    with pytest.raises(Unreadable):
        read_document(orjson.dumps({**document_of(SHOWN), **wrong}))
