"""The changes that are remembered for clients that reconnect: bounded, and small whatever the jobs carry."""

import random
import tracemalloc

from correlator.jobs.index import Index
from correlator.jobs.model.changes import Change
from correlator.jobs.model.facts import Reading, Status
from correlator.jobs.model.rows import JobRecord
from correlator.jobs.model.views import JobView, PublishedJob
from correlator.pipeline.local_hub import LocalHub
from correlator.pipeline.queries import JobQuery
from correlator.pipeline.resume_ring import OVERHEAD, PLACE, Past
from correlator.sinks.streaming.filters import Filter

NOW = 1_758_550_000_000_000


def change(seq, job_id="j", *, status=Status.RUNNING, **more):
    old, new = JobView(job_id, Status.RUNNING, **more), JobView(job_id, status, **more)
    return Change(job_id, seq, PublishedJob(old, seq - 1, NOW), PublishedJob(new, seq, NOW))


def nothing(job_id: str) -> None:
    """No job is in memory."""


def test_metadata_that_is_read_again_with_each_change_is_not_kept_once_per_change():
    index = Index()
    hub = LocalHub(index)
    tracemalloc.start()
    try:
        for turn in range(20):
            readings = [
                Reading(
                    f"j{n}",
                    index.advance_clock(),
                    JobRecord(f"j{n}", metadata=f'{{"turn":{turn},"x":"{"x" * 100_000}"}}'),
                    (),
                )
                for n in range(30)
            ]
            hub.publish(index.apply(readings, NOW + turn))
            del readings
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(hub.changes_since(0) or ()) == 20 * 30
    assert held < 2 * 30 * 100_000, "what the index itself holds, and little more"


def test_changes_are_bounded_by_count_and_by_bytes_the_oldest_go_first():
    past = Past(max_changes=5)
    past.add(change(seq) for seq in range(1, 11))
    assert [c.seq for c in past.since(5, nothing)] == [6, 7, 8, 9, 10]
    assert [past.reaches(seq) for seq in (4, 5, 10)] == [False, True, True]
    long = Past(max_bytes=10 * (PLACE + OVERHEAD + 100_010))
    long.add(change(seq, status=Status.FAILED, external_ids=("x" * 100_000,)) for seq in range(1, 101))
    assert [c.seq for c in long.since(90, nothing)] == list(range(91, 101))
    assert not long.reaches(89)


def test_changes_that_no_filter_notices_keep_nothing_of_their_job():
    past = Past(max_bytes=100_000)
    past.add(change(seq, external_ids=("x" * 50_000,), warnings=seq) for seq in range(1, 501))
    assert past.reaches(0)
    now = change(501, external_ids=("x" * 50_000,)).new
    assert [(c.old, c.new) for c in past.since(0, {"j": now}.get)] == [(now, now)] * 500


def test_what_is_remembered_answers_filters_as_the_jobs_did():
    past = Past()
    one = change(
        1,
        status=Status.FAILED,
        job_type="t",
        operation="o",
        context_id="c",
        parent_job_id="p",
        external_ids=("e",),
        started_at=NOW,
        metadata="{}",
        error="x",
    )
    past.add([one])
    (kept,) = past.since(0, {"j": one.new}.get)
    assert (kept.job_id, kept.seq, kept.reason) == ("j", 1, None)
    for query in (
        JobQuery(status=frozenset({"failed"})),
        JobQuery(status=frozenset({"running"})),
        JobQuery(job_type=frozenset({"t"})),
        JobQuery(operation=frozenset({"o"}), context_id=frozenset({"c"})),
        JobQuery(parent_job_id=frozenset({"p"}), since=NOW),
        JobQuery(since=NOW + 1),
    ):
        for names in (None, frozenset({"e"}), frozenset({"c"}), frozenset({"other"})):
            wanted = Filter(query, names)
            assert kept.old is not None
            assert kept.new is not None
            assert [wanted.might_match(s) for s in (kept.old, kept.new)] == [
                wanted.might_match(s) for s in (one.old, one.new)
            ]


def test_each_change_keeps_both_states_of_its_job_whichever_others_were_dropped():
    rnd, past, now, changes = random.Random(1), Past(max_changes=7), dict[str, PublishedJob | None](), list[Change]()
    for seq in range(1, 400):
        job_id = rnd.choice("abc")
        status = rnd.choice([*Status, None, None])
        new = PublishedJob(JobView(job_id, status, warnings=seq), seq, NOW) if status is not None else None
        changes.append(Change(job_id, seq, now.get(job_id), new))
        now[job_id] = new
        past.add(changes[-1:])
        kept = past.since(seq - 7, now.get)
        assert [c.seq for c in kept] == [c.seq for c in changes[-7:]]
        for one, known in zip(kept, changes[-7:], strict=True):
            for a, b in ((one.old, known.old), (one.new, known.new)):
                assert (a and (a.job_id, a.view.status)) == (b and (b.job_id, b.view.status))
