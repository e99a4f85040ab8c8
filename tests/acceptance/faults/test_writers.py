"""Writers commit late, roll back and burn ids: no order of commits loses a row or tells one twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.faults.stage import LEISURELY, burn, staged
from tests.servers import Database, Mosquitto

LATE = {"hold": 2.0, "rollbacks": 0.05}


@pytest.mark.parametrize(
    ("writers", "rows", "driver"),
    [
        (8, 160, "aiomysql"),
        pytest.param(32, 3000, "aiomysql", marks=[pytest.mark.long, pytest.mark.timeout(400)]),
        pytest.param(32, 3000, "asyncmy", marks=[pytest.mark.long, pytest.mark.timeout(400)]),
    ],
)
async def test_commits_in_any_order(
    writers: int, rows: int, driver: str, database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    traffic = {"jobs": writers, "writers": writers, **LATE}
    async with staged(tmp_path, database, mosquitto, traffic=traffic, database__driver=driver) as stage:
        async with stage.traffic.running():
            await stage.goes_on(rows, within=300)
            recovery = await stage.recovered()
        name = f"{writers} writers, commits up to 2 s late, 5 % rolled back ({driver})"
        await stage.verdict(name, recovery)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_transaction_stays_open_for_90_seconds(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage, stage.traffic.hand() as hand:
        async with stage.traffic.running():
            await stage.arrives()
            job_id = await stage.traffic.job(hand)
            lines = [stage.traffic.line("WARN", "at last", job_id=job_id) for _ in range(20)]
            await stage.traffic.commit(hand, lines, hold=90.0)
            recovery = await stage.recovered()
            await stage.hears(lines[-1])
        await stage.verdict("writers: one transaction open for 90 s", recovery)


@pytest.mark.long
async def test_ids_are_burned(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage, stage.traffic.hand() as hand:
        async with stage.traffic.running():
            await stage.arrives()
            await hand.run("CREATE TABLE archived LIKE log_events")
            for _ in range(3):
                # INSERT … SELECT reserves ids by powers of two and gives back none; IGNORE burns those of duplicates.
                await hand.run(
                    "INSERT INTO archived SELECT * FROM log_events ON DUPLICATE KEY UPDATE archived.id = archived.id"
                )
                await hand.run("INSERT INTO log_events (level, message, ts) SELECT level, 'copied', ts FROM archived")
                await burn(stage.database, 1000)
                await stage.arrives()
            recovery = await stage.recovered()
        await stage.verdict("writers: INSERT … SELECT and rollbacks burn thousands of ids", recovery)
