"""Jobs that are silent are read rarely, and never too rarely; a sign of life is enough to be read at once."""

from __future__ import annotations

import itertools

from correlator.sources.tables.reconcile import Cadence

JOBS = {f"job-{n}" for n in range(4_000)}
LONG_SILENT = 100_000.0


def polls(cadence: Cadence, jobs: set[str], first: int, last: int) -> list[list[str]]:
    """What is due at each second."""
    return [cadence.due(jobs, lambda _: LONG_SILENT, float(now)) for now in range(first, last)]


def test_four_thousand_silent_jobs_are_read_evenly_over_the_longest_interval():
    cadence = Cadence(1.0, 120.0)
    read = polls(cadence, JOBS, 0, 1_200)
    sizes = [len(r) for r in read]
    assert sum(sizes) <= 4_000 * 1_200 / 120
    assert max(sizes) < 3 * 4_000 / 120


def test_each_silent_job_is_read_within_the_longest_interval():
    cadence = Cadence(1.0, 120.0)
    for first in (0, 121, 242):
        assert {i for read in polls(cadence, JOBS, first, first + 121) for i in read} == JOBS


def test_a_touched_job_is_read_at_the_next_poll_and_then_every_second_for_a_while():
    cadence = Cadence(1.0, 120.0)
    polls(cadence, JOBS, 0, 130)
    cadence.touch(["job-7", "unknown"], 130.5)
    read = polls(cadence, JOBS, 131, 141)
    assert [("job-7" in r) for r in read] == [True] * 10


def test_the_interval_grows_with_the_silence():
    cadence = Cadence(1.0, 120.0)
    alive = [t for t in range(5_000) if cadence.due({"a"}, lambda _: 0.0, float(t))]
    gaps = [b - a for a, b in itertools.pairwise(alive)]
    assert gaps == sorted(gaps)
    assert (gaps[1], gaps[-1]) == (1, 120)
    assert len(alive) < 100


def test_nothing_is_kept_of_jobs_that_have_ended():
    cadence = Cadence(1.0, 120.0)
    polls(cadence, JOBS, 0, 5)
    for now in range(5, 130):
        cadence.touch(["job-1"], float(now))
    polls(cadence, set(), 130, 300)
    assert len(cadence) == 0
    assert not cadence.lively(300.0)
