"""The encoded documents: each made once per revision, within a bound."""

from msgspec.structs import replace

from correlator.jobs.encoding import OVERHEAD, Documents
from correlator.model.facts import Status
from correlator.model.published import Change, JobView, PublishedJob
from correlator.model.rows import StepRecord
from tests.support.documents import document_text, read_document
from tests.support.held import held


def shown(job_id="j", rev=1, **more):
    return PublishedJob(JobView(job_id, Status.RUNNING, **more), rev, 0)


def test_a_document_is_made_once_per_revision():
    documents = Documents()
    old, new = shown(rev=1), shown(rev=2, error="x")
    bodies = [documents.encoded(s) for s in (old, old, new, new)]
    assert len({*map(id, bodies)}) == 2
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
    assert documents.size == 10 * room
    full = held(documents)
    for n in range(30):
        documents.forget([Change(f"{n:02}", n, shown(), None, "gone")])
    assert documents.size == 0
    assert held(documents) < full / 3


def test_a_walk_over_more_jobs_than_fit_finds_as_many_again_as_fit():
    room = len(Documents().encoded(shown("00"))) + OVERHEAD
    documents = Documents(10 * room)
    jobs = [shown(f"{n:02}") for n in range(30)]
    first, second = ([documents.encoded(job, all_jobs=True) for job in jobs] for _ in range(2))
    assert sum(one is other for one, other in zip(first, second, strict=True)) == 10


def test_a_document_asked_for_by_itself_is_kept_in_a_full_cache_and_one_too_large_evicts_none():
    room = len(Documents().encoded(shown("00"))) + OVERHEAD
    documents, hot = Documents(10 * room), shown("hh")
    for n in range(10):
        documents.encoded(shown(f"{n:02}"), all_jobs=True)
    body = documents.encoded(hot)
    documents.encoded(shown("large", error="x" * 10 * room))
    assert documents.encoded(hot) is body


def test_documents_to_compare_with_are_bounded_in_bytes_and_only_of_running_jobs_in_memory():
    documents = Documents(max_followed=200_000)

    def job(number: int, **more: object) -> PublishedJob:
        steps = (StepRecord(1, "s", 1, "failed", error_message=f"{number:08}" * 1_000),)
        return read_document(document_text(shown(f"{number:02}", steps=steps, **more)))

    empty, jobs = held(documents), [job(number) for number in range(40)]
    for number, old in enumerate(jobs):
        documents.patch(old, job(number, error="x"))
    assert 10 * 8_000 < held(documents) - empty < 400_000
    for number, old in enumerate(jobs):
        if number % 2:
            ended = read_document(document_text(shown(old.job_id)))
            documents.patch(old, replace(ended, view=replace(ended.view, status=Status.COMPLETED)))
        else:
            documents.forget([Change(old.job_id, 1, old, None, "gone")])
    assert held(documents) - empty < 8_000


def test_a_job_that_left_memory_gives_the_room_of_both_its_forms_back():
    documents = Documents()
    empty = held(documents)
    for steps in (True, False):
        documents.encoded(shown(error="x" * 4_000), steps=steps)
    documents.forget([Change("j", 1, shown(), None, "gone")])
    assert documents.size == 0
    assert held(documents) - empty < 1_000
