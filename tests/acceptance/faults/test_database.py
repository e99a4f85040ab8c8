"""The database breaks: whatever happens to it, the daemon recovers without help and no committed row is lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.faults.fault_run import SLOW_TRAFFIC, fault_run, for_a_while
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
async def test_restarted(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with fault_run(tmp_path, database, mosquitto) as run, run.fault("MariaDB: restarted"):
        await asyncio.to_thread(own_mariadb.stop)
        await run.degraded("database")
        await asyncio.to_thread(own_mariadb.start)


@pytest.mark.long
async def test_frozen(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with (
        fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run,
        run.fault("MariaDB: frozen (SIGSTOP) for 10 s"),
    ):
        await asyncio.to_thread(own_mariadb.pause)
        try:
            await run.degraded("database")
            await for_a_while(8)
        finally:
            await asyncio.to_thread(own_mariadb.resume)


@pytest.mark.long
async def test_slow(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with (
        fault_run(tmp_path, database, mosquitto, database__query_timeout="10s") as run,
        run.fault("MariaDB: slow (200 ms each way, 100 kB/s)"),
    ):
        run.to_database.delay, run.to_database.rate = 0.2, 100_000.0
        await run.arrives(400, within=60)
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
async def test_cut_in_the_middle_of_packets(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run:
        async with run.traffic.running():
            for after in (1, 3, 7, 70, 700, 7000) * 2:
                await run.arrives()
                run.to_database.cut(after)
                await eventually(lambda: not run.to_database.cutting)
            recovery = await run.recovered()
        await run.verdict("MariaDB: 12 connections cut in the middle of a packet", recovery)


@pytest.mark.long
async def test_reset(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with fault_run(tmp_path, database, mosquitto) as run:
        async with run.traffic.running():
            for _ in range(10):
                await run.arrives()
                run.to_database.reset()
            recovery = await run.recovered()
        await run.verdict("MariaDB: all connections reset, 10 times", recovery)


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
            await for_a_while(5)
            await writer.run("SET GLOBAL max_connections = 300")
            recovery = await run.recovered()
        await run.verdict("MariaDB: too many connections", recovery)
        assert "Too many connections" in run.daemon.log()


@pytest.mark.long
async def test_rights_revoked_and_given_back(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with (
        fault_run(tmp_path, database, mosquitto) as run,
        run.traffic.writer() as writer,
        run.fault("MariaDB: rights revoked and given back"),
    ):
        for table in ("log_events", "job_tracking"):
            await writer.run(f"REVOKE SELECT ON `{database.name}`.{table} FROM correlator@'%'")
        await run.degraded("database")
        await run.goes_on()
        for table in ("log_events", "job_tracking"):
            await writer.run(f"GRANT SELECT ON `{database.name}`.{table} TO correlator@'%'")


@pytest.mark.long
async def test_wait_timeout(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with fault_run(tmp_path, database, mosquitto, traffic=SLOW_TRAFFIC) as run, run.traffic.writer() as writer:
        await writer.run("SET GLOBAL wait_timeout = 5")
        await sent_away(writer)
        async with run.traffic.running():
            await run.arrives()
        await run.quiet()
        await for_a_while(8)
        async with run.traffic.running():
            recovery = await run.recovered()
        await run.verdict("MariaDB: wait_timeout of 5 s, quiet for 8 s", recovery)


@pytest.mark.long
async def test_the_server_s_default_is_repeatable_read(mosquitto: Mosquitto, tmp_path: Path):
    with MariaDB("--transaction-isolation=REPEATABLE-READ", "--autocommit=0") as server:
        database = await server.create_schema()
        async with fault_run(tmp_path, database, mosquitto) as run:
            async with run.traffic.running():
                await run.goes_on(200)
                recovery = await run.recovered()
            await run.verdict("MariaDB: global REPEATABLE READ, autocommit off", recovery)


async def sent_away(writer: RetryingWriter) -> None:
    """The server closes every connection of the daemon."""
    await writer.run("KILL USER correlator")
