"""Where the log is known again after its ids started anew lower."""

from msgspec.structs import replace

from correlator.jobs.model import LogRow
from correlator.sources.landmarks import EVERY, OLDER, RECENT, Landmarks


def row(number: int, text: str = "m") -> LogRow:
    return LogRow(number, f"{text} {number}", number)


def test_the_newest_row_that_is_the_same_is_found():
    marks = Landmarks()
    marks.add(map(row, range(1, 11)))
    assert marks.newest_of([row(3), row(7), row(8, "another"), replace(row(9), ts=1), row(11)]) == row(7)
    assert marks.newest_of([row(8, "another")]) is None
    changed = replace(row(9), job_id=None, step_id=5)
    assert marks.newest_of([changed]) == changed


def test_all_of_the_newest_and_some_of_the_older_rows_are_remembered():
    marks = Landmarks()
    total = RECENT + EVERY * (OLDER + 5)
    marks.add(map(row, range(1, total + 1)))
    ids = list(marks.ids())
    assert ids[:RECENT] == list(range(total, total - RECENT, -1))
    assert len(ids) == RECENT + OLDER
    assert {a - b for a, b in zip(ids[RECENT:], ids[RECENT + 1 :], strict=False)} == {EVERY}


def test_what_was_cut_off_is_no_landmark_any_more():
    marks = Landmarks()
    marks.add(map(row, range(1, 2_001)))
    marks.cut(150)
    assert list(marks.ids()) == [100]
    marks.add([row(151, "new")])
    assert marks.newest_of([row(151)]) is None
