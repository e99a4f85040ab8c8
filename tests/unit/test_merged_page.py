"""Pages of several appliances, merged newest first: nothing is missing, nothing is repeated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from correlator.gateway.archive import MergedPage
from correlator.jobs.directory import Place, place_of
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.rows import StepRecord
from correlator.pipeline.queries import OtherJobs


def job(started: int | None, job_id: str, *steps: int) -> PublishedJob:
    records = tuple(map(StepRecord, steps))
    return PublishedJob(JobView(job_id, Status.RUNNING, started_at=started, steps=records), 0, 0)


class Appliance:
    """An ordered list that is given in pages of `sizes`, in turn: also empty ones, as a slow search gives them."""

    def __init__(self, jobs: list[PublishedJob], sizes: list[int]) -> None:
        self.jobs = sorted(jobs, key=place_of, reverse=True)
        self.sizes = sizes
        self.asked = 0

    def page(self, before: Place | None, limit: int) -> tuple[list[PublishedJob], Place | None]:
        rest = [j for j in self.jobs if before is None or place_of(j) < before]
        size = min(limit, self.sizes[self.asked % len(self.sizes)])
        self.asked += 1
        if size >= len(rest):
            return rest, None
        if size == 0:  # searched, down to just above its next job, and found nothing
            started, job_id = place_of(rest[0])
            reached = (started, job_id + "~")
            return ([], reached) if before is None or reached < before else (rest[:1], place_of(rest[0]))
        return rest[:size], place_of(rest[size - 1])


def read(
    appliances: dict[str, Appliance], before: Place | None, limit: int, away: frozenset[str] = frozenset()
) -> OtherJobs[PublishedJob]:
    page = MergedPage(appliances, before, limit)
    while due := page.due():
        for instance, place in due:
            if instance in away:
                page.drop(instance, f"{instance} is away")
            else:
                page.add(instance, *appliances[instance].page(place, limit))
    return page.result()


def read_all(appliances: dict[str, Appliance], limit: int, away: frozenset[str] = frozenset()) -> list[PublishedJob]:
    found, before = list[PublishedJob](), None
    for _ in range(1000):
        page = read(appliances, before, limit, away)
        assert len(page.jobs) <= limit
        found += page.jobs
        if (before := page.next_before) is None:
            return found
    raise AssertionError("the list does not end")


STARTS = st.one_of(st.none(), st.integers(1, 6))
JOBS = st.dictionaries(st.sampled_from("abcdefghij"), STARTS, max_size=10).map(
    lambda d: [job(s, i) for i, s in d.items()]
)
APPLIANCES = st.dictionaries(
    st.sampled_from(("dc1", "dc2", "dc3", "dc4")),
    st.builds(Appliance, JOBS, st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)),
    min_size=1,
)


@given(APPLIANCES, st.integers(1, 6))
def test_the_merged_pages_are_one_sorted_list_without_a_loss_or_a_repeat(appliances, limit):
    everything = {place_of(j) for a in appliances.values() for j in a.jobs}
    assert [place_of(j) for j in read_all(appliances, limit)] == sorted(everything, reverse=True)


@given(APPLIANCES, st.integers(1, 6), st.frozensets(st.sampled_from(("dc1", "dc2"))))
def test_an_appliance_that_is_away_takes_only_its_own_jobs_out_of_the_list(appliances, limit, away):
    others = {place_of(j) for name, a in appliances.items() if name not in away for j in a.jobs}
    assert [place_of(j) for j in read_all(appliances, limit, away)] == sorted(others, reverse=True)
    reason = read(appliances, None, limit, away).reason
    assert reason == ("; ".join(f"{n} is away" for n in sorted(away & appliances.keys())) or None)


def test_a_page_is_cut_at_the_appliance_that_was_read_least_far():
    page = MergedPage(("dc1", "dc2"), None, 10)
    page.add("dc1", [job(9, "a"), job(5, "b"), job(1, "c")], (1, "c"))
    page.add("dc2", [job(7, "x")], (4, "w"))
    assert [j.job_id for j in page.result().jobs] == ["a", "x", "b"]
    assert page.result().next_before == (4, "w")
    assert page.due() == [("dc2", (4, "w"))]


def test_an_appliance_that_ended_is_not_asked_again():
    page = MergedPage(("dc1", "dc2"), (9, "z"), 10)
    assert page.due() == [("dc1", (9, "z")), ("dc2", (9, "z"))]
    page.add("dc1", [], None)
    page.add("dc2", [], (8, "y"))
    assert page.due() == [("dc2", (8, "y"))]
    page.add("dc2", [], None)
    assert page.due() == []
    assert page.result() == OtherJobs([], None, None)


def test_of_two_jobs_with_one_place_the_newer_is_listed_and_then_that_of_the_first_name():
    older, newer = job(5, "same", 7), job(5, "same")
    for first, second, listed in ((older, newer, newer), (newer, older, newer)):
        page = MergedPage(("dc1", "dc2"), None, 1)
        page.add("dc1", [first], None)
        page.add("dc2", [second], None)
        assert page.result().jobs == [listed]
        assert page.result().next_before is None
    one, other = job(5, "same"), job(5, "same")
    for order in (("dc1", "dc2"), ("dc2", "dc1")):
        page = MergedPage(("dc1", "dc2"), None, 1)
        for instance in order:
            page.add(instance, [one if instance == "dc1" else other], None)
        assert page.result().jobs[0] is one


def test_the_reason_of_a_database_that_is_away_stays_through_further_pages():
    page = MergedPage(("dc1",), None, 2)
    page.add("dc1", [job(9, "a")], (9, "a"), "dc1: the database cannot be reached")
    page.add("dc1", [job(8, "b")], None)
    assert page.result() == OtherJobs([job(9, "a"), job(8, "b")], None, "dc1: the database cannot be reached")
