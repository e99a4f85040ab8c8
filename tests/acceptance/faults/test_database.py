"""The database breaks: whatever happens to it, the daemon recovers without help and no committed row is lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.acceptance.faults.stage import LEISURELY, for_a_while, staged
from tests.acceptance.faults.traffic import Hand
from tests.servers import Database, MariaDB, Mosquitto, eventually


async def test_killed(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with staged(tmp_path, database, mosquitto) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            await asyncio.to_thread(own_mariadb.kill)
            await stage.degraded("database")
            await asyncio.to_thread(own_mariadb.start)
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: kill -9", recovery)


async def test_black_hole(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            stage.to_database.black_hole()
            await stage.degraded("database")
            await stage.goes_on()
            stage.to_database.heal()
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: black hole", recovery)


@pytest.mark.long
async def test_restarted(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with staged(tmp_path, database, mosquitto) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            await asyncio.to_thread(own_mariadb.stop)
            await stage.degraded("database")
            await asyncio.to_thread(own_mariadb.start)
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: restarted", recovery)


@pytest.mark.long
async def test_frozen(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            await asyncio.to_thread(own_mariadb.pause)
            try:
                await stage.degraded("database")
                await for_a_while(8)
            finally:
                await asyncio.to_thread(own_mariadb.resume)
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: frozen (SIGSTOP) for 10 s", recovery)


@pytest.mark.long
async def test_slow(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto, database__query_timeout=10) as stage:
        async with stage.traffic.running():
            await stage.arrives()
            stage.to_database.delay, stage.to_database.rate = 0.2, 100_000.0
            await stage.arrives(400, within=60)
            stage.to_database.heal()
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: slow (200 ms each way, 100 kB/s)", recovery)


@pytest.mark.long
async def test_more_rows_than_come_within_the_deadline_of_a_query(
    database: Database, mosquitto: Mosquitto, tmp_path: Path
):
    async with staged(tmp_path, database, mosquitto, database__query_timeout=2) as stage, stage.traffic.hand() as hand:
        stage.oracle.drops = True  # lines for readers wait in up to 1 MiB, and more than that comes at once
        job_id = await stage.traffic.job(hand)
        stage.to_database.rate = 1_000_000.0
        for _ in range(60):
            large = [stage.traffic.line("INFO", "large", {"dump": "x" * 20_000}, job_id=job_id) for _ in range(5)]
            await stage.traffic.commit(hand, large)
        recovery = await stage.recovered()
        stage.to_database.heal()
        await stage.verdict("MariaDB: 6 MB of rows over 1 MB/s, query_timeout 2 s", recovery)


@pytest.mark.long
async def test_cut_in_the_middle_of_packets(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage:
        async with stage.traffic.running():
            for after in (1, 3, 7, 70, 700, 7000) * 2:
                await stage.arrives()
                stage.to_database.cut(after)
                await eventually(lambda: not stage.to_database.cutting, within=20)
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: 12 connections cut in the middle of a packet", recovery)


@pytest.mark.long
async def test_reset(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage:
        async with stage.traffic.running():
            for _ in range(10):
                await stage.arrives()
                stage.to_database.reset()
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: all connections reset, 10 times", recovery)


@pytest.mark.long
async def test_too_many_connections(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with staged(tmp_path, database, mosquitto) as stage, stage.traffic.hand() as hand:
        async with stage.traffic.running(), contextlib.AsyncExitStack() as others:
            await stage.arrives()
            for _ in range(15):
                await others.enter_async_context(database.connect())
            await hand.run("SET GLOBAL max_connections = 10")
            await sent_away(hand)
            await stage.degraded("database")
            await stage.goes_on()
            await for_a_while(5)
            await hand.run("SET GLOBAL max_connections = 300")
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: too many connections", recovery)
        assert "Too many connections" in stage.daemon.log()


@pytest.mark.long
async def test_rights_revoked_and_given_back(database: Database, mosquitto: Mosquitto, tmp_path: Path):
    async with staged(tmp_path, database, mosquitto) as stage, stage.traffic.hand() as hand:
        async with stage.traffic.running():
            await stage.arrives()
            for table in ("log_events", "job_tracking"):
                await hand.run(f"REVOKE SELECT ON `{database.name}`.{table} FROM correlator@'%'")
            await stage.degraded("database")
            await stage.goes_on()
            for table in ("log_events", "job_tracking"):
                await hand.run(f"GRANT SELECT ON `{database.name}`.{table} TO correlator@'%'")
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: rights revoked and given back", recovery)


@pytest.mark.long
async def test_wait_timeout(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with staged(tmp_path, database, mosquitto, traffic=LEISURELY) as stage, stage.traffic.hand() as hand:
        await hand.run("SET GLOBAL wait_timeout = 5")
        await sent_away(hand)
        async with stage.traffic.running():
            await stage.arrives()
        await stage.quiet()
        await for_a_while(8)
        async with stage.traffic.running():
            recovery = await stage.recovered()
        await stage.verdict("MariaDB: wait_timeout of 5 s, quiet for 8 s", recovery)


@pytest.mark.long
async def test_everybody_is_given_repeatable_read(mosquitto: Mosquitto, tmp_path: Path):
    with MariaDB("--transaction-isolation=REPEATABLE-READ", "--autocommit=0") as server:
        database = await server.create_schema()
        async with staged(tmp_path, database, mosquitto) as stage:
            async with stage.traffic.running():
                await stage.goes_on(200)
                recovery = await stage.recovered()
            await stage.verdict("MariaDB: global REPEATABLE READ, autocommit off", recovery)


async def sent_away(hand: Hand) -> None:
    """The server closes every connection of the daemon."""
    for row in await hand.rows("SELECT id FROM information_schema.processlist WHERE user = 'correlator'"):
        await hand.run(f"KILL {row['id']}")
