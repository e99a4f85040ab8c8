"""Backoff: delays grow to the cap, spread over their whole span, and start over after a success."""

import pytest

from correlator.backoff import Backoff
from correlator.config.schema import Mqtt
from correlator.config.values import BrokerUrl
from correlator.sinks.mqtt.sink import MqttSink


def longest(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next() for _ in range(count)]


def test_the_longest_delay_grows_by_the_factor_up_to_the_cap():
    assert longest(Backoff(0.5, 2, 3, uniform=lambda: 1.0), 5) == [0.5, 1, 2, 3, 3]


def test_delays_are_spread_over_the_whole_span():
    shares = iter([0.0, 0.5, 0.25])
    assert longest(Backoff(1, 2, 60, uniform=lambda: next(shares)), 3) == [0.0, 1.0, 1.0]


def test_a_success_makes_the_next_delay_short_again():
    backoff = Backoff(1, 10, 60, uniform=lambda: 1.0)
    longest(backoff, 5)
    backoff.reset()
    assert longest(backoff, 2) == [1, 10]


def test_an_outage_of_days_does_not_overflow():
    assert longest(Backoff(1, 10, 60, uniform=lambda: 1.0), 1000)[-1] == 60


def test_a_database_broker_or_cluster_that_is_back_is_tried_within_five_seconds():
    for backoff in Backoff(), MqttSink(Mqtt(url=BrokerUrl("127.0.0.1", 1883, False)))._backoff:
        assert 4 < max(longest(backoff, 1000)) <= 5


def test_by_itself_it_stays_within_its_bounds():
    backoff = Backoff(1, 2, 8)
    assert all(0 <= delay < 8 for delay in longest(backoff, 200))


@pytest.mark.parametrize(("base", "factor", "cap"), [(0, 2, 1), (-1, 2, 1), (1, 0.5, 2), (2, 2, 1)])
def test_bounds_that_make_no_sense_are_refused(base, factor, cap):
    with pytest.raises(ValueError, match="expected 0 < base <= cap"):
        Backoff(base, factor, cap)
