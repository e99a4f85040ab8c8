"""The comparison with an earlier tree: which ratios, bounds and verdicts follow from numbers."""

from __future__ import annotations

import json
import math
import random

import pytest

from benchmarks.against import LEAST, Ratio, add, interval, numbers

LABEL = ("one row", "")


def test_an_interval_leaves_out_as_many_values_as_the_sign_test_allows():
    # The table of the sign test, 2.5 % on each side: none of 6 to 8 values, one of 9 to 11, two of 12, five of 20.
    for count, left_out in ((6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)):
        values = list(range(count))
        random.Random(count).shuffle(values)
        assert interval(values) == (left_out, count - 1 - left_out), count
    assert interval([1.0] * (LEAST - 1)) == (-math.inf, math.inf), "too few bound nothing"


@pytest.mark.parametrize(("unit", "after", "ratio"), [("ms", 2.0, 2.0), ("requests/s", 2.0, 0.5), ("kB", 0.5, 0.5)])
def test_a_ratio_above_one_is_worse(unit: str, after: float, ratio: float):
    number = Ratio("a number", unit, [1.0] * LEAST, [after] * LEAST)
    assert number.median == ratio
    assert number.verdict == ("yes" if ratio > 1 else "no")


def test_a_number_that_may_or_may_not_be_worse_is_open():
    assert Ratio("a number", "ms", [1.0] * 6, [0.9, 1.0, 1.0, 1.0, 1.0, 1.06]).verdict == "open"
    assert Ratio("a number", "ms", [1.0] * 9, [0.9, *[1.0] * 7, 1.06]).verdict == "no"
    for after, verdict in ((0.0, "no"), (1.0, "yes")):
        assert Ratio("rows lost", "rows", [0.0] * 6, [after] * 6).verdict == verdict


def test_only_numbers_of_both_trees_are_compared_and_sizes_in_bytes_may_differ():
    def written(*pairs: tuple[str, float]) -> str:
        return json.dumps(
            {"numbers": [{"what": what, "yardstick": "", "median": value, "unit": "ms"} for what, value in pairs]}
        )

    found: dict[tuple[str, str], Ratio] = {}
    before = numbers(written(("GET, 2,797 B", 1.0), ("gone", 1.0), ("one row", 4.0)))
    after = numbers(written(("one row", 2.0), ("new", 1.0), ("GET, 999 B", 3.0)))
    add(found, before, after)
    assert {label: number.ratios for label, number in found.items()} == {LABEL: [0.5], ("GET, … B", ""): [3.0]}
