"""The database breaks: whatever happens to it, the daemon recovers without help and no committed row is lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.faults.fault_run import fault_run
from tests.support.faults.traffic import RetryingWriter
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto


async def test_killed(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with fault_run(tmp_path, database, mosquitto) as run, run.fault("MariaDB: kill -9"):
        await asyncio.to_thread(own_mariadb.kill)
        await run.degraded("database")
        await asyncio.to_thread(own_mariadb.start)


async def test_black_hole(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run, run.fault("MariaDB: black hole"):
        run.to_database.black_hole()
        await run.degraded("database")
        await run.goes_on()
        run.to_database.heal()


@pytest.mark.long
async def test_more_rows_than_come_within_the_deadline_of_a_query(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with (
        fault_run(tmp_path, database, mosquitto, database__query_timeout="2s") as run,
        run.traffic.writer() as writer,
    ):
        run.oracle.drops = True  # lines for readers wait in up to 1 MiB, and more than that comes at once
        job_id = await run.traffic.job(writer)
        run.to_database.rate = 1_000_000.0
        for _ in range(60):
            large = [run.traffic.line("INFO", "large", {"dump": "x" * 20_000}, job_id=job_id) for _ in range(5)]
            await run.traffic.commit(writer, large)
        recovery = await run.recovered()
        run.to_database.heal()
        await run.verdict("MariaDB: 6 MB of rows over 1 MB/s, query_timeout 2 s", recovery)


@pytest.mark.long
async def test_connections_cut_in_the_middle_of_packets_and_reset(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with fault_run(tmp_path, database, mosquitto) as run:
        async with run.traffic.running():
            for after in (1, 3, 7, 70, 700, 7000) * 2:
                await run.arrives()
                run.to_database.cut(after)
                await eventually(lambda: not run.to_database.cutting)
                await run.arrives()
                run.to_database.reset()
            recovery = await run.recovered()
        await run.verdict("MariaDB: 12 connections cut in the middle of a packet, all reset 12 times", recovery)


@pytest.mark.long
async def test_too_many_connections(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with fault_run(tmp_path, database, mosquitto) as run, run.traffic.writer() as writer:
        async with run.traffic.running(), contextlib.AsyncExitStack() as others:
            await run.arrives()
            for _ in range(15):
                await others.enter_async_context(database.connect())
            await writer.run("SET GLOBAL max_connections = 10")
            await sent_away(writer)
            await run.degraded("database")
            await run.goes_on()
            await asyncio.sleep(5)
            await writer.run("SET GLOBAL max_connections = 300")
            recovery = await run.recovered()
        await run.verdict("MariaDB: too many connections", recovery)
        assert "Too many connections" in run.daemon.log()


async def sent_away(writer: RetryingWriter) -> None:
    """The server closes every connection of the daemon."""
    await writer.run("KILL USER correlator")
