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

import pytest

from correlator.demo import sqlite
from correlator.demo.clock import LiveClock, PastClock
from correlator.demo.deck import past, plans
from correlator.demo.history import write_history
from correlator.demo.joblog import JobLog, Legacy
from correlator.demo.plans import Ending, Ids, JobPlan, LegacyPlan, StepEnding
from correlator.demo.sqlite import Lane
from correlator.demo.stage import Stage, constructed_id
from correlator.demo.traffic import Traffic
from correlator.demo.writers import LogWriters, calm

NOW = datetime(2025, 9, 22, 15, 12, 13, 123456, UTC)
BERLIN = ZoneInfo("Europe/Berlin")
DEADLINE = 10.0
ENDS = "SELECT job_id, message FROM log_events WHERE job_id NOT NULL AND message LIKE 'Job %' ORDER BY ts"


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def table(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


async def history(path: Path, seed: int) -> Path:
    sqlite.create(path)
    await write_history(path, NOW, BERLIN, seed)
    return path


def test_a_seed_gives_the_same_plans_again():
    assert list(islice(plans(5), 60)) == list(islice(plans(5), 60))
    assert list(islice(plans(5), 60)) != list(islice(plans(6), 60))
    assert past(5, 24) == past(5, 24)


async def test_a_seed_gives_the_same_history_byte_by_byte(tmp_path):
    first, again = await history(tmp_path / "first.db", 5), await history(tmp_path / "again.db", 5)
    assert dump(first) == dump(again)
    assert dump(first) != dump(await history(tmp_path / "other.db", 6))


def test_every_fate_is_soon_met():
    dealt = list(islice(plans(1), 40))
    jobs = [plan for plan in dealt if isinstance(plan, JobPlan)]
    everybody = [*jobs, *(child for job in jobs for child in job.children)]
    assert {job.ending for job in everybody} == set(Ending)
    assert {job.ids for job in everybody} == set(Ids)
    assert {step.ending for job in everybody for step in job.steps} == set(StepEnding)
    assert any(isinstance(plan, LegacyPlan) for plan in dealt)
    assert any(job.legacy_lead for job in jobs)
    assert any(job.children for job in jobs)
    assert {"SVR 2019/Prod", "büro-server"} & {job.vm for job in islice(plans(1), 200)}


def test_no_two_jobs_share_a_uuid():
    jobs = [plan for plan in [*islice(plans(1), 500), *past(1, 100)] if isinstance(plan, JobPlan)]
    ids = [job.id for parent in jobs for job in (parent, *parent.children)]
    assert len(set(ids)) == len(ids)


def test_the_two_constructed_ids_differ_for_about_half_of_the_failovers():
    failovers = [plan for plan in islice(plans(3), 400) if isinstance(plan, JobPlan) and plan.ids is Ids.BOTH]
    differ = [constructed_id(plan, NOW, plan.skew) != constructed_id(plan, NOW, 0) for plan in failovers]
    assert 0.35 < sum(differ) / len(differ) < 0.65


@pytest.mark.parametrize("plan", list(islice(plans(2), 30)))
def test_steps_last_one_to_twelve_seconds(plan):
    steps = plan.steps if isinstance(plan, JobPlan) else ()
    assert all(1 <= step.seconds <= 12 for step in steps if step.ending is not StepEnding.SKIPPED)


async def test_history_is_over_but_for_the_job_that_died(tmp_path):
    path = await history(tmp_path / "appliance.db", 9)
    states = dict(table(path, "SELECT status, COUNT(*) FROM job_tracking GROUP BY 1"))
    assert states.pop("running") == 1
    assert sum(states.values()) >= 20
    assert {"completed", "failed", "cancelled"} == set(states)
    [(last,)] = table(path, "SELECT MAX(ts) FROM log_events")
    assert str(last) < "2025-09-22 17:12:13.123456"
    assert table(path, "SELECT a.id FROM log_events a JOIN log_events b ON b.id = a.id + 1 WHERE a.ts > b.ts") == []


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
    sqlite.create(path)
    known: list[str] = []
    async with Lane(path) as lane:
        joblog = JobLog(lane, lambda _: None, zone=BERLIN)
        await Stage(joblog, Legacy(lane), PastClock(NOW), entered=known.append).play(next(plans(1)))
    [(column, metadata)] = table(path, "SELECT external_job_id, metadata FROM job_tracking")
    assert known == [json.loads(metadata)["failover_job_id"]]
    assert known != [column]
    assert json.loads(metadata)["external_job_id"] == column


async def test_live_traffic_tells_in_the_log_what_stands_in_the_tables(tmp_path):
    path = tmp_path / "appliance.db"
    sqlite.create(path)
    writers = LogWriters(path, calm(), queue_size=10**6, flush=0.01)
    async with Lane(path) as lane, asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        traffic = Traffic(JobLog(lane, writers.put, zone=BERLIN), Legacy(lane), LiveClock(rate=1e4), seed=1)
        group.create_task(writers.run())
        playing = group.create_task(traffic.run())
        await traffic.first()
        while len(table(path, ENDS)) < 20:  # noqa: ASYNC110 - a table sets no event
            await asyncio.sleep(0.01)
        playing.cancel()
        await asyncio.wait({playing})
        writers.stop()
    told = dict(table(path, ENDS))  # of a job that ended twice, the later end
    states = dict(table(path, "SELECT id, 'Job ' || status FROM job_tracking"))
    assert {job_id: states[job_id] for job_id in told} == told
    starts = table(path, "SELECT json_extract(attrs, '$.job_id') FROM log_events WHERE message = 'Job started'")
    assert set(told) <= {job_id for (job_id,) in starts}
    assert not writers.dropped
