"""First truth: a first start without a checkpoint, until the daemon is ready, beside the same start with a short log.

The same jobs are in the tables in both; what differs is how many rows of history the log has.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.appliance import fill, jobs
from benchmarks.daemon import Measured, server
from benchmarks.harness import Limit, Number, Result, Size, in_turn
from tests.support.mariadb import Database

JOBS = 2_000


async def measure(size: Size) -> Result:
    rows = size.of(1_000_000, 100_000)
    async with server() as mariadb:
        short, long = await mariadb.create_schema("short_log"), await mariadb.create_schema("long_log")
        for database, history in ((short, 1_000), (long, rows)):
            await fill(database, jobs(JOBS))
            await _log(database, history)
        completed: list[float] = []
        theirs, ours = await in_turn(size.runs, partial(_ready, short, []), partial(_ready, long, completed))
    return Result(
        (
            Number(
                f"first truth: first start with {rows:,} rows of history, until ready",
                "s",
                ours,
                "the same with 1,000 rows",
                theirs,
                Limit("≤", 2.0),
            ),
            Number("the same, until the past of the log is read too", "s", tuple(completed)),
        )
    )


async def _log(database: Database, rows: int) -> None:
    """`rows` rows of the last hours, of jobs in turn."""
    async with database.connect(init_command="SET time_zone = '+00:00'") as connection, connection.cursor() as cursor:
        await cursor.execute("SET @n := -1")
        await cursor.execute("CREATE TEMPORARY TABLE numbered (n INT PRIMARY KEY, id VARCHAR(64))")
        await cursor.execute("INSERT INTO numbered SELECT @n := @n + 1, id FROM job_tracking")
        await cursor.execute(
            "INSERT INTO log_events (level, message, attrs, ts)"
            " SELECT IF(seq %% 50 = 0, 'WARN', 'INFO'), CONCAT('copied block ', seq),"
            ' CONCAT(\'{"job_id":"\', id, \'","bytes":1048576}\'),'
            " UTC_TIMESTAMP(6) - INTERVAL 2 HOUR + INTERVAL seq * 1000 MICROSECOND"
            f" FROM seq_0_to_{rows - 1} JOIN numbered ON n = seq %% %s",
            (JOBS,),
        )


async def _ready(database: Database, completed: list[float]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        daemon = Measured(Path(folder), database__url=database.url)
        try:
            began = time.perf_counter()
            await daemon.start(complete=False, within=120)
            ready = time.perf_counter() - began
            while "loading" in (await daemon.get("/health/ready"))[1]["parts"]["database"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            completed.append(time.perf_counter() - began)
            return ready
        finally:
            await daemon.close()
