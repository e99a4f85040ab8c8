"""The judge of forecasts on two small sets, its verdict on a forecaster that is wrong, and tables of measurements."""

from __future__ import annotations

import re
from functools import cache

import pytest

from benchmarks import __main__ as performance
from benchmarks import report
from benchmarks.forecast_sets import JudgedRun, runs_of, simulated
from benchmarks.judge import Verdict, judge, measure
from benchmarks.rows.forecast import DOCUMENT, SETS, hangs_noticed, line, long_runs, steps_seen
from correlator.forecast.estimate import Estimate
from correlator.forecast.forecaster import Forecaster


@cache
def judged(name: str) -> tuple[list[JudgedRun], Verdict]:
    runs = runs_of(name)
    return runs, judge(runs)


def test_percent_of_the_recording_is_right_to_two_and_a_half_points_and_never_falls():
    runs, verdict = judged("busy")
    assert len(runs) > 300
    assert long_runs(verdict).percent <= 2.5
    assert verdict.falls == 0
    assert steps_seen(verdict) > 20, "the error of steps done of steps seen"


def test_p90_of_jobs_that_may_hang_is_right_nine_times_in_ten():
    _, verdict = judged("hang")
    assert not SETS["hang"].faults(verdict)
    noticed, wrongly = hangs_noticed(verdict.answers)
    assert noticed >= 80
    assert wrongly <= 5


@pytest.mark.parametrize("name", ["busy", "hang"])
def test_the_table_of_the_document_is_what_the_judge_finds(name):
    found = line(name, *judged(name))
    table = DOCUMENT.read_text().partition(report.BEGIN)[2].partition(report.END)[0]
    (shown,) = re.findall(rf"^\| {name} \|.*$", table, re.MULTILINE)
    for cell, expected in zip(shown.strip("| ").split(" | "), found, strict=True):
        if re.fullmatch(r"[\d.]+", expected):
            assert float(cell) == pytest.approx(float(expected), abs=0.5, rel=0.05)
        else:
            assert cell == expected


def test_the_table_of_the_measurements_is_what_was_measured():
    assert performance.documented() == performance.DOCUMENT.read_text()


class Wrong(Forecaster):
    """Predicts twice the remaining time."""

    def estimate(self, key, entity, place, now, known_within=0.0):
        found = super().estimate(key, entity, place, now, known_within)
        return found and Estimate(
            2 * found.p50, 2 * found.p90, 2 * found.for_percent, found.runs, found.state, found.extrapolated
        )


def test_the_judge_refuses_a_forecaster_that_is_wrong_by_a_factor_of_two():
    runs = simulated("vm", count=200)
    right, wrong = (measure(judge(runs, forecaster=f).answers) for f in (Forecaster(), Wrong()))
    assert right.nmae < wrong.nmae
    assert right.percent < wrong.percent
    assert SETS["vm"].faults(judge(runs, forecaster=Wrong()))
