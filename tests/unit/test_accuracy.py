"""How good forecasts were: coverage of p90 and the error of p50, over the newest ended jobs."""

import math

import msgspec
import pytest

from correlator.jobs.forecasts import MAX_JUDGED, Accuracy


def test_nothing_is_known_before_the_first_job_that_had_a_forecast():
    accuracy = Accuracy()
    accuracy.add(0, 0, None)
    assert accuracy.coverage() is None
    assert accuracy.median_error() is None


def test_each_job_has_the_same_weight_however_many_events_it_had():
    accuracy = Accuracy()
    accuracy.add(0, 1, 0.5)
    accuracy.add(30, 30, 0.1)
    assert accuracy.coverage() == 0.5


def test_a_job_without_an_error_counts_for_coverage_only():
    accuracy = Accuracy()
    accuracy.add(3, 4, None)
    assert accuracy.coverage() == 0.75
    assert accuracy.median_error() is None
    for error in (0.1, 7.0, 0.3):
        accuracy.add(4, 4, error)
    assert accuracy.median_error() == 0.3


def test_only_the_newest_jobs_count():
    accuracy = Accuracy()
    for _ in range(1_000):
        accuracy.add(0, 2, 9.0)
    for n in range(MAX_JUDGED):
        assert len(accuracy.jobs) == MAX_JUDGED
        coverage = accuracy.coverage()
        assert coverage is not None
        assert math.isclose(coverage, n / MAX_JUDGED)
        accuracy.add(2, 2, 0.2)
    assert accuracy.coverage() == 1.0
    assert accuracy.median_error() == pytest.approx(0.2)


def test_two_of_them_share_nothing_and_a_checkpoint_restores_one():
    first, second = Accuracy(), Accuracy()
    first.add(1, 2, 0.25)
    assert second.coverage() is None
    restored = msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=Accuracy)
    assert restored == first
