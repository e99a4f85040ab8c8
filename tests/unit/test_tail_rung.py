"""The tail when the doorbell rings, on a made-up InnoDB and its time: poll intervals here are ten seconds long."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from correlator.jobs.index import Outcome
from correlator.jobs.model import LogRow
from correlator.sources.gaps import Gaps
from correlator.sources.rings import AGAIN_AFTER
from correlator.sources.tail import HOLES_AT_ONCE, Tail
from tests.innodb import InnoDB, Loop, Reader, Session, simulated
from tests.unit.test_gaps_machine import Machine

POLL = 10.0
SOON = sum(AGAIN_AFTER) + 0.001


class Told(Reader):
    """Keeps the ids that it is told, and counts its looks."""

    def __init__(self, innodb: InnoDB) -> None:
        super().__init__(innodb, Tail(poll=POLL, idle_poll=POLL, grace=60.0))
        self.ids: list[int] = []
        self.looks = 0

    def rows(self, rows: list[LogRow]) -> Outcome:
        self.ids += [r.id for r in rows]
        return Outcome()

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        self.looks += 1
        return await super().rows_from(session, first, limit)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with simulated(batch=1000, cold_for=600.0, sweep_every=600.0) as loop:
        yield loop
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run()


@pytest.fixture
def innodb() -> InnoDB:
    return InnoDB()


@pytest.fixture
def reader(loop: Loop, innodb: InnoDB) -> Told:
    """It has read row 1, and looks again in nine seconds."""
    reader = Told(innodb)
    write(innodb)
    task = loop.create_task(reader.run())
    task.add_done_callback(lambda t: t.cancelled() or t.result())
    loop.run(1.0)
    assert reader.ids == [1]
    reader.looks = 0
    return reader


def write(innodb: InnoDB, size: int = 1) -> None:
    transaction = innodb.begin()
    innodb.insert(transaction, size)
    innodb.end(transaction, commits=True)


def test_a_row_that_is_visible_when_it_rings_is_told_at_once_and_looked_for_once(loop, innodb, reader):
    write(innodb, 3)
    reader.tail.rings.ring(1)
    loop.run()
    assert reader.ids == [1, 2, 3, 4]
    loop.run(SOON)
    assert reader.looks == 1


@pytest.mark.parametrize("after", [0.0005, 0.0025, 0.0065])
def test_a_row_that_becomes_visible_a_moment_after_it_rang_is_told_all_the_same(loop, innodb, reader, after):
    reader.tail.rings.ring(1)
    loop.run(after)
    write(innodb)
    assert reader.ids == [1]
    loop.run(SOON)
    assert reader.ids == [1, 2]


def test_a_second_row_that_is_visible_later_than_the_first_is_not_left_to_the_poll(loop, innodb, reader):
    write(innodb, 5)
    reader.tail.rings.ring(2)
    loop.run(0.0005)
    write(innodb)
    loop.run(SOON)
    assert reader.ids == [1, 2, 3, 4, 5, 6, 7]


def test_a_row_that_commits_below_the_head_is_told_when_it_rings(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb)
    reader.tail.rings.ring(1)
    loop.run(SOON)
    assert reader.ids == [1, 4]
    innodb.end(slow, commits=True)
    reader.tail.rings.ring(1)
    loop.run()
    assert reader.ids == [1, 4, 2, 3]


def test_a_row_that_a_probe_is_reading_when_it_rings_is_told_once(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb)
    reader.tail.rings.ring(1)
    loop.run()
    innodb.end(slow, commits=True)
    reader.committed.latency = reader.dirty.latency = 0.1
    due = reader.tail.gaps.next_due()
    assert due is not None
    loop.run(due - loop.now + 0.001)
    reader.tail.rings.ring(1)
    loop.run(1.0)
    assert reader.ids == [1, 4, 2, 3]


def test_a_ring_for_nothing_costs_a_few_looks_and_then_no_more(loop, reader):
    reader.tail.rings.ring(1000)
    loop.run(5.0)
    assert reader.looks == 1 + len(AGAIN_AFTER)


def test_without_a_ring_the_poll_reads_what_there_is(loop, innodb, reader):
    write(innodb)
    loop.run(POLL)
    assert reader.ids == [1, 2]


def test_of_many_holes_the_latest_are_looked_for():
    gaps = Gaps()
    gaps.advance([5, 1000], 0.0)
    gaps.advance([1003, 1005], 1.0)
    assert gaps.newest(5) == [1004, 1002, 1001, 999, 998]
    assert len(gaps.newest(HOLES_AT_ONCE)) == HOLES_AT_ONCE
    assert sorted(gaps.newest(2000)) == [*range(1, 5), *range(6, 1000), 1001, 1002, 1004]


class Rung(Machine):
    """The same appliance with a doorbell, that rings whenever it likes."""

    @rule(statements=st.sampled_from([1, 1, 2, 50]))
    def the_doorbell_rings(self, statements: int) -> None:
        self.reader.tail.rings.ring(statements)


def test_nothing_is_lost_and_nothing_told_twice_whenever_it_rings():
    run_state_machine_as_test(Rung, settings=settings(max_examples=60, stateful_step_count=50))
