"""What is known again of a log that is not as it was read: where to go on, and which rows are no news."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.model.rows import LogRow
from correlator.sources.db.queries import HEAVY, MESSAGE_COMPARED
from correlator.sources.reset_markers import (
    ALIKE,
    EVERY,
    LEVELS,
    PER_LEVEL,
    RECENT,
    ReadRows,
    ResetMarkers,
    mark_of,
    same,
)

MINUTE = 60_000_000


def row(number: int, text: str = "m") -> LogRow:
    return LogRow(number, f"{text} {number}", number)


def marked(*rows: LogRow) -> ResetMarkers:
    marks = ResetMarkers()
    marks.add(map(mark_of, rows))
    return marks


def newest_of(marks: ResetMarkers, *rows: LogRow) -> LogRow | None:
    return marks.newest_known({one.id: one for one in rows})


def test_the_newest_row_that_is_the_same_is_found():
    marks = marked(*map(row, range(1, 11)))
    assert newest_of(marks, row(3), row(7), row(8, "another"), replace(row(9), ts=1), row(11)) == row(7)
    assert newest_of(marks, row(8, "another")) is None
    changed = replace(row(9), job_id=None, step_id=5)
    assert newest_of(marks, changed) == changed


def test_all_of_the_newest_and_some_of_the_older_rows_are_remembered():
    total = 10 * RECENT
    marks = marked(*map(row, range(1, total + 1)))
    ids = list(marks.ids())
    assert ids[:RECENT] == list(range(total, total - RECENT, -1))
    assert ids == sorted(ids, reverse=True)
    for newer, older in pairwise(ids[RECENT:]):
        assert newer - older <= (total - newer) / 25, "of older ones fewer, but never so few that much is read again"
    assert total - ids[-1] >= RECENT + PER_LEVEL * (EVERY + EVERY**2)


def test_what_a_checkpoint_holds_of_them_is_the_same_and_does_not_grow():
    marks = marked(*map(row, range(1, 200_001)))
    again = ResetMarkers(marks.packed(), marks.shapes())
    assert list(again) == list(marks)
    assert newest_of(again, row(199_990), row(199_995, "other")) == row(199_990)
    assert (again.packed(), again.shapes()) == (marks.packed(), marks.shapes())
    assert len(marks.packed()) + len(marks.shapes()) <= 16 * (RECENT + LEVELS * PER_LEVEL)


def test_the_markers_of_a_version_that_had_no_shapes_find_the_rows_of_the_same_times():
    rows = [row(n) for n in range(1, 11)]
    again = ResetMarkers(marked(*rows).packed())
    assert newest_of(again, *rows) == rows[-1]
    assert newest_of(again, *(replace(one, ts=one.ts + MINUTE) for one in rows)) is None


def test_rows_above_a_cut_are_no_markers_any_more():
    marks = marked(*map(row, range(1, 2_001)))
    marks.cut(150)
    assert max(marks.ids()) <= 150
    marks.add([mark_of(row(151, "new"))])
    assert newest_of(marks, row(151)) is None


def test_rows_that_were_read_late_are_markers_in_their_place():
    marks = marked(*(row(n) for n in range(1, 2 * RECENT) if n % 10))
    marks.add_late(map(mark_of, [row(2_000), row(10)]))
    ids = list(marks.ids())
    assert 2_000 in ids
    assert 10 not in ids[:RECENT]
    assert ids == sorted(ids, reverse=True)
    marks.add_late(mark_of(row(n)) for n in range(1_990, 0, -10))
    assert len(marks.packed()) <= 12 * (RECENT + LEVELS * PER_LEVEL)
    assert newest_of(marks, row(1_990), row(1_980)) == row(1_990)


# -- times that were rewritten

LOG = [LogRow(n, f"message {n % 5}", 1_000_000_000 + 700_123 * n, attrs=f'{{"n": {n // 2}}}') for n in range(1, 41)]

REWRITTEN = {
    "whole seconds": lambda ts: ts // 1_000_000 * 1_000_000,
    "milliseconds, rounded": lambda ts: round(ts, -3),
    "seven minutes later": lambda ts: ts + 7 * MINUTE,
}


@pytest.mark.parametrize("how", REWRITTEN)
def test_rows_of_other_times_are_those_that_were_read_and_known_by_these_times_from_then_on(how):
    marks = marked(*LOG)
    rewritten = {one.id: replace(one, ts=REWRITTEN[how](one.ts)) for one in LOG}
    assert marks.newest_known(rewritten) == rewritten[40]
    assert marks.renew(rewritten) == sum(one != rewritten[one.id] for one in LOG)
    assert marks.renew(rewritten) == 0
    assert all(newest_of(marks, one) == one for one in rewritten.values())


def test_times_of_a_few_rows_alone_and_rows_that_are_all_alike_may_be_other_rows():
    few = [replace(one, ts=one.ts + MINUTE) for one in LOG[-ALIKE + 1 :]]
    assert newest_of(marked(*LOG), *LOG[: -ALIKE + 1], *few) == LOG[-ALIKE]
    alike = [LogRow(n, "GET /health", n) for n in range(1, 41)]
    assert newest_of(marked(*alike), *(replace(one, ts=one.ts + MINUTE) for one in alike)) is None


def test_rows_of_the_same_messages_and_other_attrs_are_other_rows():
    again = [replace(one, ts=one.ts + 7 * MINUTE, attrs=f'{{"n": {one.id + 1000}}}') for one in LOG]
    assert newest_of(marked(*LOG), *again) is None


@given(st.data())
def test_whatever_is_lost_replaced_and_rewritten_reading_goes_on_after_the_newest_row(data):
    lost = data.draw(st.integers(0, len(LOG)))
    kept = LOG[: len(LOG) - lost]
    rewrite = data.draw(st.sampled_from([None, *REWRITTEN.values()]))
    found = [one if rewrite is None else replace(one, ts=rewrite(one.ts)) for one in kept]
    new = [
        LogRow(len(kept) + n, f"message {n % 5}", 9_000_000_000 + n) for n in range(1, data.draw(st.integers(0, 60)))
    ]
    known = newest_of(marked(*LOG), *found, *new)
    if rewrite is None:
        assert known == (found[-1] if found else None)
    elif len(found) >= 2 * ALIKE:
        assert known == found[-1]
    else:
        assert known in (None, *found), "of so few, it may be that none is known again"


@pytest.mark.parametrize("message", ["short", "m" * HEAVY, "é" * (HEAVY // 2 + 1)])
@pytest.mark.parametrize(
    "attrs", [None, '{"a": 1}', '{"a": "' + "x" * HEAVY + '"}', '{"a": "' + "é" * (HEAVY // 2) + '"}']
)
def test_a_light_reading_of_a_row_is_the_same_row_as_the_whole_one(message, attrs):
    whole = LogRow(1, message, 5, attrs=attrs)
    sizes = [len((text or "").encode()) for text in (message, attrs)]
    light = whole
    if max(sizes) > HEAVY:
        shown = message[:MESSAGE_COMPARED] if sizes[0] > HEAVY else message
        light = replace(whole, message=shown, attrs=f"{joblog.TOO_LONG}{sum(sizes)}")
    assert same(light, whole)
    assert mark_of(light) == mark_of(whole)


# -- rows that come back


def test_a_row_that_went_away_is_known_when_it_comes_back_and_another_one_with_its_id_is_not():
    read = ReadRows()
    read.add([mark_of(row(n)) for n in range(1, 11)])
    assert not read
    read.reset(5)
    assert read
    assert [n for n in range(1, 12) if read.is_known(mark_of(row(n)))] == [6, 7, 8, 9, 10]
    assert not read.is_known(mark_of(row(7, "another")))
    assert not read.is_known(mark_of(replace(row(7), ts=8)))
    read.forget()
    assert not read.is_known(mark_of(row(7)))


def test_of_two_rows_that_had_an_id_the_one_that_was_read_last_is_known():
    read = ReadRows()
    read.add([mark_of(row(1))])
    read.reset(0)
    read.add([mark_of(row(1, "another"))])
    read.reset(0)
    assert [read.is_known(mark_of(one)) for one in (row(1), row(1, "another"))] == [False, True]


def test_the_rows_that_are_remembered_are_the_newest_and_bounded():
    read = ReadRows(most=1_000)
    for first in range(1, 5_000, 100):
        read.add([mark_of(row(n)) for n in range(first, first + 100)])
    read.reset(0)
    known = [n for n in range(1, 5_001) if read.is_known(mark_of(row(n)))]
    assert known == list(range(4_001, 5_001))
