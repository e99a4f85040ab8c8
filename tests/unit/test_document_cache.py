"""The encoded documents: each made once per revision, within a bound."""

import pytest
from msgspec.structs import replace

from correlator.jobs import encoding
from correlator.jobs.encoding import OVERHEAD, Documents
from correlator.model.facts import Status
from correlator.model.published import Change, JobView, PublishedJob
from correlator.model.rows import StepRecord
from tests.support.documents import document_text, read_document


def shown(job_id="j", rev=1, **more):
    return PublishedJob(JobView(job_id, Status.RUNNING, **more), rev, 0)


@pytest.fixture
def made(monkeypatch):
    """The documents that were made."""
    made = []
    document = encoding.document

    def counted(shown, *args, **options):
        made.append((shown.job_id, shown.rev))
        return document(shown, *args, **options)

    monkeypatch.setattr(encoding, "document", counted)
    return made


def test_a_document_is_made_once_per_revision(made):
    documents = Documents()
    old, new = shown(rev=1), shown(rev=2, error="x")
    bodies = [documents.encoded(s) for s in (old, old, new, new)]
    assert made == [("j", 1), ("j", 2)]
    assert bodies == [document_text(s) for s in (old, old, new, new)]


def test_two_readings_of_a_job_outside_memory_are_two_documents_though_their_rev_is_equal():
    documents = Documents()
    one, other = shown(rev=7, error="one"), shown(rev=7, error="other")
    assert documents.encoded(one) != documents.encoded(other)


def test_what_is_kept_is_bounded_in_bytes_and_a_changed_job_gives_its_room_back():
    room = len(Documents().encoded(shown("00"))) + OVERHEAD
    documents = Documents(10 * room)
    for n in range(30):
        documents.encoded(shown(f"{n:02}"))
        assert documents.size <= 10 * room
    assert len(documents._cached) == 10
    for n in range(30):
        documents.forget([Change(f"{n:02}", n, shown(), shown())])
    assert (len(documents._cached), documents.size) == (0, 0)


def test_a_walk_over_more_jobs_than_fit_finds_as_many_again_as_fit(made):
    room = len(Documents().encoded(shown("00"))) + OVERHEAD
    documents = Documents(10 * room)
    jobs = [shown(f"{n:02}") for n in range(30)]
    for _ in range(2):
        made.clear()
        for job in jobs:
            documents.encoded(job, all_jobs=True)
    assert len(made) == 20


def test_a_document_asked_for_by_itself_is_kept_in_a_full_cache_and_one_too_large_evicts_none(made):
    room = len(Documents().encoded(shown("00"))) + OVERHEAD
    documents, hot = Documents(10 * room), shown("hh")
    for n in range(10):
        documents.encoded(shown(f"{n:02}"), all_jobs=True)
    documents.encoded(hot)
    documents.encoded(shown("large", error="x" * 10 * room))
    made.clear()
    documents.encoded(hot)
    assert made == []


def test_documents_to_compare_with_are_bounded_in_bytes_and_only_of_running_jobs_in_memory():
    documents, steps = Documents(max_followed=200_000), (StepRecord(1, "s", 1, "failed", error_message="x" * 8_000),)
    jobs = [read_document(document_text(shown(f"{number:02}", steps=steps))) for number in range(40)]
    for old in jobs:
        documents.patch(old, replace(old, stalled=True))
    followed = documents._followed
    assert 10 < len(followed) <= 200_000 // 8_000
    documents.patch(jobs[39], replace(jobs[39], view=replace(jobs[39].view, status=Status.COMPLETED)))
    documents.forget([Change("38", 1, jobs[38], None, "gone")])
    assert not {"38", "39"} & set(followed)
    documents.forget(Change(f"{number:02}", 2, jobs[number], None, "gone") for number in range(38))
    assert (len(followed), documents._followed_size) == (0, 0)


def test_a_job_that_left_memory_gives_the_room_of_both_its_forms_back():
    documents = Documents()
    for steps in (True, False):
        documents.encoded(shown(), steps=steps)
    documents.forget([Change("j", 1, shown(), None, "gone")])
    assert (len(documents._cached), documents.size) == (0, 0)
