"""What probes of missing ids cost, and what is kept of them. That no row is lost or read twice: test_gaps_machine."""

import pytest

from correlator.sources.gaps import MAX_COLD, MAX_EXACT, MAX_IDS, MAX_INTERVAL, MAX_KEPT, MAX_RANGES, Gaps
from tests.support.there import there

GRACE = 5.0


def gaps(*ids, now=100.0, **changes):
    made = Gaps(head=1, grace=GRACE, **changes)
    made.advance(ids, now)
    return made


def probe(found, now):
    return there(found.probe(now))


def settled(*ids, now=100.0):
    """Gaps whose window has been settled, and when."""
    found = gaps(*ids, now=now)
    found.answer(probe(found, now + GRACE), [], now + GRACE)
    assert not found.open
    return found, now + GRACE


def test_all_holes_of_one_batch_are_one_window():
    found = gaps(4, 6, 10)
    assert [w.holes for w in found.open] == [[(2, 3), (5, 5), (7, 9)]]
    assert (found.head, len(found.newest(100)), found.oldest(103.0)) == (10, 6, 3.0)


def test_holes_that_appear_soon_after_join_the_window_and_its_grace_begins_anew():
    found = gaps(3)
    found.advance([5], 100.05)
    assert [w.holes for w in found.open] == [[(2, 2), (4, 4)]]
    found.answer(probe(found, 105.04), [], 105.04)
    assert len(found.newest(100)) == 2
    found.advance([7], 105.1)
    assert len(found.open) == 2


def test_ids_that_join_a_window_while_it_is_probed_are_not_read_by_that_probe():
    found = gaps(3, now=100.0)
    assert found.read_to() == 100.0
    made = probe(found, 100.03)
    found.advance([5], 100.06, 100.01)
    found.answer(made, [], 100.08)
    found.probed(made)
    assert found.read_to() == 100.0
    made = probe(found, 100.2)
    found.answer(made, [], 100.21)
    found.probed(made)
    assert found.read_to() == 100.2


def test_a_cold_hit_is_emitted_once_and_counted_late():
    found, now = settled(4)
    assert found.answer(there(found.sweep(now + 10)), [3], now + 10) == [3]
    assert (found.fill([3]), found.fill([3]), found.late) == ([3], [], 1)
    assert found.cold == []
    assert [w.holes for w in found.open] == [[(2, 2)]], "alive after all: the rest of it is watched again"


def test_a_window_is_settled_only_by_a_probe_that_began_a_grace_after_its_last_sign_of_life():
    found = gaps(4, 6)
    found.answer(probe(found, 104.99), [], 120.0)
    assert len(found.newest(100)) == 3, "the probe began too early"
    assert found.answer(probe(found, 120.5), [5], 120.5) == [5]
    found.answer(probe(found, 125.4), [], 130.0)
    assert len(found.newest(100)) == 3, "life in one hole keeps the whole window"
    found.answer(probe(found, 130.5), [], 130.5)
    assert (len(found.newest(100)), len(found.cold), found.late) == (0, 1, 0)


def test_a_cold_window_is_given_up_by_a_last_probe_and_not_by_time_alone():
    found, now = settled(4)
    found.answer(there(found.sweep(now + 599)), [], now + 700)
    assert len(found.cold) == 1, "the probe began too early to be the last"
    found.answer(there(found.sweep(now + 5000)), [], now + 5000)
    assert (found.cold, found.open) == ([], [])


def test_silence_backs_off_and_life_brings_the_poll_back():
    found = gaps(3)
    assert found.probe(100.01) is None
    now, waits = 100.02, []
    for _ in range(8):
        found.answer(probe(found, now), [], now)
        due = there(found.next_due())
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


def test_windows_that_are_always_due_do_not_starve_the_others():
    found = Gaps(head=0)
    for i in range(3 * MAX_RANGES):
        found.advance([2 * i + 2], 10.0 * i)
    now, probed = 10_000.0, set()
    for _ in range(3):
        turn = probe(found, now)
        probed.update(turn.ranges)
        found.answer(turn, [r[0] for r in turn.ranges], now)  # all live: due again in 20 ms
        now += 0.03  # and a probe takes longer than that
    assert len(probed) == 3 * MAX_RANGES


def test_a_sweep_of_many_cold_windows_comes_in_parts_and_covers_each_once():
    found = Gaps(head=0, grace=GRACE)
    for i in range(2 * MAX_RANGES + 10):
        found.advance([2 * i + 2], 0.2 * i)
    now = 100.0
    while (due := found.probe(now)) is not None:
        found.answer(due, [], now)
    parts = []
    while (part := found.sweep(now)) is not None:
        found.answer(part, [], now)
        parts.append(part.ranges)
    assert [len(p) for p in parts] == [MAX_RANGES, MAX_RANGES, 10]
    assert sorted(r for part in parts for r in part) == [(2 * i + 1, 2 * i + 1) for i in range(2 * MAX_RANGES + 10)]


def test_a_probe_includes_windows_that_have_waited_half_their_time():
    found = gaps(3)
    found.answer(probe(found, 101.0), [], 101.0)
    found.advance([5], 101.0)
    assert probe(found, 101.02).ranges == [(4, 4), (2, 2)]
    found.answer(probe(found, 101.02), [], 101.02)
    found.advance([7], 101.2)
    assert found.probe(101.021) is None, "nothing is due"


def test_a_silent_window_with_many_rows_is_probed_less_often():
    rows = range(3, 10_003, 2)
    found = gaps(*rows)
    found.answer(probe(found, 101.0), rows, 101.0)
    assert found.next_due() == pytest.approx(101.5)
    found.answer(probe(found, 101.5), [2, *rows], 101.5)
    assert found.next_due() == pytest.approx(101.52), "but not when it lives"


# -- However many ids are missing, what is kept of them is bounded, and the newest are kept


def in_threes(windows: int, holes: int) -> Gaps:
    """`windows` of `holes` each."""
    gaps, at = Gaps(), 0
    for number in range(windows):
        gaps.advance(range(at + 3, at + 3 * holes + 3, 3), float(number))
        at += 3 * holes
    return gaps


def ranges(windows) -> int:
    return sum(len(w.holes) for w in windows)


def test_a_checkpoint_holds_the_newest_holes_and_no_more_than_it_has_room_for():
    gaps = in_threes(40, 1_000)
    kept = gaps.kept()
    flat = [hole for window in kept for hole in window]
    assert len(flat) == MAX_KEPT
    everything = [hole for w in gaps.open for hole in w.holes]
    assert flat == everything[-MAX_KEPT:]
    few = in_threes(3, 10)
    assert few.kept() == tuple(tuple(w.holes) for w in few.open)


def test_open_windows_are_kept_before_cold_ones():
    gaps = in_threes(20, 1_000)
    settle(gaps, gaps.open[:15])
    assert len(gaps.open) == 5
    kept = gaps.kept()
    assert kept[-5:] == tuple(tuple(w.holes) for w in gaps.open)
    assert sum(map(len, kept)) == MAX_KEPT


def test_of_too_many_cold_holes_the_oldest_are_given_up():
    gaps = in_threes(150, 1_000)
    newest = [tuple(w.holes) for w in gaps.open[-50:]]
    settle(gaps, list(gaps.open))
    assert gaps.open == []
    assert MAX_COLD - 1_000 <= ranges(gaps.cold) <= MAX_COLD
    assert [tuple(w.holes) for w in gaps.cold[-50:]] == newest


def settle(gaps, windows) -> None:
    for window in windows:
        window.settled = 1.0
    gaps.fill([])


def test_of_many_holes_the_latest_are_read_at_a_notification():
    found = gaps(5, 1000, now=0.0)
    found.advance([1003, 1005], 1.0)
    assert found.newest(5) == [1004, 1002, 1001, 999, 998]
    assert sorted(found.newest(2000)) == [*range(2, 5), *range(6, 1000), 1001, 1002, 1004]


def test_one_probe_asks_for_a_bounded_number_of_ids():
    gaps = in_threes(50, 1_000)
    probe = there(gaps.probe(1e9))
    assert sum(last - first + 1 for first, last in probe.ranges) <= MAX_IDS
    far = Gaps()
    far.advance([10**12], 0.0)
    assert far.probe(1e9) is not None, "one window is probed however wide it is"
