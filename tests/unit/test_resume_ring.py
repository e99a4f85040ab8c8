"""The changes that are remembered for clients that reconnect: bounded, and small whatever the jobs carry."""

import random
import tracemalloc

from correlator.model.facts import Status
from correlator.model.published import Change, JobView, PublishedJob
from correlator.pipeline.hub import OVERHEAD, PLACE, ResumeRing
from correlator.pipeline.queries import JobQuery
from correlator.sinks.streaming.subscriptions import Filter, Group

NOW = 1_758_550_000_000_000


def change(seq, job_id="j", *, status=Status.RUNNING, **more):
    old, new = JobView(job_id, Status.RUNNING, **more), JobView(job_id, status, **more)
    return Change(job_id, seq, PublishedJob(old, seq - 1, NOW), PublishedJob(new, seq, NOW))


def test_changes_are_bounded_by_count_and_by_bytes_the_oldest_go_first():
    resume_ring = ResumeRing()
    resume_ring.add(change(seq) for seq in range(1, 10_011))
    assert [resume_ring.reaches(seq) for seq in (9, 10, 10_010)] == [False, True, True]
    long = ResumeRing(max_bytes=10 * (PLACE + OVERHEAD + 100_010))
    long.add(change(seq, status=Status.FAILED, external_ids=("x" * 100_000,)) for seq in range(1, 101))
    assert long.reaches(91)
    assert not long.reaches(89)
    assert len(long.before("j", 91)) == 9


def test_several_changes_of_a_job_at_one_position_are_forgotten_one_after_the_other():
    """A job that another one took an ID from, and that left memory to make room for it."""
    resume_ring = ResumeRing(max_changes=2)
    resume_ring.add([change(1), change(1, status=Status.FAILED)])
    assert len(resume_ring.before("j", 0)) == 1
    resume_ring.add([change(2, "other")])
    assert list(resume_ring.changed()) == [("other", 2), ("j", 1)]
    resume_ring.add([change(3, "third")])
    assert list(resume_ring.changed()) == [("third", 3), ("other", 2)]


def test_changes_that_no_filter_notices_keep_nothing_of_their_job():
    resume_ring = ResumeRing(max_bytes=500 * PLACE)
    more = {"external_ids": ("x" * 50_000,), "metadata": "m" * 50_000}
    resume_ring.add(change(seq, warnings=seq, **more) for seq in range(1, 501))
    assert resume_ring.reaches(0)
    assert list(resume_ring.changed()) == [("j", 500)]
    assert resume_ring.before("j", 0) == []


def test_what_is_remembered_answers_filters_as_the_jobs_did():
    resume_ring = ResumeRing()
    more = {"job_type": "t", "operation": "o", "context_id": "c", "parent_job_id": "p", "external_ids": ("e",)}
    one = change(1, status=Status.FAILED, started_at=NOW, metadata="{}", error="x", **more)
    resume_ring.add([one])
    (old,) = resume_ring.before("j", 0)
    assert (list(resume_ring.changed()), resume_ring.reason("j")) == ([("j", 1)], None)
    for query in (
        JobQuery(status=frozenset({"failed"})),
        JobQuery(job_type=frozenset({"t"})),
        JobQuery(operation=frozenset({"o"}), context_id=frozenset({"c"})),
        JobQuery(parent_job_id=frozenset({"p"}), since=NOW),
        JobQuery(since=NOW + 1),
    ):
        for names in (None, frozenset({"e"}), frozenset({"c"}), frozenset({"other"})):
            wanted = Group(Filter(query, names))
            assert one.old is not None
            assert wanted.might_match(old) == wanted.might_match(one.old)


def test_a_job_that_another_appliance_took_over_was_the_others_before():
    resume_ring = ResumeRing(after=3)
    old, new = (PublishedJob(JobView("j", Status.RUNNING), seq, NOW, instance=f"dc{seq}") for seq in (4, 5))
    resume_ring.add([Change("j", 5, old, new)])
    assert [before.instance for before in resume_ring.before("j", 4)] == ["dc4"]
    assert (resume_ring.reaches(3), resume_ring.reaches(2)) == (True, False)


def test_the_states_and_ids_of_each_job_since_a_position_are_found_whatever_was_dropped():
    rnd, resume_ring = random.Random(1), ResumeRing(max_changes=7)
    now, changes = dict[str, PublishedJob | None](), list[Change]()
    for seq in range(1, 500):
        job_id = rnd.choice("abc")
        status = rnd.choice([*Status, None, None])
        names = tuple(sorted(rnd.sample(("e1", "e2", "e3"), rnd.randrange(3))))
        view = JobView(job_id, status, external_ids=names, warnings=seq) if status is not None else None
        new = PublishedJob(view, seq, NOW) if view is not None else None
        changes.append(Change(job_id, seq, now.get(job_id), new, None if new is not None else "gone"))
        now[job_id] = new
        resume_ring.add(changes[-1:])
        after = rnd.randrange(max(seq - 7, 0), seq + 1)
        made = [c for c in changes if c.seq > after]
        last = {c.job_id: c for c in made}
        found = [(one, at) for one, at in resume_ring.changed() if at > after]
        assert found == sorted(((c.job_id, c.seq) for c in last.values()), key=lambda c: -c[1])
        assert all(resume_ring.reason(one) == c.reason for one, c in last.items())
        for one in "abc":
            states = {content(s) for s in (*resume_ring.before(one, after), now.get(one)) if s is not None}
            # Without a change, the published state is the only one, and nobody asks for it.
            of_job = [c for c in made if c.job_id == one]
            assert not of_job or states == {content(s) for c in of_job for s in (c.old, c.new) if s is not None}
        for name in ("e1", "e2", "e3"):
            had = {s.job_id for c in made for s in (c.old, c.new) if s is not None and name in s.view.external_ids}
            has = {s.job_id for s in now.values() if s is not None and name in s.view.external_ids}
            assert had <= has | set(resume_ring.losers(name))
            assert set(resume_ring.losers(name)) <= {c.job_id for c in changes[-7:]}


def content(shown: PublishedJob) -> tuple[object, ...]:
    """What filters use of the jobs of the test above."""
    return shown.job_id, shown.view.status, shown.view.external_ids


def test_the_resume_ring_holds_no_more_bytes_than_it_counts():
    def grown(max_bytes: int) -> int:
        before = tracemalloc.get_traced_memory()[0]
        resume_ring = ResumeRing(max_changes=10**9, max_bytes=max_bytes)
        for seq in range(1, 6_001):
            resume_ring.add(
                [change(seq, f"job-{seq}", status=Status.FAILED, external_ids=(f"external-{seq}",), job_type="t")]
            )
        assert not resume_ring.reaches(1)
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        assert grown(1024 * 1024) < 1024 * 1024
    finally:
        tracemalloc.stop()
