"""The tables change under the daemon: emptied, restored, their ids used again, their columns gone. Nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults.fault_run import SLOW_TRAFFIC, burn, fault_run
from tests.support.faults.oracle import WITH_ROW
from tests.support.mariadb import Database, MariaDB, replicates
from tests.support.mosquitto import Mosquitto


async def test_truncated_and_refilled(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run:
        async with run.traffic.running():
            await run.arrives()
        await run.quiet()
        await run.oracle.remember()
        async with run.traffic.writer() as writer:
            await writer.run("TRUNCATE TABLE log_events")
        async with run.traffic.running():
            recovery = await run.recovered()
            await run.goes_on()
        await run.verdict("MariaDB: table truncated and refilled", recovery)


async def test_truncated_and_refilled_beyond_the_last_row_that_was_read(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with fault_run(tmp_path, database, mosquitto) as run:
        async with run.traffic.running():
            await run.arrives()
        await run.quiet()
        await run.oracle.remember()
        run.to_database.refuse()
        async with run.traffic.writer() as writer:
            head = (await writer.rows("SELECT MAX(id) AS head FROM log_events"))[0]["head"]
            await writer.run("TRUNCATE TABLE log_events")
            job_id = await run.traffic.job(writer)
            # The row at the head is not another now, it is not there: its id was burned.
            await run.traffic.commit(writer, [run.traffic.line("INFO", "new", job_id=job_id) for _ in range(head - 1)])
            await burn(run.database, 1)
            await run.traffic.commit(writer, [run.traffic.line("WARN", "newer", job_id=job_id) for _ in range(20)])
        run.to_database.heal()
        recovery = await run.recovered()
        await run.verdict("MariaDB: truncated and refilled beyond the last id read", recovery)


@pytest.mark.long
async def test_a_crash_of_the_server_uses_ids_again(mosquitto: Mosquitto, tmp_path: Path):
    # A server that does not flush each commit loses up to a second of them in a crash, and gives their ids again.
    with MariaDB("--innodb-flush-log-at-trx-commit=0") as server:
        database = await server.create_schema()
        async with fault_run(tmp_path, database, mosquitto) as run, run.traffic.writer() as writer:
            async with run.traffic.running():
                await run.arrives()
            job_id = await run.traffic.job(writer)
            await run.quiet()
            await run.oracle.remember()
            for _ in range(10):
                lines = [run.traffic.line("WARN", "lost in the crash", job_id=job_id) for _ in range(5)]
                await run.traffic.commit(writer, lines)
                await run.receives(lines[-1])
                await run.oracle.remember()
                last = await last_id(run.database)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                if await last_id(run.database) < last:
                    break
            else:
                raise AssertionError("no crash came between a commit and its flush")
            await run.oracle.forgive()
            async with run.traffic.running():
                recovery = await run.recovered()
                await run.goes_on()
            await run.verdict("MariaDB: crash, 5 ids used again", recovery)


@pytest.mark.long
async def test_retention_deletes_under_the_head(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run, run.traffic.writer() as writer:
        async with run.traffic.running():
            for _ in range(5):
                await run.arrives()
                received = ",".join(str(i) for i, _ in run.reader.lines)
                await run.oracle.remember()
                await writer.run(f"DELETE FROM log_events WHERE id IN ({received})")
        await run.quiet()
        await run.oracle.remember()
        await writer.run("DELETE FROM log_events")
        async with run.traffic.running():
            recovery = await run.recovered()
        await run.verdict("MariaDB: retention deletes up to the last row", recovery)


@pytest.mark.long
async def test_columns_are_added_and_removed(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run, run.traffic.writer() as writer:
        async with run.traffic.running():
            for change in (
                "log_events ADD COLUMN host varchar(64) AFTER id",
                "log_events DROP COLUMN external_job_id",
                "job_tracking DROP COLUMN context_id, DROP COLUMN job_category",
                "log_events DROP COLUMN host",
                "log_events ADD COLUMN external_job_id varchar(255), ADD KEY (external_job_id)",
            ):
                await run.arrives()
                await writer.run(f"ALTER TABLE {change}")
            recovery = await run.recovered()
        await run.verdict("MariaDB: columns added and removed", recovery)


async def test_attrs_is_away_for_four_seconds(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run, run.traffic.writer() as writer:
        async with run.fault("MariaDB: log_events.attrs away for 4 s"):
            await writer.run("ALTER TABLE log_events RENAME COLUMN attrs TO away")
            await run.degraded("tables")
            await asyncio.sleep(4)
            await writer.run("ALTER TABLE log_events RENAME COLUMN away TO attrs")
            await run.goes_on()
        # That a job is late or overdue has no row: those that the run itself begins never end.
        without_row = [(kind, job) for row, kind, job in run.listener.events if row is None and kind in WITH_ROW]
        assert not without_row, f"events without the id of their row: {without_row[:10]}"


@pytest.mark.long
async def test_the_server_leaves_daylight_saving_time(mosquitto: Mosquitto, tmp_path: Path):
    summer, winter = timedelta(hours=2), timedelta(hours=1)
    with MariaDB(time_zone="+02:00") as server:
        database = await server.create_schema()
        settings: dict[str, Any] = {"traffic": SLOW_TRAFFIC | {"offset": summer}, "database__timezone": "auto"}
        async with fault_run(tmp_path, database, mosquitto, **settings) as run, run.traffic.writer() as writer:
            run.oracle.times = False
            async with run.traffic.running():
                await run.arrives()
                await writer.run("SET GLOBAL time_zone = '+01:00'")
                run.traffic.offset = winter
                await run.goes_on()
                recovery = await run.recovered()
            wrong = [
                at for _, at in run.reader.lines if abs(datetime.fromisoformat(at) - datetime.now(UTC)) > winter / 2
            ]
            assert not wrong, f"{len(wrong)} lines were sent with a wrong time, such as {wrong[0]}"
            await run.verdict("MariaDB: its time zone leaves daylight saving time", recovery)


async def last_id(database: Database) -> int:
    """The highest id of the log."""
    return int((await database.run("SELECT MAX(id) FROM log_events"))[0][0])


@pytest.mark.parametrize(
    ("how", "seconds"),
    [("TRUNCATE TABLE", 4), pytest.param("DELETE FROM", 8, marks=pytest.mark.long)],
)
async def test_the_jobs_are_emptied_and_refilled(
    how: str, seconds: float, database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with fault_run(tmp_path, database, mosquitto) as run:
        async with run.fault(f"MariaDB: {how} job_tracking, refilled after {seconds} s"):
            await run.goes_on()
            async with emptied(run.database, "job_tracking", how):
                await asyncio.sleep(seconds)
        again = {event: count for event, count in run.listener.events.items() if count > 1 and event[0] is not None}
        assert not again, f"{len(again)} events were published again"


async def test_a_replica_that_is_behind_answers_for_a_while(mosquitto: Mosquitto, tmp_path: Path):
    with MariaDB("--log-bin=binlog", "--server-id=1") as server, MariaDB("--server-id=2") as behind:
        database = await server.create_schema()
        await replicates(server, behind, database, delay=4)
        async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run:
            async with run.fault("MariaDB: 10 s of a replica that is 4 s behind"):
                await run.goes_on()
                run.to_database.target = behind.port
                run.to_database.reset()
                await asyncio.sleep(10)
                run.to_database.target = server.port
                run.to_database.reset()
            again = {event: count for event, count in run.listener.events.items() if count > 1 and event[0] is not None}
            assert not again, f"{len(again)} events were published again"


@asynccontextmanager
async def emptied(database: Database, table: str, how: str) -> AsyncIterator[None]:
    """The table is empty in the block, and as it was after it; no row of another table goes with its rows."""
    async with database.connect(init_command="SET foreign_key_checks = 0") as connection, connection.cursor() as cursor:
        await cursor.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
        await cursor.execute(f"{how} {table}")
        yield
        await cursor.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
        await cursor.execute(f"DROP TABLE kept_{table}")
