"""The demo's JobLog against what JobLog is known to write."""

import asyncio
import gzip
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from correlator.demo.joblog import (
    CommitDelays,
    DemoJob,
    JobLog,
    JobStatus,
    Lane,
    LegacyTable,
    Level,
    LogWriters,
    NewRow,
    StepStatus,
    create_database,
    go_json,
)
from correlator.demo.scenarios import PastClock, Player, live_scenarios, load
from correlator.demo.traffic import write_history
from tests.support.eventually import PATIENCE

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


def table(path: Path, query: str) -> list[Any]:
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


def test_a_lifecycle_row_has_joblogs_level_attrs_and_null_columns(every_row):
    for message, level, attrs in LIFECYCLE:
        rows = [row for row in every_row if row.message == message]
        assert rows, message
        for row in rows:
            assert (row.level, set(json.loads(row.attrs))) == (level, attrs)
            if message in ENDS_OF_JOBS:
                assert columns(row) in ({"job_id"}, {"job_id", "external_job_id"})
                assert row.job_id == json.loads(row.attrs)["job_id"]
            else:
                assert not columns(row)


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
    await joblog.set_progress(JOB, 40, AT)
    assert [row.message for row in rows] == ["Job started"], "progress is normally in the table alone"
    assert table(path, "SELECT percent_complete FROM job_tracking") == [(40,)]
    step = await joblog.start_step(JOB, "validation", 1, AT)
    await joblog.end_step(JOB, step, StepStatus.COMPLETED, AT)
    await joblog.end_job(JOB, JobStatus.CANCELLED, AT, "cancelled by operator")
    utc, local = "2025-09-22 15:12:13", "2025-09-22 17:12:13.123456"
    job = table(path, "SELECT started_at, completed_at, created_at, updated_at, canceled_at FROM job_tracking")
    assert job == [(utc, utc, utc, utc, local)]
    assert table(path, "SELECT started_at, completed_at FROM job_steps") == [(local, local)]
    assert {row.ts for row in rows} == {local}


PANICKED = "SELECT error_message LIKE 'panic in step %' FROM job_steps WHERE status = 'failed'"
DIED = "SELECT MAX(seq) = MAX(seq) FILTER (WHERE status = 'running') FROM job_steps"


@pytest.mark.parametrize(
    ("scenario", "ends", "steps"),
    [
        ("failover panic", ["Job completed"], PANICKED),
        ("died", [], DIED),
        ("rollback twice", ["Job failed", "Job completed"], "SELECT COUNT(*) > 0 FROM job_steps"),
    ],
)
async def test_a_job_is_as_it_ended_last_and_one_that_died_stays_running(path, lane, scenario, ends, steps):
    rows: list[NewRow] = []
    await Player(JobLog(lane, rows.append, zone=BERLIN), LegacyTable(lane), PastClock(AT)).play(scenario, Random(4))
    found = [row for row in rows if row.message in ENDS_OF_JOBS]
    assert [row.message for row in found] == ends
    assert [row.ts for row in found] == sorted({row.ts for row in found})
    assert table(path, "SELECT status, completed_at IS NULL, error_message FROM job_tracking") == [
        ("completed" if ends else "running", not ends, None)
    ]
    assert table(path, steps) == [(1,)]


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


# -- The demo's SQLite schema against the appliance's own, and against a recording


DATA = Path(__file__).parent.parent / "data"
TABLES = ("log_events", "job_tracking", "job_steps", "failover_jobs")


def appliance(table: str) -> str:
    found = re.search(rf"CREATE TABLE {table} \((.*?)\n\) ENGINE", (DATA / "appliance.sql").read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_appliances_columns_in_their_order_its_foreign_keys_and_its_indexes(path, name):
    names = [row[1] for row in table(path, f"PRAGMA table_info({name})")]
    keywords = {"PRIMARY", "KEY", "UNIQUE", "CONSTRAINT"}
    wanted = [word for word in re.findall(r"^  (\w+)", appliance(name), re.MULTILINE) if word not in keywords]
    assert names == wanted
    pattern = r"FOREIGN KEY \((\w+)\) REFERENCES (\w+) \((\w+)\) ON DELETE (CASCADE|SET NULL)"
    found = {(row[3], row[2], row[4], row[6]) for row in table(path, f"PRAGMA foreign_key_list({name})")}
    assert found == set(re.findall(pattern, appliance(name)))
    keys = re.findall(r"(UNIQUE )?KEY \w+ \(([\w, ]+)\)", appliance(name))
    indexes = [row for row in table(path, f"PRAGMA index_list({name})") if row[3] == "c"]
    indexed = {
        (bool(unique), tuple(row[2] for row in table(path, f"PRAGMA index_info({index})")))
        for _, index, unique, *_ in indexes
    }
    assert indexed == {(bool(unique), tuple(columns.split(", "))) for unique, columns in keys}


def test_every_row_of_a_recording_goes_in_and_comes_out_unchanged(path):
    wanted: dict[tuple[str, object], dict[str, Any]] = {}
    with closing(sqlite3.connect(path)) as db, gzip.open(DATA / "mixed.jsonl.gz", "rt", encoding="utf-8") as lines:
        db.row_factory = sqlite3.Row
        for op in (op for line in lines for op in json.loads(line)["ops"]):
            table = op["table"]
            if op["op"] == "insert":
                row = op["row"]
                wanted[table, row["id"]] = dict(row)
                marks = ", ".join("?" * len(row))
                db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
            else:
                wanted[table, op["id"]] |= op["set"]
                changes = ", ".join(f"{column} = ?" for column in op["set"])
                db.execute(f"UPDATE {table} SET {changes} WHERE id = ?", (*op["set"].values(), op["id"]))
        found = {(table, row["id"]): dict(row) for table in TABLES for row in db.execute(f"SELECT * FROM {table}")}
    assert found == wanted


# -- The way of log rows into the table: order, drops, rollbacks


AGES = 3600.0  # seconds; longer than any test lasts


def row(message: object) -> NewRow:
    return NewRow(Level.INFO, str(message), None, "2025-09-22 17:12:13.000000")


def written(path: Path) -> dict[int, str]:
    return dict(table(path, "SELECT id, message FROM log_events"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - a table sets no event
            await asyncio.sleep(0.002)


def late(*lags: float) -> CommitDelays:
    """The first batches are committed so many seconds late, and none is rolled back."""
    left = list(lags)
    return CommitDelays(lag=lambda: left.pop(0) if left else 0.0, rolls_back=lambda: False)


async def test_a_batch_that_commits_late_has_the_lower_ids(path):
    writers = LogWriters(path, late(AGES), batch_size=5)
    for n in range(1, 11):
        writers.put(row(n))
    running = asyncio.create_task(writers.run())
    await until(lambda: bool(written(path)))
    assert sorted(written(path)) == [6, 7, 8, 9, 10]
    writers.stop()  # which hurries the late commit
    await running
    assert sorted(written(path)) == list(range(1, 11))


async def test_a_full_queue_drops_its_oldest_rows_and_ids_go_on_after_the_highest_one(path):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO log_events (id, level, message) VALUES (36701, 'INFO', 'old')")
    writers = LogWriters(path, late(), queue_size=3)
    for n in range(5):
        writers.put(row(n))
    writers.stop()
    await writers.run()
    assert written(path) == {36701: "old", 36702: "2", 36703: "3", 36704: "4"}


async def test_no_row_is_lost_or_doubled_with_any_commit_delays(path):
    luck = iter(range(10**6))
    rough = CommitDelays(lag=lambda: (next(luck) * 7 % 5) / 500, rolls_back=lambda: next(luck) % 3 == 0)
    writers = LogWriters(path, rough, batch_size=7, flush=0.005)
    running = asyncio.create_task(writers.run())
    for n in range(500):
        writers.put(row(n))
        if n % 20 == 0:
            await asyncio.sleep(0.001)
    await until(lambda: len(written(path)) == 500)
    writers.stop()
    await running
    assert sorted(map(int, written(path).values())) == list(range(500))
    assert max(written(path)) > 500, "rollbacks burn ids"


# -- What the demo lets happen: the same for a seed, and all that a reader should meet


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


async def history(path: Path, seed: int) -> Path:
    create_database(path)
    await write_history(path, AT, BERLIN, seed)
    return path


def order(seed: int) -> list[str]:
    return [name for name, _ in islice(live_scenarios(seed), 60)]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An appliance before the demo began; no test changes it."""
    return asyncio.run(history(tmp_path_factory.mktemp("past") / "appliance.db", 9))


async def test_a_seed_gives_the_same_history_byte_by_byte_and_scenarios_in_the_same_order(past, tmp_path):
    assert dump(past) == dump(await history(tmp_path / "again.db", 9))
    assert order(5) == order(5)
    assert order(5) != order(6)


async def played(path: Path, count: int) -> list[str]:
    """The messages of the log after the first `count` scenarios."""
    rows: list[NewRow] = []
    async with Lane(path) as lane:
        player = Player(JobLog(lane, rows.append, zone=BERLIN), LegacyTable(lane), PastClock(AT))
        for name, random in islice(live_scenarios(1), count):
            await player.play(name, random)
    return [row.message for row in rows]


async def test_every_scenario_and_every_kind_of_ending_comes_within_the_first_forty_jobs(path):
    messages = await played(path, 40)
    assert set(order(1)[:40]) | {"migration", "migration silent"} == set(load().scenario)
    assert {"Job completed", "Job failed", "Job cancelled", "Panic recovered in step", "Step skipped"} <= set(messages)
    assert table(path, "SELECT COUNT(*) > 0 FROM job_tracking WHERE status = 'running'") == [(1,)]
    assert table(path, "SELECT DISTINCT status FROM failover_jobs ORDER BY 1") == [("completed",), ("failed",)]
    alone = "SELECT COUNT(*) > 0 FROM failover_jobs WHERE job_id NOT IN (SELECT metadata ->> 'failover_job_id'"
    assert table(path, f"{alone} FROM job_tracking WHERE metadata ->> 'failover_job_id' NOT NULL)") == [(1,)]
    assert table(path, "SELECT COUNT(*) > 2 FROM job_tracking WHERE parent_job_id NOT NULL") == [(1,)]
    [(names,)] = table(path, "SELECT GROUP_CONCAT(metadata) FROM job_tracking")
    assert "SVR 2019/Prod" in names or "büro-server" in names
    # The two constructed IDs of a failover differ in some jobs, and are equal in others.
    differ = "SELECT DISTINCT metadata ->> 'failover_job_id' <> external_job_id FROM job_tracking"
    where = "WHERE job_type = 'failover' AND external_job_id NOT NULL ORDER BY 1"
    assert table(path, f"{differ} {where}") == [(0,), (1,)]


def test_history_is_over_but_for_the_job_that_died(past):
    states = dict(table(past, "SELECT status, COUNT(*) FROM job_tracking GROUP BY 1"))
    assert states.pop("running") == 1
    assert sum(states.values()) >= 20
    assert {"completed", "failed", "cancelled"} == set(states)
    [(last,)] = table(past, "SELECT MAX(ts) FROM log_events")
    assert str(last) < "2025-09-22 17:12:13.123456"
    assert table(past, "SELECT a.id FROM log_events a JOIN log_events b ON b.id = a.id + 1 WHERE a.ts > b.ts") == []


def test_each_operation_has_earlier_runs_whose_log_rows_are_gone(past):
    of_weeks = "FROM job_tracking WHERE started_at < '2025-09-22 12:12:13'"
    runs = dict(table(past, f"SELECT operation, COUNT(*) {of_weeks} AND status = 'completed' GROUP BY 1"))
    operations = {s.operation.format(kind=kind) for s in load().scenario.values() for kind in ("live", "test")} - {""}
    assert runs.keys() == operations
    assert min(runs.values()) >= 8
    assert table(past, f"SELECT COUNT(*) > 9 {of_weeks} AND status = 'failed'") == [(1,)]
    assert table(past, f"SELECT 1 FROM log_events WHERE attrs ->> 'job_id' IN (SELECT id {of_weeks})") == []
