"""The trend of an operation: what its newest run took, beside the median of those before it."""

from __future__ import annotations

import json

import msgspec
import pytest

from correlator.forecast.trends import TYPICAL_RUNS, ComparedRun, trends
from correlator.terminal.history import run_of
from tests.support.paths import REPOSITORY

CASES = json.loads((REPOSITORY / "tests/data/trends.json").read_text())
"""The page's own `trend.js` is tested with the same cases."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_newest_run_is_compared_with_those_before(case):
    jobs = [{"terminal": job["status"] != "running", **job} for job in case["jobs"]]
    assert msgspec.to_builtins(trends(map(run_of, jobs))) == case["trends"]


def test_runs_of_long_ago_no_longer_count():
    key = ("replication", "backup")
    old = [ComparedRun(key, "completed", 1000.0)] * 500
    (trend,) = trends([ComparedRun(key, "completed", 10.0)] * (TYPICAL_RUNS + 1) + old)
    assert (trend.typical_seconds, trend.runs) == (10.0, 521)
