"""What operators do to a database, in random order, while jobs run: at the end nothing is lost, and nothing is wrong.

Each operation leaves the tables as it found them, or with what it added; what it removed has been read before. A run
that fails names its seed: `make test-faults ARGS='-k operators'` with this `OPERATIONS_SEED` repeats the order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.faults.fault_run import SLOW_TRAFFIC, FaultRun, burn, fault_run
from tests.support.mariadb import MariaDB, replicates
from tests.support.mosquitto import Mosquitto


@dataclass(frozen=True)
class Site:
    """One appliance. `lasts`: seconds for which an operation leaves things changed. `behind`: a replica."""

    run: FaultRun
    server: MariaDB
    lasts: float
    behind: MariaDB | None = None

    async def sql(self, *statements: str) -> None:
        for statement in statements:
            await self.run.database.run(statement)

    @asynccontextmanager
    async def meanwhile(self, change: str, back: str) -> AsyncIterator[None]:
        """The change for a while, and then what undoes it."""
        await self.sql(change)
        await asyncio.sleep(self.lasts)
        yield
        await self.sql(back)

    async def job(self) -> str:
        """A job that has begun, and is shown."""
        async with self.run.traffic.writer() as writer:
            job_id = await self.run.traffic.job(writer)
        await eventually(lambda: job_id in self.run.reader.jobs)
        return job_id


Operation = Callable[[Site], Awaitable[None]]


def statements(*sql: str) -> Operation:
    """What has no end."""

    async def operate(site: Site) -> None:
        await site.sql(*sql)

    return operate


def for_a_while(change: str, back: str) -> Operation:
    async def operate(site: Site) -> None:
        async with site.meanwhile(change, back):
            pass

    return operate


def held(*sql: str) -> Operation:
    """What lasts as long as the session that does it."""

    async def operate(site: Site) -> None:
        async with site.run.database.connect() as connection, connection.cursor() as cursor:
            for statement in sql:
                await cursor.execute(statement)
            await asyncio.sleep(site.lasts)

    return operate


def revoked(table: str) -> Operation:
    async def operate(site: Site) -> None:
        of = f"SELECT ON `{site.run.database.name}`.{table}"
        async with site.meanwhile(f"REVOKE {of} FROM correlator@'%'", f"GRANT {of} TO correlator@'%'"):
            pass

    return operate


def refilled(table: str) -> Operation:
    async def operate(site: Site) -> None:
        """No row is written between the copy and the removal."""
        async with site.run.database.connect() as connection, connection.cursor() as cursor:
            for statement in (
                "SET foreign_key_checks = 0",
                f"CREATE TABLE kept LIKE {table}",
                f"LOCK TABLES {table} WRITE, kept WRITE",
                f"INSERT INTO kept SELECT * FROM {table}",
                f"DELETE FROM {table}",
                "UNLOCK TABLES",
            ):
                await cursor.execute(statement)
            await asyncio.sleep(site.lasts)
            await cursor.execute(f"INSERT INTO {table} SELECT * FROM kept")
            await cursor.execute("DROP TABLE kept")

    return operate


async def restart(site: Site) -> None:
    await asyncio.to_thread(site.server.stop)
    await asyncio.to_thread(site.server.start)


async def crash(site: Site) -> None:
    await asyncio.to_thread(site.server.kill)
    await asyncio.to_thread(site.server.start)


async def freeze(site: Site) -> None:
    os.kill(site.server.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(site.lasts)
    finally:
        os.kill(site.server.pid, signal.SIGCONT)


async def kill_connections(site: Site) -> None:
    for (thread,) in await site.run.database.run(
        "SELECT id FROM information_schema.processlist WHERE user = 'correlator'"
    ):
        with contextlib.suppress(Exception):  # it may have gone with another
            await site.sql(f"KILL {thread}")


async def lock_the_account(site: Site) -> None:
    await site.sql("ALTER USER correlator@'%' ACCOUNT LOCK")
    await kill_connections(site)
    await asyncio.sleep(site.lasts)
    await site.sql("ALTER USER correlator@'%' ACCOUNT UNLOCK")


async def end_a_job_by_hand(site: Site) -> None:
    job_id = await site.job()
    await site.sql(f"UPDATE job_tracking SET status = 'failed', completed_at = NOW() WHERE id = '{job_id}'")


async def delete_a_job(site: Site) -> None:
    job_id = await site.job()
    await site.sql(f"DELETE FROM job_tracking WHERE id = '{job_id}'")


async def delete_old_rows(site: Site) -> None:
    """The older half of what the client has received."""
    await site.run.oracle.remember()
    received = sorted({event_id for event_id, _ in site.run.reader.lines})
    await site.sql(f"DELETE FROM log_events WHERE id IN ({','.join(map(str, received[: len(received) // 2]))})")


async def set_the_clock_back(site: Site) -> None:
    """One job logs with the clock of a host that is three hours behind."""
    job_id = await site.job()
    traffic = site.run.traffic
    async with traffic.writer() as writer:
        for _ in range(5):
            late, traffic.offset = traffic.offset, timedelta(hours=-3)
            line = traffic.line("WARN", "of another clock", job_id=job_id)
            traffic.offset = late
            await traffic.commit(writer, [line])
    await site.sql(f"UPDATE job_tracking SET status = 'completed', completed_at = NOW() WHERE id = '{job_id}'")


async def burn_ids(site: Site) -> None:
    await burn(site.run.database, 50)


async def to_the_replica_and_back(site: Site) -> None:
    proxy = site.run.to_database
    if site.behind is None:
        proxy.reset()
        return
    proxy.target = site.behind.port
    proxy.reset()
    await asyncio.sleep(3 * site.lasts)
    proxy.target = site.server.port
    proxy.reset()


RENAMED = "ALTER TABLE {} RENAME COLUMN {} TO {}"

OPERATIONS: dict[str, Operation] = {
    "end a job by hand": end_a_job_by_hand,
    "delete a job": delete_a_job,
    "delete old rows": delete_old_rows,
    "kill the connections": kill_connections,
    "restart the server": restart,
    "crash the server": crash,
    "freeze the server": freeze,
    "lock the account": lock_the_account,
    "set the clock back": set_the_clock_back,
    "move to a replica and back": to_the_replica_and_back,
    "burn ids": burn_ids,
    "change the zone": for_a_while("SET GLOBAL time_zone = '+05:30'", "SET GLOBAL time_zone = '+00:00'"),
    "read only": for_a_while("SET GLOBAL read_only = ON", "SET GLOBAL read_only = OFF"),
    "few connections": for_a_while(
        "ALTER USER correlator@'%' WITH MAX_USER_CONNECTIONS 3", "ALTER USER correlator@'%' WITH MAX_USER_CONNECTIONS 0"
    ),
    "empty and refill the log": refilled("log_events"),
    "empty and refill the jobs": refilled("job_tracking"),
    **{f"revoke {table}": revoked(table) for table in ("log_events", "job_tracking", "job_steps", "failover_jobs")},
    **{
        f"rename {table}.{column}": for_a_while(
            RENAMED.format(table, column, "away"), RENAMED.format(table, "away", column)
        )
        for table, column in (("log_events", "attrs"), ("log_events", "job_id"), ("job_steps", "name"))
    },
    "rename the steps": for_a_while("RENAME TABLE job_steps TO away", "RENAME TABLE away TO job_steps"),
    **{f"lock {table}": held(f"LOCK TABLES {table} WRITE") for table in ("log_events", "job_tracking", "job_steps")},
    "lock everything": held("FLUSH TABLES WITH READ LOCK"),
    "a dump": held("START TRANSACTION WITH CONSISTENT SNAPSHOT", "SELECT * FROM log_events", "SELECT * FROM job_steps"),
    **{
        f"copy {table}": statements(f"ALTER TABLE {table} FORCE, ALGORITHM = COPY")
        for table in ("log_events", "failover_jobs")
    },
    "optimize": statements("OPTIMIZE TABLE log_events", "OPTIMIZE TABLE job_steps", "ANALYZE TABLE job_tracking"),
    "add a column": for_a_while(
        "ALTER TABLE log_events ADD COLUMN host varchar(64) AFTER id", "ALTER TABLE log_events DROP COLUMN host"
    ),
    "drop an index": for_a_while(
        "ALTER TABLE log_events DROP INDEX idx_log_events_external_job_id",
        "ALTER TABLE log_events ADD INDEX idx_log_events_external_job_id (external_job_id)",
    ),
}


async def operate(site: Site, count: int) -> None:
    """Do so many operations one after the other while jobs run, and judge what is shown at the end."""
    seed = int(os.environ.get("OPERATIONS_SEED") or random.randrange(1 << 32))
    names = random.Random(seed).sample(list(OPERATIONS), count)
    done: list[str] = []
    try:
        async with site.run.traffic.running():
            await site.run.arrives()
            for name in names:
                done.append(name)
                await OPERATIONS[name](site)
                await site.run.goes_on(5)
            recovery = await site.run.recovered()
        await site.run.verdict(f"{count} operations", recovery)
        events = site.run.listener.events
        again = [event for event, received in events.items() if received > 1 and event[0] is not None]
        assert not again, f"{len(again)} events were published again"
    except BaseException as error:
        error.add_note(f"OPERATIONS_SEED={seed}, after: {', '.join(done)}")
        raise


async def test_some_operations_of_operators(own_mariadb: MariaDB, mosquitto: Mosquitto, tmp_path: Path):
    database = await own_mariadb.create_schema()
    async with fault_run(tmp_path, database, mosquitto, database__timezone="auto") as run:
        await operate(Site(run, own_mariadb, 0.2), 5)


@pytest.mark.long
async def test_all_operations_of_operators(mosquitto: Mosquitto, tmp_path: Path):
    with MariaDB("--log-bin=binlog", "--server-id=1") as server, MariaDB("--server-id=2") as behind:
        database = await server.create_schema()
        await replicates(server, behind, database, delay=2)
        settings: dict[str, Any] = {"traffic": SLOW_TRAFFIC, "database__timezone": "auto"}
        async with fault_run(tmp_path, database, mosquitto, **settings) as run:
            await operate(Site(run, server, 2.0, behind), len(OPERATIONS))
