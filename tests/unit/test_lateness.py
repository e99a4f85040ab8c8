"""Whether a receiver is too slow: said once, then with each tenfold, and over only well below the limit."""

import pytest

from correlator.sinks.event_log import Lateness, Notice


def test_it_begins_above_the_limit_and_ends_well_below_it():
    lateness = Lateness(10.0, 5.0)
    assert [lateness.judge(age) for age in (0.0, 9.0, 10.0)] == [None] * 3
    assert lateness.judge(10.1) is Notice.BEGINS
    assert [lateness.judge(age) for age in (9.0, 11.0, 5.0, 12.0)] == [None] * 4
    assert (lateness.judge(6.0), lateness.is_late) == (None, True)
    assert (lateness.judge(4.9), lateness.is_late) == (Notice.ENDS, False)
    assert (lateness.judge(9.9), lateness.is_late) == (None, False)


@pytest.mark.parametrize("step", [1.0, 7.0])
def test_an_hour_of_waiting_is_four_notices_at_most(step):
    lateness = Lateness(10.0, 5.0)
    notices = [notice for n in range(int(3600 / step)) if (notice := lateness.judge(n * step)) is not None]
    assert notices == [Notice.BEGINS, Notice.WORSE, Notice.WORSE]


def test_what_waited_during_an_outage_is_late_only_if_the_receiver_does_not_take_it_at_once():
    lateness = Lateness(10.0, 5.0)
    assert lateness.judge(600.0, accepting_for=9.0) is None
    assert lateness.judge(600.0, accepting_for=10.0) is Notice.BEGINS
    assert lateness.judge(600.0, accepting_for=0.0) is None
    assert lateness.is_late


def test_what_is_dropped_is_said_first_and_with_each_tenfold():
    lateness = Lateness(10.0, 5.0)
    lateness.judge(11.0)
    said = [n for n in range(0, 40_000, 1) if lateness.judge(12.0, n) is Notice.WORSE]
    assert said == [1, 10, 100, 1_000, 10_000]


def test_what_was_dropped_before_is_not_said_again():
    lateness = Lateness(10.0, 5.0)
    assert lateness.judge(0.0, 500) is None
    assert lateness.judge(11.0, 500) is Notice.BEGINS
    assert lateness.judge(12.0, 600) is None
    assert lateness.judge(12.0, 5_000) is Notice.WORSE
