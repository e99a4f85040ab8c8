"""The tail, promise by promise, on a made-up InnoDB and its time; in any order: test_gaps_machine."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from correlator.jobs.index import Outcome
from correlator.jobs.model import LogRow
from correlator.sources.gaps import MAX_RANGES, Range
from correlator.sources.tail import Tail
from tests.innodb import InnoDB, Loop, Reader, Session, simulated


class Told(Reader):
    """Keeps what it is told, in order."""

    def __init__(self, innodb: InnoDB, tail: Tail) -> None:
        super().__init__(innodb, tail)
        self.told: list[LogRow] = []

    def rows(self, rows: list[LogRow]) -> Outcome:
        self.told += rows
        return Outcome()

    @property
    def ids(self) -> list[int]:
        return [r.id for r in self.told]


@pytest.fixture
def loop() -> Iterator[Loop]:
    with simulated(batch=1000, cold_for=600.0, sweep_every=10.0) as loop:
        yield loop
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run()


def follow(loop: Loop, reader: Reader) -> None:
    task = loop.create_task(reader.run())
    task.add_done_callback(lambda t: t.cancelled() or t.result())
    loop.run(1.0)


@pytest.fixture
def innodb() -> InnoDB:
    return InnoDB()


@pytest.fixture
def reader(loop: Loop, innodb: InnoDB) -> Told:
    """It has read rows 1 to 5."""
    reader = Told(innodb, Tail())
    write(innodb, 5)
    follow(loop, reader)
    assert reader.ids == [1, 2, 3, 4, 5]
    return reader


def write(innodb: InnoDB, size: int, *, commits: bool = True) -> None:
    transaction = innodb.begin()
    innodb.insert(transaction, size)
    innodb.end(transaction, commits=commits)


def test_a_row_that_commits_below_the_head_is_told_within_a_poll(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb, 1)
    loop.run(300.0)
    assert reader.ids[5:] == [8]
    innodb.end(slow, commits=True)
    loop.run(0.03)
    assert reader.ids[5:] == [8, 6, 7]


def test_a_row_that_not_even_a_dirty_read_saw_for_minutes_is_told_by_a_sweep(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2, ready=0)
    write(innodb, 1)
    loop.run(300.0)
    assert reader.tail.gaps.open == []
    innodb.end(slow, commits=True)
    loop.run(10.1)
    assert reader.ids[5:] == [8, 6, 7]
    assert reader.tail.gaps.late == 2


def test_a_sweep_comes_however_busy_the_probes_are(loop, innodb, reader):
    unseen = innodb.begin()
    innodb.insert(unseen, 1, ready=0)
    write(innodb, 1)
    loop.run(10.0)
    innodb.insert(innodb.begin(), 1)  # for ever open, and looked at again and again
    write(innodb, 1)
    reader.committed.latency = reader.dirty.latency = 0.1
    loop.run(10.0)
    innodb.end(unseen, commits=True)
    loop.run(11.0)
    assert reader.ids[5:] == [7, 9, 6]


@pytest.mark.parametrize("fate", ["committed", "rolled back"])
def test_a_truncate_is_found_although_new_ids_have_passed_the_head_before_anybody_looked(loop, innodb, reader, fate):
    innodb.replace({}, 1)
    write(innodb, 4)
    write(innodb, 1, commits=fate == "committed")
    write(innodb, 4)
    loop.run(3.0)
    assert reader.told[5:] == [innodb.rows[i] for i in sorted(innodb.rows)]


def test_what_is_not_committed_yet_at_a_truncate_of_all_that_was_read_is_told_later(loop, innodb, reader):
    innodb.replace({}, 1)
    slow = innodb.begin()
    innodb.insert(slow, 6)
    write(innodb, 2)
    loop.run(3.0)
    innodb.end(slow, commits=True)
    loop.run(3.0)
    assert sorted(reader.ids[5:]) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("deleted", [3, 5])
def test_retention_repeats_nothing(loop, innodb, reader, deleted):
    transaction = innodb.begin()
    transaction.deletes.update(range(1, deleted + 1))
    innodb.end(transaction, commits=True)
    loop.run(5.0)
    write(innodb, 3)
    loop.run(5.0)
    assert reader.ids == [1, 2, 3, 4, 5, 6, 7, 8]


def test_ids_that_will_start_again_lower_are_found_before_the_first_of_them_comes(loop, innodb, reader):
    innodb.next_id = 3
    gaps = reader.tail.gaps
    loop.run(2.1)
    assert reader.tail.gaps is not gaps


def test_who_goes_back_below_where_it_once_began_waits_for_holes_there_too(loop, innodb, reader):
    innodb.next_id = 1_000_000
    write(innodb, 1)
    loop.run(1.0)
    fresh = Told(innodb, Tail())
    follow(loop, fresh)
    assert fresh.ids == [1, 2, 3, 4, 5, 1_000_000]
    innodb.replace({i: r for i, r in innodb.rows.items() if i <= 5}, 6)
    slow = innodb.begin()
    innodb.insert(slow, 1)
    write(innodb, 1)
    loop.run(3.0)
    innodb.end(slow, commits=True)
    loop.run(3.0)
    assert fresh.ids[6:] == [7, 6]


def test_a_clock_that_goes_an_hour_forward_is_no_reset(loop, innodb, reader):
    row = innodb.rows[5]
    innodb.rows = innodb.rows | {5: LogRow(5, row.message, row.ts + 3_600_000_000)}
    loop.run(5.0)
    assert reader.ids == [1, 2, 3, 4, 5]
    innodb.rows = innodb.rows | {5: LogRow(5, row.message, row.ts + 1)}
    loop.run(5.0)
    assert reader.ids == [1, 2, 3, 4, 5, 5], "but another row at the same id is one"


class Threes(Told):
    """A log whose ids go up in steps of three, `upto` the last; counts what is asked of it."""

    def __init__(self, upto: Callable[[], int]) -> None:
        super().__init__(InnoDB(), Tail())
        self._upto = upto
        self.asked: list[list[Range]] = []
        self.looked_at = 0

    async def last_id(self, session: Session) -> int:
        return self._upto()

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        await asyncio.sleep(0.01)
        ids = range(first + (1 - first) % 3, self._upto() + 1, 3)[:limit]
        return [LogRow(i, "row", 0) for i in ids]

    async def ids_in(self, session: Session, ranges: list[Range]) -> list[int]:
        await asyncio.sleep(0.002)
        self.asked.append(ranges)
        found = [i for a, b in ranges for i in range(a + (1 - a) % 3, min(b, self._upto()) + 1, 3)]
        self.looked_at += len(found)
        return found

    async def reset_signs(self, session: Session) -> tuple[int, float]:
        return self._upto() + 3, 0.0


def test_a_past_in_steps_of_three_costs_windows_and_not_holes(loop):
    reader = Threes(lambda: 100_000)
    follow(loop, reader)
    loop.run(15.0)
    assert (len(reader.told), reader.tail.gaps.open) == (33_334, [])
    assert len(reader.asked) < 50
    assert reader.looked_at < 10 * len(reader.told), "each row is seen a few times until its neighbours are settled"


def test_rows_that_come_in_steps_of_three_cost_few_looks(loop):
    start = loop.now
    reader = Threes(lambda: 1 + 3 * int((loop.now - start) * 100))
    follow(loop, reader)
    loop.run(120.0)
    before, seen = len(reader.asked), reader.looked_at
    loop.run(10.0)
    assert len(reader.tail.gaps.open) < 60
    assert len(reader.tail.gaps.cold) > 1000
    assert len(reader.asked) - before < 500, "fifty looks a second, whatever the number of windows"
    assert max(map(len, reader.asked)) <= MAX_RANGES
    assert reader.looked_at - seen < 60_000
