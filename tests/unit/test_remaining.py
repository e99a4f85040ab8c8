"""The remaining time and the percent of a job between two changes of its document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from correlator.client.documents import moment, remaining
from correlator.forecast.percent import MAX_PERCENT, percent_by_clock
from tests.support.paths import DATA
from tests.support.there import there

CASES = json.loads((DATA / "remaining.json").read_text())
TIMES = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_python_client_computes_what_remains_as_the_shared_table_says(case: dict[str, Any]) -> None:
    found = remaining(case["job"], there(moment(case["now"])).timestamp())
    if case["expected"] is None:
        assert found is None
        return
    assert found is not None
    assert {"p50": found.p50, "p90": found.p90, "percent": found.percent} == pytest.approx(case["expected"], abs=1e-3)


@given(
    percent=st.floats(0.0, MAX_PERCENT),
    started=TIMES,
    as_of=TIMES,
    p50=TIMES,
    moments=st.lists(TIMES, min_size=2, max_size=8),
)
def test_percent_never_falls_nor_passes_99_whatever_the_times_are(
    percent: float, started: float, as_of: float, p50: float, moments: list[float]
) -> None:
    found = [percent_by_clock(now, percent=percent, as_of=as_of, started=started, p50=p50) for now in sorted(moments)]
    assert found == sorted(found)
    assert all(percent <= one <= MAX_PERCENT for one in found)


@given(percent=st.floats(1.0, 98.0), elapsed=st.floats(1.0, 1e6), rest=st.floats(1.0, 1e6))
def test_percent_begins_at_what_was_forecast(percent: float, elapsed: float, rest: float) -> None:
    found = percent_by_clock(elapsed, percent=percent, as_of=elapsed, started=0.0, p50=elapsed + rest)
    assert found == pytest.approx(percent)
