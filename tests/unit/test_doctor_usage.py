"""How JobLog is being used: what an engineer would find by hand in a day of rows and records."""

from __future__ import annotations

import json

from correlator.doctor import usage
from correlator.doctor.usage import LogOfDay, TablesOfDay
from correlator.model.rows import JobRecord, LegacyRecord, LogRow, StepRecord

KEYS = ("external_job_id", "failover_job_id")
NOW = 1_758_600_000_000_000
MINUTE = 60_000_000
_ids = iter(range(1, 10_000))


def row(message="note", *, job=None, external=None, ago=10, **attrs):
    text = json.dumps(attrs) if attrs else None
    return LogRow(next(_ids), message, NOW - ago * MINUTE, "INFO", job, None, text, external)


def job(job_id, *, kind="failover", status="completed", column=None, ended=10, **metadata):
    return JobRecord(
        job_id,
        status=status,
        job_type=kind,
        external_job_id=column,
        metadata=json.dumps(metadata) if metadata else None,
        started_at=NOW - 20 * MINUTE,
        completed_at=NOW - ended * MINUTE if status != "running" else None,
    )


def legacy(job_id):
    return LegacyRecord(1, job_id, created_at=NOW - 5 * MINUTE)


def log(*rows):
    summary = LogOfDay(KEYS)
    summary.add(rows)
    return summary


def test_the_share_of_rows_without_a_job_is_reported_with_the_number_examined():
    check = usage.judge_rows(log(row(), row(), row(), row(job_id="j")), TablesOfDay((job("j"),)))
    assert check.status == "ok"
    assert check.summary.startswith("3 of 4 (75 %) rows belong to no job; examined: 4 rows")


def test_a_log_that_is_empty_or_names_no_job_is_warned_of():
    assert usage.judge_rows(log(), TablesOfDay(())).status == "warning"
    assert usage.judge_rows(log(row(), row()), TablesOfDay((job("j"),))).status == "warning"
    assert usage.judge_rows(log(row(), row()), TablesOfDay(())).status == "ok"


def test_failovers_without_an_external_id_are_warned_of_and_schedulers_are_not():
    bare = TablesOfDay((job("s", kind="scheduler"), job("f", failover_job_id="gui-1"), job("g", column="gui-2")))
    assert usage.judge_ids(log(), bare).status == "ok"
    check = usage.judge_ids(log(), TablesOfDay((*bare.jobs, job("lost"))))
    assert check.status == "warning"
    assert "failover: 1 of 3 (33 %)" in check.detail
    assert any("lost" in line for line in check.detail)
    assert usage.judge_ids(log(row(external="gui-9", job="lost")), TablesOfDay((job("lost"),))).status == "ok"


def test_ids_of_rows_that_no_job_has_are_candidates():
    summary = log(
        row(external="attributed", job="j"),
        row(external="gui-1"),
        row(external="legacy-1"),
        row(external="nowhere"),
        row(external_job_id="in-attrs"),
    )
    found = TablesOfDay((job("j"),), older=(job("old", failover_job_id="gui-1"),), legacy=(legacy("legacy-1"),))
    assert usage.candidates(summary, found) == ["in-attrs", "nowhere"]


def test_ids_that_lead_nowhere_are_given_as_examples():
    summary = log(*(row(external=f"id-{n}") for n in range(9)))
    names = [f"id-{n}" for n in range(7)]
    check = usage.judge_unresolved(summary, TablesOfDay(()), names, 2)
    assert check.status == "warning"
    assert check.summary == "9 of 9 (100 %) external IDs lead nowhere"
    assert check.detail[0] == "e.g. id-0, id-1, id-2, id-3, id-4, and 2 more"
    assert check.fix == ("correlator tap --job id-0",)
    assert usage.judge_unresolved(summary, TablesOfDay(()), [], 0).status == "ok"
    check = usage.judge_unresolved(log(row(external="x")), TablesOfDay((job("j", ui_job="x"),)), ["x"], 0)
    assert check.fix == ('jobs.external_id_keys = ["external_job_id", "failover_job_id", "ui_job"]',)


def test_legacy_rows_without_a_joblog_job_are_named():
    found = TablesOfDay((job("j", failover_job_id="gui-1"),), legacy=(legacy("gui-1"), legacy("alone")))
    assert list(usage.unclaimed(log(), found)) == ["alone"]
    check = usage.judge_legacy(log(), found, ["alone"], legacy=True)
    assert (check.status, check.detail[0]) == ("warning", "e.g. alone")
    assert check.fix, "a command that shows more"
    assert any("docs/joblog.md" in line for line in check.detail)
    assert usage.judge_legacy(log(), found, [], legacy=True).status == "ok"
    assert usage.judge_legacy(log(), found, ["alone"], legacy=False).fix


def ended(job_id):
    return row("Job completed", job=job_id, job_id=job_id, status="completed")


def steps(job_id, *numbers):
    at = NOW - 15 * MINUTE
    return {job_id: [StepRecord(n, "s", n, "completed", at, at + 1) for n in numbers]}


def test_ends_that_only_the_tables_show_are_counted_as_dropped():
    whole = log(
        ended("a"),
        row("Step started", job_id="a", step_id=1),
        row("Step completed", job_id="a", step_id=1),
        row("Step completed", job_id="a", step_id=2),
    )
    found = TablesOfDay((job("a"), job("b"), job("c", status="running")), steps=steps("a", 1, 2))
    check = usage.judge_drops(whole, found, NOW, {"job_ended": 3.0, "error": 0.0})
    assert check.status == "warning"
    assert check.summary == "2 of 6 starts and ends of the tables are not in the log"
    assert any("JobLog drops rows while its queue is full" in line for line in check.detail)
    assert not any("deleted" in line for line in check.detail)
    assert check.fix, "a command that shows more"
    nothing_missed = usage.judge_drops(whole, found, NOW, {"job_ended": 0.0})
    assert any("The daemon missed none since its start" in line for line in nothing_missed.detail)
    assert not any("queue is full" in line for line in nothing_missed.detail)
    unknown = usage.judge_drops(whole, found, NOW, None)
    assert any("queue is full" in line and "deleted" in line for line in unknown.detail)
    assert "job ends: 1 of 2 (50 %) are in the tables and not in the log" in check.detail
    assert "step starts: 1 of 2 (50 %) are in the tables and not in the log" in check.detail
    assert "step ends: 0 of 2 (0 %) are in the tables and not in the log" in check.detail
    assert any("job_ended 3 " in line for line in check.detail)


def test_a_log_without_a_column_that_names_steps_or_jobs_is_not_judged():
    found = TablesOfDay((job("a"),), steps=steps("a", 1, 2))
    check = usage.judge_drops(log(row()), found, NOW, None, unread=("log_events.attrs",))
    assert (check.status, check.summary) == ("ok", "not judged: log_events.attrs cannot be read")


def test_ends_of_the_last_minute_or_before_the_examined_period_are_not_missed():
    assert usage.judge_drops(log(ended("a")), TablesOfDay((job("a"),)), NOW, None).status == "ok"
    fresh = TablesOfDay((job("a", ended=0),))
    assert usage.judge_drops(log(row(ago=30)), fresh, NOW, None).status == "ok"
    partial = log(row(ago=5))
    partial.whole = False
    assert usage.judge_drops(partial, TablesOfDay((job("a", ended=8),)), NOW, None).status == "ok"
    assert usage.judge_drops(partial, TablesOfDay((job("a", ended=3),)), NOW, None).status == "warning"


def test_operations_without_a_forecast_are_named_and_are_no_warning():
    kinds = ("failover", "live"), ("failover", "live"), ("replication", "copy"), (None, "scan"), ("other", None)
    jobs = [JobRecord(str(n), job_type=kind, operation=operation) for n, (kind, operation) in enumerate(kinds)]
    found = TablesOfDay(tuple(jobs[:3]), older=tuple(jobs[3:]))
    check = usage.judge_operations(found, {("replication", "copy"): 3, ("", "scan"): 2, ("failover", "test"): 50})
    assert check.status == "ok"
    assert check.summary == "2 of 3 (67 %) operations of two days have no forecast yet"
    assert check.detail == ("Fewer than 3 completed runs are known of: live (failover), scan (without type)",)
    every = {("replication", "copy"): 3, ("failover", "live"): 100, ("", "scan"): 4}
    assert usage.judge_operations(found, every).summary.startswith("all 3 operations of two days")
    assert usage.judge_operations(TablesOfDay(()), {}).summary == "no job with an operation in two days"
