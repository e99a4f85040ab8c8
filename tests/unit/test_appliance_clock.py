"""The daemon's times are by the database's clock, which each round reads, unless the host's clock agrees with it."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.jobs.horizon import Horizon, Part
from correlator.model.facts import Kind
from correlator.pipeline.source_status import ApplianceClock, SourceStatus
from tests.support.forecast_index import kinds, knowing, read, step, usual
from tests.support.forecasts import BASE, SECOND
from tests.support.there import there

LATENESS = {Kind.JOB_LATE, Kind.JOB_OVERDUE}


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


def test_before_the_first_query_time_is_that_of_the_host():
    clocks = Clocks(ahead=7)
    clocks.now += 5
    assert clocks.clock() == BASE + 5 + 7


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


class Daemon:
    """A daemon that reads an appliance all the time, and whose clock is `ahead`."""

    def __init__(self, ahead: int) -> None:
        self.clocks = Clocks(ahead)
        self.index = knowing(*usual(), horizon=Horizon(read_to=0))
        self.status = SourceStatus(self.index, self.clocks.clock)
        self.events: list[Kind] = []

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clocks.now += SECOND
            self.clocks.query()
            for part in Part:
                self.index.horizon.report(part, self.clocks.clock(), self.clocks.now)
            now = self.clocks.clock()
            self.events += kinds([self.index.expire(now), self.index.renew_forecasts(now, learn=True)])


@pytest.mark.parametrize("ahead", [7200, 0, -7200])
def test_a_job_is_late_by_the_clock_of_its_rows_whatever_the_clock_of_the_host_says(ahead):
    daemon = Daemon(ahead * SECOND)
    daemon.pass_time(12)
    read(daemon.index, (daemon.clocks.clock() - BASE) / SECOND, step(1, "snapshot", 0, 10), step(2, "copy", 10))
    daemon.pass_time(60)
    assert LATENESS.isdisjoint(daemon.events)
    daemon.pass_time(300)
    assert daemon.events.count(Kind.JOB_OVERDUE) == 1


@pytest.mark.parametrize("ahead", [7200, -7200])
def test_when_the_reading_of_the_past_began_is_by_the_clock_of_the_database(ahead):
    daemon = Daemon(ahead * SECOND)
    daemon.status.past_begins()
    daemon.clocks.now += SECOND
    daemon.status.database_time(daemon.clocks.now, 0.0)
    assert there(daemon.index.published.past_unread) == BASE


@pytest.mark.parametrize("ahead", [7200, -7200])
def test_what_ended_since_the_last_run_is_by_the_clock_of_the_database(ahead):
    daemon = Daemon(ahead * SECOND)
    daemon.status.restored(daemon.clocks.clock(), 60.0)
    daemon.status.database_time(daemon.clocks.now, 0.0)
    assert daemon.status.since == BASE - 60 * SECOND
