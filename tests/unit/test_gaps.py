"""Gaps: no committed id is lost, none is emitted twice, and only evidence settles a window."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from correlator.sources.gaps import MAX_EXACT, MAX_INTERVAL, MAX_RANGES, Gaps, Probe

GRACE = 5.0


def gaps(*ids, now=100.0, **changes):
    made = Gaps(head=1, grace=GRACE, **changes)
    made.advance(ids, now)
    return made


def probe(found, now):
    made = found.probe(now)
    assert made is not None
    return made


def settled(*ids, now=100.0):
    """Gaps whose window has been settled, and when."""
    found = gaps(*ids, now=now)
    found.answer(probe(found, now + GRACE), [], now + GRACE)
    assert not found.open
    return found, now + GRACE


def test_ids_in_a_row_leave_no_window():
    found = gaps(2, 3, 4)
    assert (found.head, found.open, found.missing(), found.next_due()) == (4, [], 0, None)


def test_all_holes_of_one_batch_are_one_window():
    found = gaps(4, 6, 10)
    assert [w.holes for w in found.open] == [[(2, 3), (5, 5), (7, 9)]]
    assert (found.head, found.missing(), found.oldest(103.0)) == (10, 6, 3.0)


def test_the_head_moves_at_least_upto_where_it_is_told():
    found = Gaps(head=1)
    found.advance([], 0.0, upto=4)
    assert (found.head, found.missing()) == (4, 3)


def test_holes_that_appear_soon_after_join_the_window_and_its_grace_begins_anew():
    found = gaps(3)
    found.advance([5], 100.05)
    assert [w.holes for w in found.open] == [[(2, 2), (4, 4)]]
    found.answer(probe(found, 105.04), [], 105.04)
    assert found.missing() == 2
    found.advance([7], 105.1)
    assert len(found.open) == 2


def test_a_late_commit_is_found_read_and_emitted_once():
    found = gaps(4)
    assert found.answer(probe(found, 100.02), [2], 100.03) == [2]
    assert found.fill([2]) == [2]
    assert found.fill([2]) == []
    assert (found.missing(), found.late) == (1, 0)


def test_a_window_is_not_probed_before_it_is_due():
    found = gaps(3)
    assert found.probe(100.01) is None
    assert probe(found, 100.02).ranges == [(2, 2)]


def test_a_rollback_settles_only_when_a_probe_that_began_a_grace_later_sees_nothing():
    found = gaps(3)
    early = probe(found, 104.99)
    found.answer(early, [], 120.0)
    assert found.missing() == 1
    found.answer(probe(found, 120.5), [], 120.5)
    assert (found.missing(), len(found.cold), found.late) == (0, 1, 0)


def test_grace_counts_from_the_last_sign_of_life():
    found = gaps(3)
    found.answer(probe(found, 104.0), [2], 104.0)
    found.answer(probe(found, 108.9), [], 108.9)
    assert found.missing() == 1
    found.answer(probe(found, 109.2), [], 109.2)
    assert found.missing() == 0


def test_a_window_that_a_dirty_read_sees_is_never_settled():
    found = gaps(5)
    now = 100.0
    for _ in range(1000):
        now += 10.0
        assert found.answer(probe(found, now), [3], now) == [3]
    assert (found.missing(), found.cold) == (3, [])
    assert found.oldest(now) == pytest.approx(10_000.0)


def test_life_in_one_hole_keeps_the_whole_window():
    found = gaps(4, 6)
    for now in (105.0, 110.0, 115.0):
        found.answer(probe(found, now), [5], now)
    assert found.missing() == 3


def test_a_probe_asked_for_before_the_last_sign_of_life_settles_nothing():
    found = gaps(3)
    stale = probe(found, 105.0)
    found.answer(probe(found, 105.0), [2], 105.1)
    found.answer(stale, [], 120.0)
    assert found.missing() == 1


def test_a_cold_hit_is_emitted_once_and_counted_late():
    found, now = settled(4)
    sweep = found.sweep(now + 10)
    assert sweep is not None
    assert found.answer(sweep, [3], now + 10) == [3]
    assert (found.fill([3]), found.fill([3]), found.late) == ([3], [], 1)
    assert found.cold == []
    assert [w.holes for w in found.open] == [[(2, 2)]], "alive after all: the rest of it is watched again"


def test_what_is_cold_is_swept_now_and_then_and_dropped_in_the_end():
    found, now = settled(4)
    assert found.sweep(now) is not None
    assert found.sweep(now + 9.9) is None
    assert found.sweep(now + 10) is not None
    assert found.sweep(now + 600) is None
    assert found.cold == []
    assert found.fill([2, 3]) == []


def test_silence_backs_off_and_life_brings_the_poll_back():
    found = gaps(3)
    now, waits = 100.02, []
    for _ in range(8):
        found.answer(probe(found, now), [], now)
        due = found.next_due()
        assert due is not None
        waits.append(due - now)
        now = due
    assert waits[:2] == pytest.approx([0.032, 0.0512])
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(MAX_INTERVAL)
    found.answer(probe(found, now), [2], now)
    assert found.next_due() == pytest.approx(now + 0.02)


def test_many_holes_are_probed_as_the_span_they_lie_in():
    exact = gaps(*range(3, 3 + 2 * MAX_EXACT, 2))
    assert len(probe(exact, 101.0).ranges) == MAX_EXACT
    many = gaps(*range(3, 100_002, 2))
    assert probe(many, 101.0).ranges == [(2, 100_000)]


def test_one_statement_has_a_bounded_number_of_ranges_and_the_rest_comes_next():
    found = Gaps(head=0)
    for i in range(MAX_RANGES + 10):
        found.advance([2 * i + 2], 10.0 * i)
    now = 10_000.0
    first = probe(found, now)
    assert len(first.ranges) == MAX_RANGES
    found.answer(first, [], now)
    assert sorted(probe(found, now).ranges + first.ranges) == [(2 * i + 1, 2 * i + 1) for i in range(MAX_RANGES + 10)]


def test_many_cold_windows_are_swept_as_one_span():
    found = Gaps(head=0, grace=GRACE)
    for i in range(MAX_RANGES + 10):
        found.advance([2 * i + 2], 0.2 * i)
    now = 100.0
    while (due := found.probe(now)) is not None:
        found.answer(due, [], now)
    sweep = found.sweep(now)
    assert sweep is not None
    assert sweep.ranges == [(1, 2 * (MAX_RANGES + 10) - 1)]


def test_ids_that_were_seen_are_no_life():
    found = gaps(*range(3, 40, 2))
    found.answer(probe(found, 105.0), range(3, 40, 2), 105.0)
    assert found.missing() == 0


class Server(RuleBasedStateMachine):
    """Writers that take ids, commit or roll back in any order and at any pace; a reader that polls and probes."""

    def __init__(self):
        super().__init__()
        self.gaps = Gaps(grace=GRACE, cold_for=60.0)
        self.now = 1000.0
        self.next_id = 1
        self.open: list[list[int]] = []
        self.committed: set[int] = set()
        self.emitted: list[int] = []
        self.asked: list[tuple[Probe, list[int]]] = []

    def dirty(self, ranges):
        rows = self.committed.union(*self.open)
        return [i for i in rows if any(first <= i <= last for first, last in ranges)]

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.3, 2.0, 5.0, 12.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(size=st.integers(1, 12), step=st.sampled_from([1, 1, 3]))
    def a_transaction_inserts(self, size, step):
        ids = [self.next_id + step * i for i in range(size)]
        self.next_id = ids[-1] + step
        self.open.append(ids)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), more=st.integers(1, 3))
    def a_transaction_inserts_again(self, data, more):
        data.draw(st.sampled_from(self.open)).extend(range(self.next_id, self.next_id + more))
        self.next_id += more

    @precondition(lambda self: self.open)
    @rule(data=st.data(), commits=st.booleans())
    def a_transaction_ends(self, data, commits):
        ids = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if commits:
            self.committed.update(ids)

    @rule(limit=st.sampled_from([2, 1000]))
    def the_reader_polls(self, limit):
        ids = sorted(i for i in self.committed if i > self.gaps.head)[:limit]
        self.gaps.advance(ids, self.now)
        self.emitted += ids

    @rule()
    def the_reader_asks(self):
        for made in (self.gaps.probe(self.now), self.gaps.sweep(self.now)):
            if made is not None:
                self.asked.append((made, self.dirty(made.ranges)))

    @precondition(lambda self: self.asked)
    @rule()
    def the_reader_is_answered(self):
        made, seen = self.asked.pop(0)
        wanted = self.gaps.answer(made, seen, self.now)
        self.emitted += self.gaps.fill(i for i in wanted if i in self.committed)

    @invariant()
    def nothing_is_emitted_twice_or_before_its_commit(self):
        assert len(self.emitted) == len(set(self.emitted))
        assert self.committed.issuperset(self.emitted)

    @invariant()
    def every_committed_id_is_emitted_or_awaited(self):
        awaited = {i for w in self.gaps.open for first, last in w.holes for i in range(first, last + 1)}
        below = {i for i in self.committed if i <= self.gaps.head}
        assert below == below & (awaited | set(self.emitted))

    @invariant()
    def nothing_that_a_dirty_read_sees_is_cold(self):
        cold = {i for w in self.gaps.cold for first, last in w.holes for i in range(first, last + 1)}
        assert cold.isdisjoint(self.dirty([(1, self.next_id)]))

    @invariant()
    def windows_do_not_overlap(self):
        holes = sorted(h for w in [*self.gaps.open, *self.gaps.cold] for h in w.holes)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(holes))

    def teardown(self):
        while self.open:
            self.committed.update(self.open.pop())
        self.the_reader_polls(100_000)
        while self.asked:
            self.the_reader_is_answered()
        for _ in range(40):
            self.now += 1.0
            self.the_reader_asks()
            while self.asked:
                self.the_reader_is_answered()
        assert sorted(self.emitted) == sorted(self.committed)
        assert self.gaps.missing() == 0


Server.TestCase.settings = settings(stateful_step_count=40)
TestServer = Server.TestCase
