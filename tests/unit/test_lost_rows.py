"""What JobLog lost, as the tables show it: after a grace, once for each job and step, and nothing that came in time."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from correlator.jobs import joblog
from correlator.jobs.index import Index
from correlator.jobs.missing_rows import GRACE
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.published import LOST
from correlator.model.rows import JobRecord, StepRecord
from tests.support.recorded_facts import reading_of, row_of
from tests.support.replay import expected

NOW = 1_758_553_933_000_000
STARTED = {"started_at": NOW}


def live() -> Index:
    index = Index(retention=10**9)
    index.loading = False
    return index


def read(index, now, status="running", *steps, **columns):
    """A query of the tables; what it found to be lost."""
    record = JobRecord("j", status=status, **STARTED | columns)
    return index.apply([Reading("j", index.advance_clock(), record, steps)], now).lost


def log(index, now, kind, **more):
    entry = Entry(more.pop("event_id", 1), now, "INFO", "text", index.advance_clock(), "j", kind=kind, **more)
    assert index.apply([entry], now).lost == []


def step(status="running", error=None, *, step_id=1):
    return StepRecord(step_id, "one", 1, status, NOW, None, error)


def test_a_job_that_no_row_names_is_lost_after_the_grace_once():
    index = live()
    assert read(index, NOW) == []
    assert read(index, NOW + GRACE - 1) == []
    assert read(index, NOW + GRACE) == ["job_started"]
    assert read(index, NOW + 9 * GRACE) == []
    assert read(index, NOW + 10 * GRACE, "failed") == []
    assert read(index, NOW + 11 * GRACE, "failed") == ["job_ended"]
    assert read(index, NOW + 99 * GRACE, "failed") == []
    assert index._records["j"].observed is None


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        (Kind.JOB_STARTED, ["job_started"]),
        (Kind.STEP_STARTED, ["step_started"]),
        (Kind.STEP_FAILED, ["step_ended"]),
        (Kind.JOB_COMPLETED, ["job_ended"]),
    ],
)
def test_each_row_that_never_comes_has_its_kind(missing, lost):
    index = live()
    for kind in (Kind.JOB_STARTED, Kind.STEP_STARTED, Kind.STEP_FAILED, Kind.JOB_COMPLETED):
        if kind is not missing:
            log(index, NOW, kind, step_id=1 if kind.of_step else None)
    assert read(index, NOW, "completed", step("failed")) == []
    assert read(index, NOW + GRACE, "completed", step("failed")) == lost


def test_an_ending_of_another_kind_does_not_count_for_this_one():
    index = live()
    log(index, NOW, Kind.JOB_STARTED)
    log(index, NOW, Kind.JOB_COMPLETED)
    read(index, NOW, "cancelled")
    assert read(index, NOW + GRACE, "cancelled") == ["job_ended"]


def test_an_error_text_that_only_the_table_has_is_counted_for_jobs_and_steps():
    index = live()
    log(index, NOW, Kind.JOB_STARTED)
    log(index, NOW, Kind.STEP_STARTED, step_id=1)
    log(index, NOW, Kind.STEP_FAILED, step_id=1, error="boom")
    log(index, NOW, Kind.JOB_FAILED, error="boom")
    read(index, NOW, "failed", step("failed", "bang"), error_message="boom: all of it")
    assert read(index, NOW + GRACE, "failed", step("failed", "bang"), error_message="boom: all of it") == ["error"] * 2


def test_a_percentage_is_lost_only_where_the_log_has_percentages():
    index = live()
    log(index, NOW, Kind.JOB_STARTED)
    read(index, NOW, percent_complete=40)
    assert read(index, NOW + GRACE, percent_complete=40) == []
    log(index, NOW + GRACE, None, percent=40)
    read(index, NOW + GRACE, percent_complete=40)
    assert read(index, NOW + 2 * GRACE, percent_complete=60) == []
    assert read(index, NOW + 3 * GRACE - 1, percent_complete=70) == []  # it moves on: each has the whole grace
    assert read(index, NOW + 4 * GRACE, percent_complete=70) == ["percent"]
    assert read(index, NOW + 9 * GRACE, percent_complete=70) == []


def test_changes_before_the_first_reading_are_no_loss_but_later_ones_are():
    index = live()
    index.loading = True
    read(index, NOW, "running", step("completed"))
    index.loading = False
    assert read(index, NOW + GRACE, "running", step("completed")) == []
    read(index, NOW + GRACE, "running", step("completed"), step(step_id=2))
    assert read(index, NOW + 2 * GRACE, "running", step("completed"), step(step_id=2)) == ["step_started"]


def losses(tables, dropped=()):
    """What is lost when all rows of a recording came but those with a message of `dropped`."""
    index = live()
    observed_at = index.advance_clock()
    rows = [row_of(row) for row in tables["log_events"].values() if row["message"] not in dropped]
    steps = {s["id"]: s["job_id"] for s in tables["job_steps"].values()}
    entries = [joblog.read(row, observed_at)[0] for row in rows]
    index.apply([replace(e, job_id=e.job_id or steps.get(e.step_id)) for e in entries], NOW)
    lost: Counter[str] = Counter()
    for now in (NOW, NOW + GRACE, NOW + 2 * GRACE):
        readings = [reading_of(tables, job_id, index.advance_clock()) for job_id in tables["job_tracking"]]
        lost.update(index.apply(readings, now).lost)
    return lost


def test_of_a_recording_just_the_rows_that_were_dropped_are_lost(recording):
    tables = expected(recording)
    assert losses(tables) == {}
    assert losses(tables, ("Step started",)) == {"step_started": len(tables["job_steps"])}
    lost = losses(tables, {r["message"] for r in tables["log_events"].values()})
    ended = [s for s in tables["job_steps"].values() if s["status"] != "running"]
    assert (lost["step_ended"], lost["job_started"]) == (len(ended), len(tables["job_tracking"]))
    assert set(lost) <= set(LOST)
