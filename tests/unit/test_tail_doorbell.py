"""The tail and the doorbell, on a simulated InnoDB in virtual time. Poll intervals are ten seconds long."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.sources.doorbell import AGAIN_AFTER
from correlator.sources.gaps import Gaps
from correlator.sources.tail import HOLES_AT_ONCE, Tail
from tests.support.simulated_innodb import InnoDB, Session, SimulatedFollower
from tests.support.tail_state_machine import TailMachine
from tests.support.virtual_time import VirtualTimeLoop

POLL = 10.0
SOON = sum(AGAIN_AFTER) + 0.001


class RecordingFollower(SimulatedFollower):
    """Keeps the ids that the tail delivers, and counts the queries."""

    def __init__(self, innodb: InnoDB, clock: Callable[[], float]) -> None:
        super().__init__(innodb, Tail(poll=POLL, idle_poll=POLL, grace=60.0, sweep_every=600.0, clock=clock))
        self.ids: list[int] = []
        self.queries = 0

    def rows(self, rows: list[LogRow]) -> Outcome:
        self.ids += [r.id for r in rows]
        return Outcome()

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        self.queries += 1
        return await super().rows_from(session, first, limit)


@pytest.fixture
def innodb() -> InnoDB:
    return InnoDB()


@pytest.fixture
def reader(loop: VirtualTimeLoop, innodb: InnoDB) -> RecordingFollower:
    """It has read row 1, and polls again in nine seconds."""
    reader = RecordingFollower(innodb, loop.time)
    write(innodb)
    task = loop.create_task(reader.run())
    task.add_done_callback(lambda t: t.cancelled() or t.result())
    loop.run(1.0)
    assert reader.ids == [1]
    reader.queries = 0
    return reader


def write(innodb: InnoDB, size: int = 1) -> None:
    transaction = innodb.begin()
    innodb.insert(transaction, size)
    innodb.end(transaction, commits=True)


def test_a_row_that_is_visible_at_the_notification_is_read_at_once_by_one_query(loop, innodb, reader):
    write(innodb, 3)
    reader.tail.doorbell_retry.notify(1)
    loop.run()
    assert reader.ids == [1, 2, 3, 4]
    loop.run(SOON)
    assert reader.queries == 1


@pytest.mark.parametrize("after", [0.0005, 0.0025, 0.0065])
def test_a_row_that_becomes_visible_just_after_the_notification_is_read_too(loop, innodb, reader, after):
    reader.tail.doorbell_retry.notify(1)
    loop.run(after)
    write(innodb)
    assert reader.ids == [1]
    loop.run(SOON)
    assert reader.ids == [1, 2]


def test_a_second_row_that_is_visible_later_than_the_first_is_not_left_to_the_poll(loop, innodb, reader):
    write(innodb, 5)
    reader.tail.doorbell_retry.notify(2)
    loop.run(0.0005)
    write(innodb)
    loop.run(SOON)
    assert reader.ids == [1, 2, 3, 4, 5, 6, 7]


def test_a_row_that_commits_below_the_head_is_read_at_the_notification(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb)
    reader.tail.doorbell_retry.notify(1)
    loop.run(SOON)
    assert reader.ids == [1, 4]
    innodb.end(slow, commits=True)
    reader.tail.doorbell_retry.notify(1)
    loop.run()
    assert reader.ids == [1, 4, 2, 3]


def test_a_row_that_a_probe_reads_during_a_notification_is_delivered_once(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb)
    reader.tail.doorbell_retry.notify(1)
    loop.run()
    innodb.end(slow, commits=True)
    reader.committed.latency = reader.dirty.latency = 0.1
    due = reader.tail.gaps.next_due()
    assert due is not None
    loop.run(due - loop.now + 0.001)
    reader.tail.doorbell_retry.notify(1)
    loop.run(1.0)
    assert reader.ids == [1, 4, 2, 3]


def test_a_notification_without_rows_costs_a_few_queries_and_then_none(loop, reader):
    reader.tail.doorbell_retry.notify(1000)
    loop.run(5.0)
    assert reader.queries == 1 + len(AGAIN_AFTER)


def test_without_a_notification_the_poll_reads_the_rows(loop, innodb, reader):
    write(innodb)
    loop.run(POLL)
    assert reader.ids == [1, 2]


def test_of_many_holes_the_latest_are_probed():
    gaps = Gaps()
    gaps.advance([5, 1000], 0.0)
    gaps.advance([1003, 1005], 1.0)
    assert gaps.newest(5) == [1004, 1002, 1001, 999, 998]
    assert len(gaps.newest(HOLES_AT_ONCE)) == HOLES_AT_ONCE
    assert sorted(gaps.newest(2000)) == [*range(1, 5), *range(6, 1000), 1001, 1002, 1004]


class DoorbellMachine(TailMachine):
    """The same appliance with a doorbell that notifies at any time."""

    @rule(statements=st.sampled_from([1, 1, 2, 50]))
    def the_doorbell_notifies(self, statements: int) -> None:
        self.reader.tail.doorbell_retry.notify(statements)


def test_no_row_is_lost_or_delivered_twice_whenever_the_doorbell_notifies():
    run_state_machine_as_test(DoorbellMachine, settings=settings(max_examples=60, stateful_step_count=50))
