"""Maps with a bound: what they keep, what they evict, and in which order."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from correlator.bounded import BoundedDict, PendingRows, Schedule
from tests.support.held import held
from tests.support.yardstick import assert_costs

keys = st.sampled_from("abcde")


@given(st.lists(st.tuples(keys, st.integers())), st.integers(1, 3))
def test_a_bounded_map_keeps_the_keys_that_came_last_and_counts_the_others(puts, most):
    found: BoundedDict[str, int] = BoundedDict(most)
    kept: OrderedDict[str, int] = OrderedDict()
    evicted = 0
    for key, value in puts:
        kept[key] = value
        gone = kept.popitem(last=False) if len(kept) > most else None
        evicted += gone is not None
        assert found.put(key, value) == gone
    assert (list(found.items()), found.evicted) == (list(kept.items()), evicted)


def test_evicting_costs_the_same_however_large_the_map_is():
    def evicting(most: int):
        found: BoundedDict[int, None] = BoundedDict(most)
        for n in range(2 * most):
            found[n] = None
        more = iter(range(2 * most, 1 << 60))

        def evict() -> None:
            for n, _ in zip(more, range(5000), strict=False):
                found[n] = None

        return evict

    assert_costs(2, evicting(1_000), evicting(50_000))


@given(st.lists(st.tuples(keys, st.integers(-5, 5) | st.none())), st.integers(-5, 5), st.integers(0, 3))
def test_a_schedule_yields_each_key_once_by_its_last_number(steps, last, most):
    found, kept = Schedule[str](), dict[str, int]()
    for key, at in steps:
        if at is None:
            found.discard(key)
            kept.pop(key, None)
        else:
            found.put(key, at)
            kept[key] = at
    due = sorted((at, key) for key, at in kept.items() if at <= last)[:most]
    assert list(found.pop_until(last, most)) == [key for _, key in due]
    rest = sorted((at, key) for key, at in kept.items() if (at, key) not in due)
    assert found.first() == (rest[0] if rest else None)
    assert (len(found), {key for key in kept if key in found}) == (len(rest), {key for _, key in rest})


def test_a_schedule_whose_times_change_for_ever_stays_as_large_as_its_keys():
    found = Schedule[str]()
    for at in range(100_000):
        found.put("abc"[at % 3], at)
    assert held(found) < 20_000


@given(st.lists(st.tuples(keys, st.text(max_size=4))), st.integers(1, 5), st.integers(0, 10))
def test_pending_rows_are_bounded_in_number_and_bytes_and_none_is_lost(rows, most, most_bytes):
    found: PendingRows[str, str] = PendingRows(most, most_bytes, len)
    left: list[tuple[str, str]] = []
    for key, row in rows:
        left += [(key, gone) for gone in found.add(key, row)]
        assert (found.count, found.bytes) <= (most, 10**9)
        assert found.bytes <= most_bytes
    left += [(key, row) for key in list(found) for row in found.pop(key)]
    assert sorted(row for _, row in left) == sorted(row for _, row in rows)
    assert (found.count, found.bytes, bool(found)) == (0, 0, False)
