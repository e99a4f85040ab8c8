"""Timers of the same or of several periods fall together, whenever they began."""

from correlator.ops import timers


def test_timers_fall_together_whenever_they_began_and_one_that_was_early_is_not_repeated():
    assert {now + timers.until(1.0, now) for now in (7.0, 7.25, 7.998)} == {8.0}
    assert {now + timers.until(0.25, now) for now in (7.75, 7.875, 7.998)} == {8.0}
    assert 7.125 + timers.until(1.0, 7.125, 0.25) == 7.25
    early = 8.0 - 2**-40
    assert early + timers.until(0.25, early) == 8.25
