"""Groups of the jobs that failed alike, by pages and over appliances, and what surrounds a failed job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.errors import SourceUnavailable
from correlator.failures.failure import Failure
from correlator.failures.groups import FailedJob
from correlator.jobs.encoding import rfc3339
from correlator.jobs.failure_context import burst, difference, next_runs, similar
from correlator.model.document import Failure as Published
from correlator.model.facts import Status
from correlator.model.published import JobView, PublishedJob
from correlator.model.replies import Burst, FailureGroup, LongStep, NextRuns
from correlator.model.rows import StepRecord
from correlator.pipeline.queries import DescribeFailure, FailedAlike
from tests.support.answering_collectors import AWAY, ArchiveInMemory, Collectors

SECOND = 1_000_000
NOW = 1_758_550_000 * SECOND
DAY = 86_400 * SECOND


def failed(name: str, at: int, fingerprint: str = "f", *, vm: str = "v", operation: str = "live") -> FailedJob:
    """A job that failed `at` seconds after `NOW`."""
    failure = Failure(fingerprint, f"step-{fingerprint}", "stated", f"text of {name}", f"template {fingerprint} here")
    return FailedJob(name, NOW + at * SECOND, failure, operation, vm)


def knowing(**jobs: Sequence[FailedJob]) -> Collectors:
    """Collectors that know these failed jobs."""
    collectors = Collectors(**{name: ArchiveInMemory() for name in jobs})
    for name, some in jobs.items():
        failures = collectors.hubs[name].index.failures
        failures.has_read(NOW - DAY, all_of_it=True)
        for job in some:
            failures.groups.put(job)
    return collectors


# -- groups


class Naive:
    """A group as it follows from all jobs at once."""

    def __init__(self, jobs: Sequence[tuple[str, FailedJob]]) -> None:
        newest = sorted(jobs, key=lambda one: one[1].ended_at, reverse=True)
        self.last = newest[0][1].ended_at
        self.brief = (
            newest[0][1].failure.fingerprint,
            len(jobs),
            rfc3339(newest[-1][1].ended_at),
            rfc3339(self.last),
            len({(name, job.vm) for name, job in jobs}),
            sorted(Counter(rfc3339(job.ended_at)[:10] for _, job in jobs).items()),
            sorted(job.operation for job in {job.operation: job for _, job in jobs}.values()),
        )


def brief(group: FailureGroup) -> Any:
    days = [(one.day, one.count) for one in group.days]
    name, operations = group.fingerprint, sorted(group.operations)
    return name, group.count, group.first_at, group.last_at, group.vm_count, days, operations


times, operations = st.integers(-200_000, 200_000), st.sampled_from(("live", "test"))
jobs_of_fleets = st.dictionaries(
    st.sampled_from(("a1", "a2", "a3")),
    st.lists(st.tuples(times, st.sampled_from("fgh"), st.sampled_from("vw"), operations), max_size=8),
    min_size=1,
)


@given(
    jobs_of_fleets, st.integers(1, 3), st.sampled_from(("", "live")), st.sampled_from(("", "v")),
    st.sampled_from((None, NOW)),
)  # fmt: skip
async def test_pages_of_failures_have_each_group_once_with_all_its_jobs(fleet, limit, operation, vm, since):
    made = {
        name: [failed(f"{name}-{n}", at, f, vm=v, operation=o) for n, (at, f, v, o) in enumerate(rows)]
        for name, rows in fleet.items()
    }
    groups: dict[str, list[tuple[str, FailedJob]]] = {}
    for name, jobs in made.items():
        for job in jobs:
            wanted = (not operation or job.operation == operation) and (not vm or job.vm == vm)
            if wanted and (since is None or job.ended_at >= since):
                groups.setdefault(job.failure.fingerprint, []).append((name, job))
    naive = sorted((Naive(jobs) for jobs in groups.values()), key=lambda n: (n.last, n.brief[0]), reverse=True)
    collectors = knowing(**made)
    hubs: list[Any] = [collectors.archive(), *([next(iter(collectors.hubs.values()))] if len(made) == 1 else [])]
    for hub in hubs:
        found, before = list[FailureGroup](), None
        while True:
            page = await hub.ask(FailedAlike(limit, since, operation, vm, before))
            assert len(page.groups) <= limit
            assert (page.reaches, page.reason) == (NOW - DAY, None)
            found += page.groups
            if (before := page.following) is None:
                break
        assert [brief(group) for group in found] == [one.brief for one in naive]


async def test_a_group_names_the_newest_jobs_and_the_appliances_that_know_it():
    collectors = knowing(
        a1=[failed("old", 1), failed("other", 2, "g")], a2=[failed("new", 3), failed("newest", 4)], a3=[]
    )
    one, other = (await collectors.archive().ask(FailedAlike(9))).groups
    assert [(job.job_id, job.instance) for job in one.jobs] == [("newest", "a2"), ("new", "a2"), ("old", "a1")]
    assert (one.instances, other.instances, one.text) == (("a1", "a2"), ("a1",), "text of newest")


async def test_an_appliance_that_does_not_answer_is_named_and_the_others_are_counted():
    collectors = knowing(a1=[failed("j", 1)], a2=[failed("k", 2)])
    collectors.replies["a2"] = AWAY
    page = await collectors.archive().ask(FailedAlike(9))
    assert [group.count for group in page.groups] == [1]
    assert page.reason is not None
    assert page.reason.startswith("a2: ")
    collectors.replies["a1"] = AWAY
    with pytest.raises(SourceUnavailable, match=r"a1: .*a2: "):
        await collectors.archive().ask(FailedAlike(9))


async def test_while_failed_jobs_are_being_read_the_answer_says_so_and_how_far():
    collectors = knowing(a1=[failed("j", 1)])
    collectors.hubs["a1"].index.failures.has_read(NOW - SECOND)
    page = await collectors.archive().ask(FailedAlike(9))
    assert (page.reaches, page.reason) == (NOW - SECOND, "failed jobs of the past are still being read")


@pytest.mark.parametrize("appliances", [1, 2])
async def test_groups_with_long_names_come_some_at_a_time(appliances):
    """A reply to a gateway has at most 900,000 bytes."""
    names = [f"{number:04}" + "ü" * 4_000 for number in range(25)]
    jobs = [failed(f"j{n}-{f}", n, f"f{f}", vm=name) for f in range(12) for n, name in enumerate(names)]
    collectors = knowing(**{f"a{number}": jobs for number in range(appliances)})
    found, before, pages = list[FailureGroup](), None, 0
    while pages == 0 or before is not None:
        page = await collectors.archive().ask(FailedAlike(100, before=before))
        found, before, pages = found + list(page.groups), page.following, pages + 1
    assert ([group.count for group in found], pages > 1) == ([25 * appliances] * 12, True)


async def test_what_was_masked_and_what_is_similar_is_added_up_over_the_fleet():
    collectors = knowing(
        a1=[failed("j", 1), failed("k", 2), failed("l", 3, "g")], a2=[failed("m", 4), failed("n", 5, "g")]
    )
    about = await collectors.archive().ask(DescribeFailure("f"))
    assert about.template == "template f here"
    assert sorted((one.text, one.count) for one in about.variants) == [(f"text of {j}", 1) for j in "jkm"]
    assert [(one.fingerprint, one.count, one.word, one.other_word) for one in about.similar] == [("g", 2, "f", "g")]
    assert about.next_runs.examined == 3


# -- what surrounds a failed job


def view(
    name: str, *steps: tuple[str, float], status: Status = Status.COMPLETED, at: int = 0, took: int = 9
) -> JobView:
    rows = tuple(
        StepRecord(n, step, n, "completed", NOW, NOW + round(lasted * SECOND)) for n, (step, lasted) in enumerate(steps)
    )
    start = NOW + at * SECOND
    metadata = '{"vm_name": "v"}'
    end = start + 9 * SECOND
    return JobView(name, status, started_at=start, ended_at=end, steps=rows, operation="live", metadata=metadata)


def test_steps_that_nine_of_ten_runs_had_are_missing_and_longer_ones_are_named():
    runs = [view(f"r{n}", ("a", 1 + n), ("b", 5), *([("c", 1)] if n else [])) for n in range(10)]
    job = view("j", ("a", 11), ("d", 99))
    found = difference(job, runs, "v")
    assert found is not None
    assert (found.runs, found.vm_name, found.missing) == (10, "v", ("b", "c"))
    assert found.longer == (LongStep("a", 11, 10),)
    assert difference(job, runs[:2], "v") is None


def test_a_step_that_one_run_in_five_lacked_is_not_missing():
    runs = [view(f"r{n}", ("a", 1), *([("b", 1)] if n % 5 else [])) for n in range(20)]
    found = difference(view("j", ("a", 1)), runs, None)
    assert found is not None
    assert found.missing == ()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([0, 30, 60, 91], Burst(3, 2, 60.0)),
        ([0, 30], None),
        ([0, 31, 62], None),
        ([-10, 0, 10], Burst(3, 2, 20.0)),
    ],
)
def test_a_burst_has_no_gap_of_more_than_half_a_minute(ends, expected):
    jobs = [failed(f"j{at}", at, "f" if n < 2 else "g") for n, at in enumerate(ends)]
    job = next(job for job in jobs if job.ended_at == NOW)
    older = sorted((one for one in jobs if one.key < job.key), key=lambda one: one.key, reverse=True)
    newer = sorted((one for one in jobs if one.key > job.key), key=lambda one: one.key)
    assert burst(job, older, newer) == expected


@pytest.mark.parametrize(
    ("status", "fingerprint", "known_since", "expected"),
    [
        (Status.COMPLETED, None, 0, NextRuns(1, 1, 0, 0, 0, (29.0,))),
        (Status.FAILED, "f", 0, NextRuns(1, 0, 1, 0, 0, ())),
        (Status.FAILED, "g", 0, NextRuns(1, 0, 0, 1, 0, ())),
        (Status.CANCELLED, None, 0, NextRuns(1, 0, 0, 0, 1, ())),
        (Status.COMPLETED, None, NOW + 1, NextRuns(1, 0, 0, 0, 1, ())),
    ],
)
def test_the_next_run_of_the_same_operation_on_the_vm_counts(status, fingerprint, known_since, expected):
    def run(at: int, status: Status, fingerprint: str | None) -> PublishedJob:
        why = Published(fingerprint, "s", "stated", "text", "new") if fingerprint else None
        return PublishedJob(view(f"r{at}", status=status, at=at), 1, 1, failure=why)

    runs = [run(40, Status.COMPLETED, None), run(20, status, fingerprint), run(-20, Status.COMPLETED, None)]
    assert next_runs([failed("j", 0)], runs, {"v": known_since}) == expected


def test_failures_are_similar_if_one_word_of_their_texts_or_their_step_differs():
    def other(template: str, step: str | None = None) -> FailedJob:
        return FailedJob("k", NOW, Failure("g", step, "stated", "text", template), "live", "v")

    job = FailedJob("j", NOW, Failure("f", "s", "stated", "text", "no space left on <path>"), "live", "v")
    found = similar(job, other("no space left on <dev>"), 7)
    assert found is not None
    assert (found.fingerprint, found.count, found.word, found.other_word) == ("g", 7, "<path>", "<dev>")
    assert similar(job, other("no inode left at <path>"), 7) is None
    assert similar(job, other("no space left"), 7) is None
    found = similar(job, other("no space left on <path>", "t"), 7)
    assert found is not None
    assert (found.word, found.other_word) == ("s", "t")
