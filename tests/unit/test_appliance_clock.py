"""The daemon's times are by the database's clock, which each round reads, unless the host's clock agrees with it."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs.index import Index
from correlator.pipeline.source_status import ApplianceClock, SourceStatus
from tests.support.forecasts import BASE, SECOND


class Clocks:
    """The clocks of an appliance and of the daemon's host. The latter is `ahead` microseconds ahead."""

    def __init__(self, ahead: int = 0) -> None:
        self.now, self.ahead = BASE, ahead
        self.clock = ApplianceClock(lambda: self.now + self.ahead, lambda: self.now - BASE)

    def query(self, before: int = 0, after: int = 0) -> int:
        """The time of the database, by a query that takes `before` to get there, and `after` until it is answered."""
        self.now += before
        at = self.now
        self.now += after
        return self.clock.read(at, before + after)

    @property
    def error(self) -> int:
        return self.clock() - self.now


@pytest.mark.parametrize("ahead", [7200 * SECOND, -7200 * SECOND, 3 * SECOND, -3 * SECOND])
def test_a_host_whose_clock_differs_has_the_time_of_the_database_after_one_query(ahead):
    clocks = Clocks(ahead)
    clocks.now += 730_000
    moved = clocks.query(3_000, 2_000)
    assert abs(clocks.error) <= 5_000
    assert moved == clocks.error - ahead
    clocks.query()
    assert clocks.error == 0


@pytest.mark.parametrize("ahead", [900_000, -900_000, 0])
def test_a_host_whose_clock_agrees_keeps_it(ahead):
    clocks = Clocks(ahead)
    for _ in range(30):
        clocks.now += 730_000
        clocks.query(100_000, 50_000)
        assert clocks.error == ahead


@given(
    st.lists(
        st.tuples(st.integers(0, 60 * SECOND), st.integers(-7200, 7200), *[st.integers(0, 10 * SECOND)] * 2),
        min_size=1,
        max_size=20,
    )
)
def test_the_time_is_wrong_by_no_more_than_the_query_took_whatever_the_clock_of_the_host_does(steps):
    clocks, within = Clocks(), 0
    for passed, ahead, before, after in steps:
        clocks.now += passed
        clocks.ahead = ahead * SECOND
        clocks.query(before, after)
        within = before + after + SECOND  # A host's clock that is so near is used.
        assert abs(clocks.error) <= within
        clocks.ahead = -ahead * SECOND  # Until the next query, nothing reads it.
        assert abs(clocks.error) <= within


def test_a_slow_query_moves_no_clock_that_a_fast_one_has_set():
    clocks = Clocks(ahead=7200 * SECOND)
    clocks.query()
    error = clocks.error
    for took in (10, 3, 30):
        clocks.query(took * SECOND, 0)
        clocks.query(0, took * SECOND)
        assert clocks.error == error


def test_that_the_clocks_differ_and_that_they_agree_again_is_logged_once(caplog):
    caplog.set_level(logging.INFO, "correlator.pipeline.source_status")
    clocks = Clocks()
    for ahead in (0, 7200 * SECOND, 7200 * SECOND, 0, 0):
        clocks.ahead = ahead
        clocks.query()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "this host is 7200 s ahead of the database's" in caplog.messages[0]


@pytest.mark.parametrize("ahead", [7200 * SECOND, -7200 * SECOND])
def test_what_a_start_reads_back_to_is_by_the_clock_of_the_database(ahead):
    clocks, index = Clocks(ahead), Index()
    status = SourceStatus(index, clocks.clock)
    status.past_begins()
    status.restored(clocks.clock(), 60.0)
    clocks.now += SECOND
    status.database_time(clocks.now, 0.0)
    assert (index.published.past_unread, status.since) == (BASE, BASE - 60 * SECOND)
