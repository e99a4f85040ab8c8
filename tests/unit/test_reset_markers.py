"""Where the log is known again after its ids started anew lower."""

from itertools import pairwise

from msgspec.structs import replace

from correlator.model.rows import LogRow
from correlator.sources.tail import (
    EVERY,
    LEVELS,
    PER_LEVEL,
    RECENT,
    ResetMarkers,
)


def row(number: int, text: str = "m") -> LogRow:
    return LogRow(number, f"{text} {number}", number)


def test_the_newest_row_that_is_the_same_is_found():
    marks = ResetMarkers()
    marks.add(map(row, range(1, 11)))
    assert marks.newest_of([row(3), row(7), row(8, "another"), replace(row(9), ts=1), row(11)]) == row(7)
    assert marks.newest_of([row(8, "another")]) is None
    changed = replace(row(9), job_id=None, step_id=5)
    assert marks.newest_of([changed]) == changed


def test_all_of_the_newest_and_some_of_the_older_rows_are_remembered():
    marks = ResetMarkers()
    total = 10 * RECENT
    marks.add(map(row, range(1, total + 1)))
    ids = list(marks.ids())
    assert ids[:RECENT] == list(range(total, total - RECENT, -1))
    assert ids == sorted(ids, reverse=True)
    for newer, older in pairwise(ids[RECENT:]):
        assert newer - older <= (total - newer) / 25, "of older ones fewer, but never so few that much is read again"
    assert total - ids[-1] >= RECENT + PER_LEVEL * (EVERY + EVERY**2)


def test_what_a_checkpoint_holds_of_them_is_the_same_and_does_not_grow():
    marks = ResetMarkers()
    marks.add(map(row, range(1, 200_001)))
    again = ResetMarkers(marks.packed())
    assert list(again.ids()) == list(marks.ids())
    assert again.newest_of([row(199_990), row(199_995, "other")]) == row(199_990)
    assert again.packed() == marks.packed()
    assert len(marks.packed()) <= 12 * (RECENT + LEVELS * PER_LEVEL)


def test_rows_above_a_cut_are_no_markers_any_more():
    marks = ResetMarkers()
    marks.add(map(row, range(1, 2_001)))
    marks.cut(150)
    assert max(marks.ids()) <= 150
    marks.add([row(151, "new")])
    assert marks.newest_of([row(151)]) is None


def test_rows_that_were_read_late_are_markers_in_their_place():
    marks = ResetMarkers()
    marks.add(row(n) for n in range(1, 2 * RECENT) if n % 10)
    marks.add_late([row(2_000), row(10)])
    ids = list(marks.ids())
    assert 2_000 in ids
    assert 10 not in ids[:RECENT]
    assert ids == sorted(ids, reverse=True)
    marks.add_late([row(n) for n in range(1_990, 0, -10)])
    assert len(marks.packed()) <= 12 * (RECENT + LEVELS * PER_LEVEL)
    assert marks.newest_of([row(1_990), row(1_980)]) == row(1_990)
