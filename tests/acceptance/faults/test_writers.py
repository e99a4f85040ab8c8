"""Writers commit late, roll back and burn ids: no order of commits loses a row or sends one twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.faults.fault_run import burn, fault_run
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto

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
    async with fault_run(tmp_path, database, mosquitto, traffic=traffic, database__driver=driver) as run:
        async with run.traffic.running():
            await run.goes_on(rows, within=300)
            recovery = await run.recovered()
        name = f"{writers} writers, commits up to 2 s late, 5 % rolled back ({driver})"
        await run.verdict(name, recovery)


@pytest.mark.long
async def test_ids_are_burned(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with (
        fault_run(tmp_path, database, mosquitto) as run,
        run.traffic.writer() as writer,
        run.fault("writers: INSERT … SELECT and rollbacks burn thousands of ids"),
    ):
        await writer.run("CREATE TABLE archived LIKE log_events")
        for _ in range(3):
            # INSERT … SELECT reserves ids by powers of two and gives back none; IGNORE burns those of duplicates.
            await writer.run(
                "INSERT INTO archived SELECT * FROM log_events ON DUPLICATE KEY UPDATE archived.id = archived.id"
            )
            await writer.run("INSERT INTO log_events (level, message, ts) SELECT level, 'copied', ts FROM archived")
            await burn(run.database, 1000)
            await run.arrives()
