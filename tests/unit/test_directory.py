"""The order in which jobs are listed, kept while they come, change and go."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs.directory import Names, Order, place_of
from correlator.jobs.remote import Marks, RemoteJobs
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.pipeline.queries import JobQuery
from tests.support.held import held

PLACES = st.tuples(st.integers(0, 5), st.text("abc", max_size=2))


class SmallChunks(Order):
    CHUNK = 4


@given(st.lists(PLACES), st.one_of(st.none(), PLACES), st.integers(0, 40))
def test_the_newest_places_before_one_are_those_of_a_sorted_list(toggled, before, most):
    order, held = SmallChunks(), set[tuple[int, str]]()
    for place in toggled:
        if place in held:
            order.remove(place)
            held.remove(place)
        else:
            order.add(place)
            held.add(place)
    expected = sorted((p for p in held if before is None or p < before), reverse=True)
    assert order.newest(before, most) == expected[:most]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 9))), max_size=30))
def test_jobs_that_come_start_anew_and_leave_are_listed_the_newest_first(steps):
    jobs = RemoteJobs(Marks())
    for seq, (job_id, started) in enumerate(steps, 1):
        if started == 9:
            jobs.remove(job_id, seq, "retention")
        else:
            jobs.put(PublishedJob(JobView(job_id, Status.RUNNING, started_at=started), seq, 0))
    assert jobs.newest(None, 100) == sorted(jobs.all(), key=place_of, reverse=True)


@given(
    st.builds(
        JobQuery,
        status=st.frozensets(st.sampled_from(["running", "failed"]), max_size=1),
        context_id=st.frozensets(st.sampled_from("cd"), max_size=1),
        instance=st.frozensets(st.sampled_from(["dc1", "dc2"])),
        text=st.sampled_from(["", "J1", "x"]),
        words=st.frozensets(st.sampled_from(["op", "zz"]), max_size=1),
        since=st.one_of(st.none(), st.integers(0, 3)),
        until=st.one_of(st.none(), st.integers(0, 3)),
    ),
    st.sampled_from([Status.RUNNING, Status.FAILED]),
    st.sampled_from(["c", "d", None]),
    st.one_of(st.none(), st.integers(0, 3)),
    st.sampled_from(["dc1", ""]),
)
def test_a_job_matches_if_each_member_of_the_query_allows_it(query, status, context, started, instance):
    view = JobView("j1", status, context_id=context, started_at=started, operation="Op")
    shown = PublishedJob(view, 1, 0, instance=instance)
    at = started or 0
    expected = (
        (not query.status or status.value in query.status)
        and (not query.context_id or context in query.context_id)
        and (not query.instance or instance in query.instance)
        and (query.since is None or at >= query.since)
        and (query.until is None or at < query.until)
        and query.text.lower() in "j1"
        and all(word == "op" for word in query.words)
    )
    assert query.matches(shown) == expected


# -- Names: any ID → the jobs that carry it, and the newest of them, which owns it


NEVER = (0, 0, "")


class World:
    """Jobs with an age, and the names they carry."""

    def __init__(self):
        self.ages: dict[str, tuple[int, int, str]] = {}
        self.carried: dict[str, Any] = {}
        self.names = Names(lambda job_id: self.ages[job_id])

    def move(self, job_id, names, started=0):
        old, was = self.carried.get(job_id, ()), self.ages.get(job_id, NEVER)
        self.ages[job_id], self.carried[job_id] = (started, 0, job_id), names
        return self.names.move(job_id, old, was, names, self.ages[job_id])


carried = st.frozensets(st.sampled_from("vwxyz"))


@given(st.lists(st.tuples(st.sampled_from("abcd"), carried, st.integers(0, 3)), max_size=20))
def test_after_any_moves_each_name_leads_to_those_that_carry_it_now_by_their_age(moves):
    world = World()
    for job_id, names, started in moves:
        owners = {name: world.names.owner(name) for name in "vwxyz"}
        moved = world.move(job_id, names, started)
        for name in "vwxyz":
            now = world.names.owner(name)
            assert moved.get(name, set()) == ({owners[name], now} - {None} if owners[name] != now else set())
    for name in "vwxyz":
        found = [job_id for job_id, names in world.carried.items() if name in names]
        assert list(world.names.get(name)) == sorted(found, key=lambda j: world.ages[j], reverse=True)
    fresh = World()
    for job_id, names in world.carried.items():
        fresh.move(job_id, names, world.ages[job_id][0])
    assert held(world.names) < held(fresh.names) + 300, "a name that nobody carries takes more"
