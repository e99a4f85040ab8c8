"""The groups of failed jobs, compared with a list of all jobs that is searched each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from correlator.failures.failure import Failure
from correlator.failures.groups import FailedJob, Groups

MOST = 4


def failed(job_id: str, ended_at: int, fingerprint: str = "a") -> FailedJob:
    return FailedJob(job_id, ended_at, Failure(fingerprint, None, "apart", "text", "text"), "", "")


jobs = st.builds(
    failed, st.sampled_from(["j0", "j1", "j2", "j3", "j4", "j5"]), st.integers(0, 5), st.sampled_from("ab")
)
calls = st.lists(jobs | st.sampled_from(["j0", "j1", "j2"]), max_size=30)


@given(calls)
def test_the_groups_are_those_of_the_jobs_that_ended_last(made):
    groups, naive = Groups(MOST), dict[str, FailedJob]()
    for call in made:
        if isinstance(call, str):
            groups.discard(call)
            naive.pop(call, None)
            continue
        groups.put(call)
        naive[call.job_id] = call
        if len(naive) > MOST:
            del naive[min(naive.values(), key=lambda job: job.key).job_id]
    newest_first = sorted(naive.values(), key=lambda job: job.key, reverse=True)
    assert groups.older(None, len(naive)) == newest_first
    for at, job in enumerate(newest_first):
        assert groups.older(job.key, 2) == newest_first[at + 1 : at + 3]
        assert groups.newer(job.key, 2) == newest_first[max(0, at - 2) : at][::-1]
    assert len(groups) == len(naive) <= MOST
    for fingerprint in "ab":
        alike = [job for job in newest_first if job.failure.fingerprint == fingerprint]
        assert list(groups.of(fingerprint)) == alike
        assert [groups.is_known(job) for job in alike] == [job is not alike[-1] for job in alike]


def test_beyond_the_bound_it_is_said_from_when_on_all_are_here():
    groups = Groups(2)
    for n in range(4):
        groups.put(failed(f"j{n}", n))
    assert (groups.since, [job.job_id for job in groups.older(None, 9)]) == (1, ["j3", "j2"])


def test_a_job_without_a_reason_is_in_no_group_and_leaves_the_one_that_it_was_in():
    groups = Groups()
    groups.put(failed("j", 1))
    groups.put(failed("j", 1, ""))
    assert (len(groups), list(groups.of("a")), list(groups.of(""))) == (0, [], [])
