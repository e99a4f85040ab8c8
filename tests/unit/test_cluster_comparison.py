"""The comparison of memory with the stream finds each difference once, and nothing that is written anyway."""

from correlator.jobs.index import Index
from correlator.sinks.cluster import stored_document
from correlator.sinks.cluster.comparison import StoredValue, StreamComparison
from tests.support.mqtt_harness import NOW, gone, reading


def index(*job_ids):
    index = Index()
    index.loading = False
    index.apply([reading(job_id) for job_id in job_ids], NOW)
    return index


def stored(index, job_id):
    return StoredValue(job_id, stored_document.encode(index.published.get(job_id)))


def missing(comparison):
    return [job_id for part in comparison.to_write(()) for job_id in part]


def test_equal_documents_and_markers_of_removed_jobs_are_no_difference():
    held = index("a", "b")
    comparison = StreamComparison(held.published, set())
    assert comparison.differing([stored(held, "a"), stored(held, "b"), StoredValue("removed", None)]) == []
    assert missing(comparison) == []
    assert comparison.compared == 2


def test_another_document_a_stray_one_a_marker_and_a_missing_one_are_differences():
    held = index("other", "removed", "missing")
    comparison = StreamComparison(held.published, set())
    slice_ = [StoredValue("other", b"{}"), StoredValue("stray", b"{}"), StoredValue("removed", None)]
    assert comparison.differing(slice_) == ["other", "stray", "removed"]
    assert missing(comparison) == ["missing"]


def test_jobs_that_are_touched_meanwhile_are_not_compared():
    held = index("a", "b", "c")
    touched: set[str] = set()
    comparison = StreamComparison(held.published, touched)
    touched |= {"a", "stray"}
    assert comparison.differing([StoredValue("a", b"{}"), StoredValue("stray", b"{}"), stored(held, "b")]) == []
    touched.add("c")
    assert missing(comparison) == []


def test_a_job_that_leaves_memory_before_its_turn_is_not_missing():
    held = index("a")
    comparison = StreamComparison(held.published, set())
    parts = comparison.to_write(())
    held.apply([gone("a")], NOW)
    assert [job_id for part in parts for job_id in part] == []


def test_jobs_that_run_are_written_first_and_of_both_kinds_the_newest():
    held = index()
    for n, job_id in enumerate("abcdefgh"):
        ended = {"status": "completed"} if job_id in "aceg" else {}
        held.apply([reading(job_id, started=n - 20, **ended)], NOW)
    comparison = StreamComparison(held.published, set())
    different = comparison.differing(
        [stored(held, "h"), StoredValue("c", b"{}"), StoredValue("left", b"{}"), StoredValue("b", b"")]
    )
    assert [job_id for part in comparison.to_write(different) for job_id in part] == [*"fdb", *"geca", "left"]
