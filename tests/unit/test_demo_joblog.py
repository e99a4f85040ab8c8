"""The demo's JobLog against what JobLog is known to write."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest

from correlator.demo.joblog import (
    DemoJob,
    JobLog,
    JobStatus,
    Lane,
    LegacyTable,
    Level,
    NewRow,
    StepStatus,
    create_database,
    go_json,
)
from correlator.demo.scenarios import PastClock, Player

AT = datetime(2025, 9, 22, 15, 12, 13, 123456, UTC)
BERLIN = ZoneInfo("Europe/Berlin")
JOB = DemoJob(
    id="e8f15a6d-c5f4-4d69-af72-194b96a0c7fb",
    job_type="failover",
    operation="unified-live-failover",
    owner="system",
    external_id="unified-live-failover-pgtest2-1758553933",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "appliance.db"
    create_database(path)
    return path


@pytest.fixture
async def lane(path: Path) -> AsyncIterator[Lane]:
    async with Lane(path) as lane:
        yield lane


def columns(row: NewRow) -> set[str]:
    return {name for name in ("job_id", "step_id", "external_job_id") if getattr(row, name) is not None}


def table(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


@pytest.fixture
async def every_row(lane: Lane) -> list[NewRow]:
    """The rows of one job of each fate."""
    rows: list[NewRow] = []
    joblog = JobLog(lane, rows.append, zone=BERLIN, level=Level.DEBUG)
    scenarios = (
        "failover failed",
        "failover panic",
        "failover skipped",
        "rollback twice",
        "bulk cancelled",
        "scheduler",
    )
    for number, scenario in enumerate(scenarios):
        await Player(joblog, LegacyTable(lane), PastClock(AT)).play(scenario, Random(number))
    joblog.log(Level.INFO, "HTTP request", None, AT)
    return rows


LIFECYCLE = [
    ("Job started", Level.INFO, {"job_id", "job_type", "operation", "owner", "parent_job_id"}),
    ("Job completed", Level.INFO, {"job_id", "status", "error"}),
    ("Job failed", Level.ERROR, {"job_id", "status", "error"}),
    ("Job cancelled", Level.WARN, {"job_id", "status", "error"}),
    ("Step started", Level.INFO, {"job_id", "step_id", "step_name", "sequence"}),
    ("Step completed", Level.INFO, {"job_id", "step_id", "step_name", "status", "error"}),
    ("Step failed", Level.ERROR, {"job_id", "step_id", "step_name", "status", "error"}),
    ("Step skipped", Level.WARN, {"job_id", "step_id", "step_name", "status", "error"}),
    ("Job progress updated", Level.DEBUG, {"job_id", "percent"}),
    ("Panic recovered in step", Level.ERROR, {"job_id", "step_id", "step_name", "panic"}),
]
ENDS_OF_JOBS = {"Job completed", "Job failed", "Job cancelled"}


@pytest.mark.parametrize(("message", "level", "attrs"), LIFECYCLE)
def test_a_lifecycle_row_has_joblogs_level_attrs_and_null_columns(every_row, message, level, attrs):
    rows = [row for row in every_row if row.message == message]
    assert rows
    for row in rows:
        assert row.level is level
        assert set(json.loads(row.attrs)) == attrs
        if message in ENDS_OF_JOBS:
            assert columns(row) in ({"job_id"}, {"job_id", "external_job_id"})
            assert row.job_id == json.loads(row.attrs)["job_id"]
        else:
            assert not columns(row)


def test_an_end_carries_the_external_id_only_where_the_callers_context_had_one(every_row):
    found = defaultdict(set)
    for row in every_row:
        if row.message in ENDS_OF_JOBS:
            operation = next(
                json.loads(start.attrs)["operation"]
                for start in every_row
                if start.message == "Job started" and json.loads(start.attrs)["job_id"] == row.job_id
            )
            found[operation.split("-")[0]].add(row.external_job_id is not None)
    assert found == {
        "unified": {True}, "enhanced": {True}, "bulk": {False}, "schedule": {False}, "incremental": {False}
    }  # fmt: skip


def test_other_rows_have_columns_only_with_the_jobs_context(every_row):
    by_message = {row.message.split(" ")[0]: columns(row) for row in every_row if row.external_job_id or not row.job_id}
    assert by_message["retrying"] == {"job_id", "step_id", "external_job_id"}
    assert by_message["working"] == set()
    assert by_message["HTTP"] == set()
    plain = next(row for row in every_row if row.message.startswith("working"))
    assert {"job_id", "step_id"} <= set(json.loads(plain.attrs))


async def test_the_table_is_ahead_of_every_lifecycle_row(path, lane):
    messages: list[str] = []

    def check(row: NewRow) -> None:
        attrs = json.loads(row.attrs or "{}")
        words = row.message.split(" ")
        if words[0] == "Job" and words[1] != "progress":
            want = "running" if words[1] == "started" else words[1]
            assert table(path, f"SELECT status FROM job_tracking WHERE id = '{attrs['job_id']}'") == [(want,)]
        elif words[0] == "Step":
            want = "running" if words[1] == "started" else words[1]
            assert table(path, f"SELECT status FROM job_steps WHERE id = {attrs['step_id']}") == [(want,)]
        elif row.message == "Job progress updated":
            want = attrs["percent"]
            assert table(path, f"SELECT percent_complete FROM job_tracking WHERE id = '{attrs['job_id']}'") == [(want,)]
        messages.append(row.message)

    joblog = JobLog(lane, check, zone=BERLIN, level=Level.DEBUG)
    for scenario in ("failover panic", "rollback twice", "bulk cancelled"):
        await Player(joblog, LegacyTable(lane), PastClock(AT)).play(scenario, Random(scenario))
    assert {"Job completed", "Job cancelled", "Step failed", "Job progress updated"} <= set(messages)


async def test_times_are_utc_in_timestamp_columns_and_local_in_datetime_columns(path, lane):
    rows: list[NewRow] = []
    joblog = JobLog(lane, rows.append, zone=BERLIN)
    await joblog.start_job(JOB, AT)
    step = await joblog.start_step(JOB, "validation", 1, AT)
    await joblog.end_step(JOB, step, StepStatus.COMPLETED, AT)
    await joblog.end_job(JOB, JobStatus.CANCELLED, AT, "cancelled by operator")
    utc, local = "2025-09-22 15:12:13", "2025-09-22 17:12:13.123456"
    job = table(path, "SELECT started_at, completed_at, created_at, updated_at, canceled_at FROM job_tracking")
    assert job == [(utc, utc, utc, utc, local)]
    assert table(path, "SELECT started_at, completed_at FROM job_steps") == [(local, local)]
    assert {row.ts for row in rows} == {local}


async def test_progress_is_normally_in_the_table_alone(path, lane):
    rows: list[NewRow] = []
    joblog = JobLog(lane, rows.append, zone=BERLIN)
    await joblog.start_job(JOB, AT)
    await joblog.set_progress(JOB, 40, AT)
    assert [row.message for row in rows] == ["Job started"]
    assert table(path, "SELECT percent_complete FROM job_tracking") == [(40,)]


async def test_a_job_that_ends_twice_is_as_it_ended_last(path, lane):
    rows: list[NewRow] = []
    player = Player(JobLog(lane, rows.append, zone=BERLIN), LegacyTable(lane), PastClock(AT))
    await player.play("rollback twice", Random(4))
    assert table(path, "SELECT status, error_message FROM job_tracking") == [("completed", None)]
    ends = [row for row in rows if row.message in ENDS_OF_JOBS]
    assert [row.message for row in ends] == ["Job failed", "Job completed"]
    assert ends[0].ts < ends[1].ts


async def test_a_job_with_a_panicked_step_completes(path, lane):
    player = Player(JobLog(lane, lambda _: None, zone=BERLIN), LegacyTable(lane), PastClock(AT))
    await player.play("failover panic", Random(4))
    assert table(path, "SELECT status FROM job_tracking") == [("completed",)]
    [(error,)] = table(path, "SELECT error_message FROM job_steps WHERE status = 'failed'")
    assert str(error).startswith("panic in step ")


async def test_a_job_that_dies_stays_running_with_a_running_step(path, lane):
    player = Player(JobLog(lane, lambda _: None, zone=BERLIN), LegacyTable(lane), PastClock(AT))
    await player.play("died", Random(4))
    assert table(path, "SELECT status, completed_at FROM job_tracking") == [("running", None)]
    assert table(path, "SELECT seq FROM job_steps WHERE status = 'running'") == table(
        path, "SELECT MAX(seq) FROM job_steps"
    )


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        ({"b": 1, "a": None}, '{"a":null,"b":1}'),
        ({"vm": "<img src=x onerror=alert(1)>&"}, r'{"vm":"\u003cimg src=x onerror=alert(1)\u003e\u0026"}'),
        ({"vm": "büro-server", "sep": "\u2028"}, '{"sep":"\\u2028","vm":"büro-server"}'),
        ({"text": 'say "no"\n\x01'}, r'{"text":"say \"no\"\n\u0001"}'),
    ],
)
def test_json_is_written_as_by_go_s_encoder(attrs, text):
    assert go_json(attrs) == text
    assert json.loads(text) == attrs
