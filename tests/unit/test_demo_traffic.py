"""What the demo lets happen: the same for a seed, and all that a reader should meet."""

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from correlator.demo.joblog import CommitDelays, JobLog, Lane, LegacyTable, LogWriters, NewRow, create_database
from correlator.demo.scenarios import LiveClock, PastClock, Player, Scenario, live_scenarios, load
from correlator.demo.traffic import Traffic, write_history
from tests.support.eventually import PATIENCE

NOW = datetime(2025, 9, 22, 15, 12, 13, 123456, UTC)
BERLIN = ZoneInfo("Europe/Berlin")
ENDS = "SELECT job_id, message FROM log_events WHERE job_id NOT NULL AND message LIKE 'Job %' ORDER BY ts"


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def table(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


async def history(path: Path, seed: int) -> Path:
    create_database(path)
    await write_history(path, NOW, BERLIN, seed)
    return path


def order(seed: int) -> list[str]:
    return [name for name, _ in islice(live_scenarios(seed), 60)]


def test_a_seed_gives_the_same_scenarios_in_the_same_order():
    assert order(5) == order(5)
    assert order(5) != order(6)


async def test_a_seed_gives_the_same_history_byte_by_byte(tmp_path):
    first, again = await history(tmp_path / "first.db", 5), await history(tmp_path / "again.db", 5)
    assert dump(first) == dump(again)
    assert dump(first) != dump(await history(tmp_path / "other.db", 6))


async def played(path: Path, count: int) -> list[str]:
    """The messages of the log after the first `count` scenarios."""
    create_database(path)
    rows: list[NewRow] = []
    async with Lane(path) as lane:
        player = Player(JobLog(lane, rows.append, zone=BERLIN), LegacyTable(lane), PastClock(NOW))
        for name, random in islice(live_scenarios(1), count):
            await player.play(name, random)
    return [row.message for row in rows]


async def test_every_scenario_and_every_kind_of_ending_comes_within_the_first_forty_jobs(tmp_path):
    path = tmp_path / "appliance.db"
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


async def test_the_two_constructed_ids_of_a_failover_differ_in_some_jobs_and_are_equal_in_others(tmp_path):
    await played(tmp_path / "appliance.db", 40)
    differ = "SELECT DISTINCT metadata ->> 'failover_job_id' <> external_job_id FROM job_tracking"
    where = "WHERE job_type = 'failover' AND external_job_id NOT NULL ORDER BY 1"
    assert table(tmp_path / "appliance.db", f"{differ} {where}") == [(0,), (1,)]


def test_a_misspelt_member_of_a_scenario_is_refused():
    with pytest.raises(msgspec.ValidationError, match="stpes"):
        msgspec.convert({"stpes": ["validate"]}, Scenario)


async def test_history_is_over_but_for_the_job_that_died(tmp_path):
    path = await history(tmp_path / "appliance.db", 9)
    states = dict(table(path, "SELECT status, COUNT(*) FROM job_tracking GROUP BY 1"))
    assert states.pop("running") == 1
    assert sum(states.values()) >= 20
    assert {"completed", "failed", "cancelled"} == set(states)
    [(last,)] = table(path, "SELECT MAX(ts) FROM log_events")
    assert str(last) < "2025-09-22 17:12:13.123456"
    assert table(path, "SELECT a.id FROM log_events a JOIN log_events b ON b.id = a.id + 1 WHERE a.ts > b.ts") == []


async def test_each_operation_has_earlier_runs_whose_log_rows_are_gone(tmp_path):
    path = await history(tmp_path / "appliance.db", 9)
    of_weeks = "FROM job_tracking WHERE started_at < '2025-09-22 12:12:13'"
    runs = dict(table(path, f"SELECT operation, COUNT(*) {of_weeks} AND status = 'completed' GROUP BY 1"))
    operations = {s.operation.format(kind=kind) for s in load().scenario.values() for kind in ("live", "test")} - {""}
    assert runs.keys() == operations
    assert min(runs.values()) >= 8
    assert table(path, f"SELECT COUNT(*) > 9 {of_weeks} AND status = 'failed'") == [(1,)]
    assert table(path, f"SELECT 1 FROM log_events WHERE attrs ->> 'job_id' IN (SELECT id {of_weeks})") == []


async def test_most_rows_belong_to_no_job_and_most_of_a_jobs_rows_have_null_columns(tmp_path):
    path = await history(tmp_path / "appliance.db", 9)
    [(rows, of_jobs, plain)] = table(
        path,
        "SELECT COUNT(*), SUM(attrs LIKE '%\"job_id\"%'), SUM(attrs LIKE '%\"job_id\"%' AND job_id IS NULL)"
        " FROM log_events",
    )
    assert of_jobs < rows / 2
    assert 0.6 < plain / of_jobs < 0.9


async def test_the_first_job_is_known_to_the_gui_by_an_id_that_stands_in_no_column(tmp_path):
    path = tmp_path / "appliance.db"
    create_database(path)
    known: list[str] = []
    async with Lane(path) as lane:
        joblog = JobLog(lane, lambda _: None, zone=BERLIN)
        await Player(joblog, LegacyTable(lane), PastClock(NOW), on_start=known.append).play(*next(live_scenarios(1)))
    [(column, metadata)] = table(path, "SELECT external_job_id, metadata FROM job_tracking")
    assert known == [json.loads(metadata)["failover_job_id"]]
    assert known != [column]
    assert json.loads(metadata)["external_job_id"] == column


async def test_live_traffic_logs_what_it_writes_into_the_tables(tmp_path):
    path = tmp_path / "appliance.db"
    create_database(path)
    writers = LogWriters(path, CommitDelays(lambda: 0.0, lambda: False), queue_size=10**6, flush=0.01)
    async with Lane(path) as lane, asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        traffic = Traffic(JobLog(lane, writers.put, zone=BERLIN), LegacyTable(lane), LiveClock(rate=1e4), seed=1)
        group.create_task(writers.run())
        playing = group.create_task(traffic.run())
        await traffic.first()
        while len(table(path, ENDS)) < 20:  # noqa: ASYNC110 - a table sets no event
            await asyncio.sleep(0.01)
        playing.cancel()
        await asyncio.wait({playing})
        writers.stop()
    logged = dict(table(path, ENDS))  # of a job that ended twice, the later end
    states = dict(table(path, "SELECT id, 'Job ' || status FROM job_tracking"))
    assert {job_id: states[job_id] for job_id in logged} == logged
    starts = table(path, "SELECT json_extract(attrs, '$.job_id') FROM log_events WHERE message = 'Job started'")
    assert set(logged) <= {job_id for (job_id,) in starts}
