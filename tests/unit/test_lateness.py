"""Whether a receiver is too slow: said once, then with each tenfold, and over only well below the limit."""

import pytest

from correlator.sinks.lateness import Lateness, Notice

DAY = 86_400.0


@pytest.fixture
def lateness():
    """Of a receiver that accepts what it gets, for a day already when it is judged."""
    made = Lateness(10.0, 5.0)
    made.accepts(0.0)
    return made


def test_it_begins_above_the_limit_and_ends_well_below_it(lateness):
    assert [lateness.judge(DAY, age) for age in (0.0, 9.0, 10.0)] == [None] * 3
    assert lateness.judge(DAY, 10.1) is Notice.LATE
    assert [lateness.judge(DAY, age) for age in (9.0, 11.0, 5.0, 12.0)] == [None] * 4
    assert (lateness.judge(DAY, 6.0), lateness.is_late) == (None, True)
    assert (lateness.judge(DAY, 4.9), lateness.is_late) == (Notice.ENDS, False)
    assert (lateness.judge(DAY, 9.9), lateness.is_late) == (None, False)


@pytest.mark.parametrize("step", [1.0, 7.0])
def test_an_hour_of_waiting_is_four_notices_at_most(lateness, step):
    notices = [n * step for n in range(int(3600 / step)) if lateness.judge(DAY, n * step) is not None]
    assert [10 < notices[0] < 20, len(notices)] == [True, 3]


def test_what_waited_during_an_outage_is_late_only_if_the_receiver_does_not_take_it_at_once():
    lateness = Lateness(10.0, 5.0)
    assert lateness.judge(DAY, 600.0) is None
    lateness.accepts(DAY)
    lateness.accepts(DAY + 5.0)
    assert lateness.judge(DAY + 9.0, 600.0) is None
    assert lateness.judge(DAY + 10.0, 600.0) is Notice.LATE
    lateness.fails()
    assert (lateness.judge(DAY + 11.0, 0.0), lateness.is_late) == (None, True)
    lateness.accepts(DAY + 11.0)
    assert (lateness.judge(DAY + 11.0, 600.0), lateness.is_late) == (None, True)
    assert lateness.judge(DAY + 11.0, 0.0) is Notice.ENDS
    assert lateness.judge(DAY + 12.0, 600.0) is None


def test_what_is_dropped_is_said_first_and_with_each_tenfold(lateness):
    lateness.judge(DAY, 11.0)
    said = [n for n in range(0, 40_000, 1) if lateness.judge(DAY, 12.0, n) is Notice.LATE]
    assert said == [1, 10, 100, 1_000, 10_000]


def test_what_was_dropped_before_is_not_said_again(lateness):
    assert lateness.judge(DAY, 0.0, 500) is None
    assert lateness.judge(DAY, 11.0, 500) is Notice.LATE
    assert lateness.judge(DAY, 12.0, 600) is None
    assert lateness.judge(DAY, 12.0, 5_000) is Notice.LATE
