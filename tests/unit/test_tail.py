"""The tail, promise by promise, on a made-up InnoDB and its time; in any order: test_gaps_machine."""

import asyncio
from collections.abc import Callable
from copy import copy

import msgspec
import pytest
from msgspec.structs import replace

from correlator.errors import SourceUnavailable
from correlator.model.persisted import Cursor
from correlator.model.published import Outcome
from correlator.model.rows import LogRow
from correlator.sources.db.session import Range
from correlator.sources.doorbell import AGAIN_AFTER
from correlator.sources.gaps import MAX_RANGES
from correlator.sources.tail import Tail
from tests.support.simulated_innodb import InnoDB, Session, SimulatedFollower
from tests.support.virtual_time import VirtualTimeLoop


class RecordingFollower(SimulatedFollower):
    """Keeps the rows that the tail delivers, in order, and counts its queries of whole rows from the head on."""

    def __init__(self, innodb: InnoDB, tail: Tail) -> None:
        super().__init__(innodb, tail)
        self.delivered: list[LogRow] = []
        self.again_delivered: list[LogRow] = []
        self.queries = 0

    def rows(self, rows: list[LogRow]) -> Outcome:
        self.delivered += rows
        return Outcome()

    def again(self, rows: list[LogRow]) -> Outcome:
        self.again_delivered += rows
        return Outcome()

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        self.queries += 1
        return await super().rows_from(session, first, limit)

    @property
    def ids(self) -> list[int]:
        return [r.id for r in self.delivered]


def follow(loop: VirtualTimeLoop, reader: SimulatedFollower) -> None:
    task = loop.create_task(reader.run())
    task.add_done_callback(lambda t: t.cancelled() or t.result())
    loop.run(1.0)


@pytest.fixture
def innodb() -> InnoDB:
    return InnoDB()


@pytest.fixture
def reader(loop: VirtualTimeLoop, innodb: InnoDB) -> RecordingFollower:
    """It has read rows 1 to 5."""
    reader = RecordingFollower(innodb, Tail(clock=loop.time))
    write(innodb, 5)
    follow(loop, reader)
    assert reader.ids == [1, 2, 3, 4, 5]
    return reader


def write(innodb: InnoDB, size: int, *, commits: bool = True) -> None:
    transaction = innodb.begin()
    innodb.insert(transaction, size)
    innodb.end(transaction, commits=commits)


def test_a_row_that_commits_below_the_head_is_read_within_a_poll(loop, innodb, reader):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb, 1)
    loop.run(30.0)
    assert reader.ids[5:] == [8]
    innodb.end(slow, commits=True)
    loop.run(0.03)
    assert reader.ids[5:] == [8, 6, 7]


def test_a_row_that_no_dirty_read_saw_for_minutes_is_read_by_a_sweep(loop, innodb, reader):
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
    innodb.insert(innodb.begin(), 1)  # open for ever, and probed again and again
    write(innodb, 1)
    reader.committed.latency = reader.dirty.latency = 0.1
    loop.run(10.0)
    innodb.end(unseen, commits=True)
    loop.run(11.0)
    assert reader.ids[5:] == [7, 9, 6]


@pytest.mark.parametrize("deleted", [3, 5])
def test_retention_repeats_nothing(loop, innodb, reader, deleted):
    transaction = innodb.begin()
    transaction.deletes.update(range(1, deleted + 1))
    innodb.end(transaction, commits=True)
    loop.run(5.0)
    write(innodb, 3)
    loop.run(5.0)
    assert reader.ids == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("known", ["of the rows before", "of late rows alone"])
def test_retention_does_not_repeat_a_row_that_was_read_late(loop, innodb, reader, known):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb, 3)
    loop.run(1.0)
    innodb.end(slow, commits=True)
    loop.run(1.0)
    assert reader.ids[5:] == [8, 9, 10, 6, 7]
    transaction = innodb.begin()
    transaction.deletes.update({8, 9, 10} if known == "of the rows before" else {1, 2, 3, 4, 5, 8, 9, 10})
    innodb.end(transaction, commits=True)
    loop.run(5.0)
    write(innodb, 1)
    loop.run(5.0)
    assert reader.ids[10:] == [11]


def test_a_row_of_new_ids_that_a_probe_has_read_before_the_reset_was_seen_is_not_read_twice(loop, innodb, reader):
    write(innodb, 1, commits=False)
    write(innodb, 1)
    loop.run(1.0)
    assert reader.ids[5:] == [7]
    reader.breaks()
    innodb.replace({}, 1)
    write(innodb, 6)
    write(innodb, 1, commits=False)
    write(innodb, 4)
    reader.latency, reader.dirty_latency = 0.1, -0.1  # So the new 6 is read before the head is.
    loop.run(5.0)
    assert sorted(reader.ids[6:]) == sorted(innodb.rows)


def test_ids_that_will_start_again_lower_are_found_before_the_first_of_them_comes(loop, innodb, reader):
    innodb.next_id = 3
    gaps = reader.tail.gaps
    loop.run(2.1)
    assert reader.tail.gaps is not gaps


def test_a_tail_that_goes_back_below_its_begin_waits_for_holes_there_too(loop, innodb, reader):
    innodb.next_id = 1_000_000
    write(innodb, 1)
    loop.run(1.0)
    fresh = RecordingFollower(innodb, Tail(clock=loop.time))
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


@pytest.mark.parametrize("ends", [False, True])
def test_times_that_are_rewritten_repeat_nothing_and_hide_no_new_row(loop, innodb, reader, ends):
    if ends:
        cursor = reader.tail.cursor()
        reader = RecordingFollower(innodb, Tail(clock=loop.time))
        reader.tail.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(cursor), type=Cursor))
    innodb.rows = {i: replace(row, ts=row.ts + 7 * 60_000_000) for i, row in innodb.rows.items()}
    delivered = len(reader.ids)
    if ends:
        follow(loop, reader)
    else:
        loop.run(5.0)
    write(innodb, 3)
    loop.run(5.0)
    assert (reader.ids[delivered:], reader.again_delivered) == ([6, 7, 8], [])


def test_rows_that_go_away_and_come_back_are_no_news_and_those_in_between_are(loop, innodb, reader):
    """As with a replica that is behind, and back: its rows 4 and 5 come late, and row 6 was only committed there."""
    rows = dict(innodb.rows)
    innodb.replace({i: row for i, row in rows.items() if i <= 3}, 4)
    loop.run(5.0)
    innodb.replace(rows, 6)
    write(innodb, 1)
    loop.run(5.0)
    innodb.replace({i: row for i, row in rows.items() if i <= 2}, 3)
    loop.run(5.0)
    innodb.replace(rows, 7)
    write(innodb, 1)
    loop.run(5.0)
    assert reader.ids == [1, 2, 3, 4, 5, 6, 7]
    assert [row.id for row in reader.again_delivered] == [4, 5, 3, 4, 5]


def test_a_table_refilled_after_a_truncate_repeats_nothing_whatever_the_order_of_its_rows(loop, innodb, reader):
    rows = dict(innodb.rows)
    innodb.replace({}, 1)
    loop.run(5.0)
    innodb.replace({i: row for i, row in rows.items() if i in (2, 5)}, 6)
    loop.run(1.0)
    innodb.rows = rows
    write(innodb, 1)
    loop.run(20.0)
    assert reader.ids == [1, 2, 3, 4, 5, 6]
    assert sorted(row.id for row in reader.again_delivered) == [1, 2, 3, 4, 5]


def test_other_rows_with_the_ids_of_rows_that_went_away_are_new(loop, innodb, reader):
    innodb.replace({}, 1)
    loop.run(5.0)
    write(innodb, 7)
    loop.run(5.0)
    assert (reader.ids, reader.again_delivered) == ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7], [])


class Away(RecordingFollower):
    """Its database goes away in the middle of a first question about where to begin, so many times."""

    fails = 0

    async def first_since(self, session: Session, since: int) -> int:
        if self.fails:
            self.fails -= 1
            raise SourceUnavailable("away")
        return 1


@pytest.mark.parametrize("known", [True, False])
def test_a_database_that_goes_away_while_the_tail_begins_again_leaves_its_position(loop, innodb, known):
    reader = Away(innodb, Tail(clock=loop.time))
    write(innodb, 5)
    follow(loop, reader)
    before = reader.tail.cursor()
    assert before.head == 5
    if known:
        innodb.next_id = 3
    else:
        innodb.replace({}, 1)
    reader.fails = 1_000_000
    loop.run(10.0)
    assert reader.tail.cursor().head in ((5,) if not known else (3, 5))
    reader.fails = 0
    write(innodb, 2)
    loop.run(10.0)
    assert reader.delivered[-1] == innodb.rows[max(innodb.rows)]


def reads_past(reader: RecordingFollower) -> bool:
    return reader.tail.past is not None


def test_a_new_row_is_read_within_a_poll_however_long_the_past_is(loop, innodb):
    write(innodb, 6_000)
    reader = RecordingFollower(innodb, Tail(clock=loop.time))
    reader.latency = 0.02
    task = loop.create_task(reader.run())
    loop.run(0.1)
    reader.old.latency = 1.0
    assert reads_past(reader)
    assert len(reader.delivered) < 6_000
    write(innodb, 1)
    loop.run(reader.tail.idle_poll + 0.03)
    assert 6_001 in reader.ids
    assert reads_past(reader), "the past is still being read"
    loop.run(60.0)
    assert sorted(reader.ids) == list(range(1, 6_002))
    assert not reads_past(reader)
    task.cancel()


def test_the_past_waits_while_the_tail_has_much_to_read(loop, innodb):
    write(innodb, 8_000)
    reader = RecordingFollower(innodb, Tail(clock=loop.time))
    reader.latency = 0.01
    task = loop.create_task(reader.run())
    loop.run(0.05)
    write(innodb, 5_000)
    reader.tail.busy = True
    before = len([i for i in reader.ids if i <= 8_000])
    while max(reader.ids, default=0) < 13_000:
        loop.run(0.01)
    meanwhile = len([i for i in reader.ids if i <= 8_000]) - before
    assert meanwhile <= 2_000, "what was on its way when the new rows came"
    loop.run(10.0)
    assert sorted(reader.ids) == list(range(1, 13_001))
    task.cancel()


class Threes(RecordingFollower):
    """A log whose ids increase in steps of three up to `upto()`. It counts the queries."""

    def __init__(self, upto: Callable[[], int], clock: Callable[[], float]) -> None:
        super().__init__(InnoDB(), Tail(clock=clock))
        self._upto = upto
        self.asked: list[list[Range]] = []
        self.ids_probed = 0

    async def last_id(self, session: Session) -> int:
        return self._upto()

    def again(self, rows: list[LogRow]) -> Outcome:
        self.again_delivered += rows
        return Outcome()

    async def rows_from(self, session: Session, first: int, limit: int) -> list[LogRow]:
        await asyncio.sleep(0.01)
        ids = range(first + (1 - first) % 3, self._upto() + 1, 3)[:limit]
        return [LogRow(i, "row", 0) for i in ids]

    async def ids_in(self, session: Session, ranges: list[Range]) -> list[int]:
        await asyncio.sleep(0.002)
        self.asked.append(ranges)
        found = [i for a, b in ranges for i in range(a + (1 - a) % 3, min(b, self._upto()) + 1, 3)]
        self.ids_probed += len(found)
        return found

    async def next_id(self, session: Session) -> int:
        return self._upto() + 3


def test_rows_with_ids_in_steps_of_three_cost_windows_and_few_probes_and_not_holes(loop):
    start, past = loop.now, 100_000
    reader = Threes(lambda: past + 3 * int(max(0.0, loop.now - start - 15.0) * 100), loop.time)
    follow(loop, reader)
    loop.run(14.0)
    assert (len(reader.delivered), reader.tail.gaps.open) == (33_334, [])
    assert len(reader.asked) < 50
    assert reader.ids_probed < 10 * len(reader.delivered), "each row is probed a few times"
    loop.run(50.0)
    before, seen = len(reader.asked), reader.ids_probed
    loop.run(10.0)
    assert len(reader.tail.gaps.open) < 60
    assert len(reader.tail.gaps.cold) > 300
    assert len(reader.asked) - before < 500, "fifty probes a second, whatever the number of windows"
    assert max(map(len, reader.asked)) <= MAX_RANGES
    assert reader.ids_probed - seen < 60_000 + 33_334


def test_the_log_counts_as_read_only_when_a_query_found_less_than_it_asked_for(loop, innodb):
    read_at: list[tuple[float, int]] = []

    reader = RecordingFollower(innodb, Tail(clock=loop.time))
    reader.status = copy(reader.status)
    reader.status.caught_up = lambda _: read_at.append((loop.time(), len(reader.delivered)))
    write(innodb, 5)
    follow(loop, reader)
    write(innodb, 2500)
    loop.run(1.0)
    assert {number for _, number in read_at} - {0, 5} == {2505}


@pytest.mark.parametrize("failure", ["breaks", "restart"])
def test_the_log_counts_as_read_only_with_the_rows_that_were_committed_late(loop, innodb, reader, failure):
    late = innodb.begin()
    innodb.insert(late, 1)
    write(innodb, 1)
    loop.run(1.0)
    assert reader.ids[-1] == 7
    if failure == "restart":
        loop.cancel_all()
        tail = Tail(clock=loop.time)
        tail.resume(reader.tail.cursor())
        reader = RecordingFollower(innodb, tail)
    else:
        reader.breaks()
    innodb.end(late, commits=True)
    committed, read_to = loop.time(), list[tuple[float, bool]]()
    reader.status = copy(reader.status)
    reader.status.caught_up = lambda age: read_to.append((loop.time() - age, 6 in reader.ids))
    reader.dirty_latency = 2.0  # Probes are slow: the head is read long before them.
    if failure == "restart":
        follow(loop, reader)
    loop.run(20.0)
    assert [to for to, has_late in read_to if to > committed and not has_late] == []
    assert read_to[-1][0] > committed + 1.0


def test_an_idle_tail_reads_the_row_at_the_head_once_a_second_and_a_new_row_within_a_poll(loop, innodb, reader):
    reader.queries = 0
    loop.run(10.0)
    assert 9 <= reader.queries <= 10
    write(innodb, 1)
    loop.run(reader.tail.idle_poll + 0.01)
    assert reader.ids[5:] == [6]
    loop.run(10.0)
    innodb.replace({i: innodb.row(i) for i in range(1, 7)}, next_id=7)
    loop.run(1.0 + 0.5 + 0.1)  # and the time until the next connection
    assert reader.ids[6:] == [1, 2, 3, 4, 5, 6], "all rows are others"


# -- The tail and the doorbell, on a simulated InnoDB in virtual time. Poll intervals are ten seconds long


POLL = 10.0
SOON = sum(AGAIN_AFTER) + 0.001


@pytest.fixture
def woken(loop: VirtualTimeLoop, innodb: InnoDB) -> RecordingFollower:
    """It has read row 1, and polls again in nine seconds."""
    tail = Tail(poll=POLL, idle_poll=POLL, grace=60.0, sweep_every=600.0, clock=loop.time)
    woken = RecordingFollower(innodb, tail)
    write(innodb, 1)
    follow(loop, woken)
    assert woken.ids == [1]
    woken.queries = 0
    return woken


def test_a_row_that_is_visible_at_the_notification_is_read_at_once_by_one_query(loop, innodb, woken):
    write(innodb, 3)
    woken.tail.doorbell_retry.notify(1)
    loop.run()
    assert woken.ids == [1, 2, 3, 4]
    loop.run(SOON)
    assert woken.queries == 1


@pytest.mark.parametrize(("before", "after"), [(0, 0.0005), (0, 0.0025), (0, 0.0065), (5, 0.0005)])
def test_a_row_that_becomes_visible_just_after_the_notification_is_read_too(loop, innodb, woken, before, after):
    if before:
        write(innodb, before)
    woken.tail.doorbell_retry.notify(2 if before else 1)
    loop.run(after)
    write(innodb, 1)
    assert woken.ids == [*range(1, before + 2)]
    loop.run(SOON)
    assert woken.ids == [*range(1, before + 3)]


def test_a_row_that_commits_below_the_head_is_read_at_the_notification(loop, innodb, woken):
    slow = innodb.begin()
    innodb.insert(slow, 2)
    write(innodb, 1)
    woken.tail.doorbell_retry.notify(1)
    loop.run(SOON)
    assert woken.ids == [1, 4]
    innodb.end(slow, commits=True)
    woken.tail.doorbell_retry.notify(1)
    loop.run()
    assert woken.ids == [1, 4, 2, 3]


def test_a_notification_without_rows_costs_a_few_queries_and_then_none(loop, woken):
    woken.tail.doorbell_retry.notify(1000)
    loop.run(5.0)
    assert woken.queries == 1 + len(AGAIN_AFTER)
