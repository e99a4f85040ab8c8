"""A table that cannot be read for a while: what was read stays, it is said, and nothing else stops.

Everything runs against a real MariaDB. The daemon is well again only once it has read what it missed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance, connected
from tests.support.bulk_rows import ago, fill, job_id
from tests.support.daemon import HELLO, Daemon, correlator
from tests.support.eventually import eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto

JOBS = 40
STEPS = 3
PAGE = 16_384
"""Bytes. The first three pages of a table's file only name and describe it."""

LOCKED = 6.0
"""Seconds."""

METADATA = '{"vm_name": "vm-1"}'

AWAY_AND_BACK = {
    "steps revoked": (
        "job_steps",
        "REVOKE SELECT ON `{db}`.job_steps FROM correlator@'%'",
        "GRANT SELECT ON `{db}`.job_steps TO correlator@'%'",
    ),
    "status of steps": (
        "job_steps",
        "ALTER TABLE job_steps RENAME COLUMN status TO away",
        "ALTER TABLE job_steps RENAME COLUMN away TO status",
    ),
    "jobs revoked": (
        "job_tracking",
        "REVOKE SELECT ON `{db}`.job_tracking FROM correlator@'%'",
        "GRANT SELECT ON `{db}`.job_tracking TO correlator@'%'",
    ),
}


@pytest.fixture
async def filled(database: Database) -> Database:
    await fill_tables(database)
    return database


async def fill_tables(database: Database) -> None:
    """Ended jobs, whose steps only the table has, and a legacy job."""
    begun, ended = ago(minutes=30), ago(minutes=20)
    columns = ("id", "operation", "job_type", "status", "metadata", "started_at", "completed_at", "updated_at")
    jobs = [(job_id(n), "op", "failover", "completed", METADATA, begun, ended, ended) for n in range(JOBS)]
    steps = [
        (job_id(n), f"step-{seq}", seq, "completed", begun, ended) for n in range(JOBS) for seq in range(1, STEPS + 1)
    ]
    await fill(database, "job_tracking", columns, jobs)
    await fill(database, "job_steps", ("job_id", "name", "seq", "status", "started_at", "completed_at"), steps)
    legacy = ("job_id", "vm_id", "job_type", "status", "source_vm_name", "created_at", "updated_at")
    await fill(database, "failover_jobs", legacy, [("legacy-1", "v", "live", "pending", "vm-old", begun, begun)])


@contextlib.asynccontextmanager
async def running(database: Database, folder: Path, **settings: Any) -> AsyncIterator[Daemon]:
    async with Daemon(folder, database__url=database.url, **settings) as daemon:
        yield daemon


async def parts(daemon: Daemon) -> dict[str, Any]:
    body: dict[str, Any] = (await daemon.get("/health/ready"))[1]
    return {**body["parts"], "degraded": body["degraded"]}


async def state_of(daemon: Daemon, table: str) -> str:
    """`ok`, or why the table is not read."""
    found = (await parts(daemon))["tables"]["states"].get(table)
    return found["state"] if found is not None else "ok"


async def is_well(daemon: Daemon) -> bool:
    found = await parts(daemon)
    return not found["degraded"] and found["database"]["state"] == "live"


async def documents(daemon: Daemon) -> dict[str, Any]:
    """What REST lists: the members of each job that the tables alone have."""
    _, body = await daemon.get("/api/v1/jobs?limit=500&steps=1")
    members = ("status", "metadata", "steps", "started_at", "ended_at", "source")
    return {job["job_id"]: {name: job[name] for name in members} for job in body["jobs"]}


async def all_documents(daemon: Daemon) -> dict[str, Any]:
    """Those of all jobs, once the owner of the legacy job has been searched for."""

    async def are_there() -> dict[str, Any]:
        found = await documents(daemon)
        return found if len(found) == JOBS + 1 else {}

    return await eventually(are_there)


@pytest.mark.parametrize("what", AWAY_AND_BACK)
async def test_what_was_read_stays_and_is_complete_when_readiness_says_so(filled: Database, tmp_path: Path, what: str):
    table, away, back = (text.format(db=filled.name) for text in AWAY_AND_BACK[what])
    async with running(filled, tmp_path) as daemon, filled.connect() as connection, connection.cursor() as cursor:
        before = await all_documents(daemon)
        assert all(len(job["steps"]) == STEPS for name, job in before.items() if name != "legacy-1")
        await cursor.execute(away)
        try:
            await eventually(lambda: state_of(daemon, table), every=0.02)

            async def is_said() -> bool:
                found = await parts(daemon)
                return found["degraded"] and found["database"]["state"] == "stale" and not found["tables"]["ok"]

            await eventually(is_said, every=0.02)
            async with daemon.socket(HELLO) as socket:
                said = await socket.until("status")
                assert (said["source"], table in said["error"]) == ("stale", True)
            assert "correlator_database_up 0.0" in await daemon.text("/metrics")
            for _ in range(20):
                assert await documents(daemon) == before  # job_steps is not read again by itself: no job has news
                await asyncio.sleep(0.1)
            status = "away" if what == "status of steps" else "status"
            await cursor.execute(f"UPDATE job_steps SET {status} = 'failed' WHERE seq = 2")
        finally:
            await cursor.execute(back)
        await eventually(lambda: is_well(daemon), every=0.01)
        after = await documents(daemon)
        assert after.keys() == before.keys()
        if table == "job_steps":
            statuses = {tuple(step["status"] for step in job["steps"].values()) for job in after.values()}
            assert statuses == {("completed", "failed", "completed"), ()}
        else:
            assert {name: job["metadata"] for name, job in after.items()} == {
                name: job["metadata"] for name, job in before.items()
            }


async def test_a_job_that_is_read_on_request_says_that_its_steps_are_missing(filled: Database, tmp_path: Path):
    async with running(filled, tmp_path, jobs__retention="60s") as daemon, filled.connect() as connection:

        async def has(count: int, *, complete: bool) -> bool:
            found = await daemon.job(job_id(1))
            assert (len(found["steps"]), found.get("steps_complete", True)) == (count, complete)
            return True

        assert await has(STEPS, complete=True)
        async with connection.cursor() as cursor:
            await cursor.execute(f"REVOKE SELECT ON `{filled.name}`.job_steps FROM correlator@'%'")
            try:
                assert await has(0, complete=False)
            finally:
                await cursor.execute(f"GRANT SELECT ON `{filled.name}`.job_steps TO correlator@'%'")
        await eventually(lambda: has(STEPS, complete=True))


def warnings(daemon: Daemon) -> list[str]:
    return [line for line in daemon.log().splitlines() if "cannot be read" in line or "unreachable" in line]


async def test_a_lock_is_named_and_the_database_does_not_seem_well_in_between(
    filled: Database, appliance: Appliance, tmp_path: Path
):
    async with running(filled, tmp_path, database__query_timeout="2s") as daemon, filled.connect() as locker:
        async with locker.cursor() as cursor:
            await cursor.execute("LOCK TABLES log_events WRITE")
            await eventually(lambda: is_locked(daemon), every=0.02)
            loop = asyncio.get_running_loop()
            until, seen = loop.time() + LOCKED, set[str]()
            while loop.time() < until:
                found = await parts(daemon)
                assert found["degraded"]
                seen.add(found["database"]["state"])
                assert found["tables"]["states"].keys() == {"log_events"}
                assert "LOCK TABLES" in found["database"]["error"]
                assert "correlator_database_up 0.0" in await daemon.text("/metrics")
                await asyncio.sleep(0.05)
            assert seen <= {"stale", "down"}
            await cursor.execute("UNLOCK TABLES")
        await eventually(lambda: is_well(daemon))
        assert len(warnings(daemon)) <= 3, warnings(daemon)
        await appliance.log("after the lock", job_id=await appliance.job("gui-1"))

        await eventually(lambda: has_message(daemon, "after the lock"))


async def is_locked(daemon: Daemon) -> bool:
    return await state_of(daemon, "log_events") == "locked"


async def test_a_table_whose_file_was_damaged_is_named_and_read_again_once_it_is_repaired(
    own_mariadb: MariaDB, tmp_path: Path
):
    database, table = await own_mariadb.create_schema(), "job_steps"
    await fill_tables(database)
    file = own_mariadb.folder / "data" / database.name / f"{table}.ibd"

    async def while_it_is_down(content: bytes) -> None:
        await asyncio.to_thread(own_mariadb.stop)
        file.write_bytes(content)
        await asyncio.to_thread(own_mariadb.start)

    async with running(database, tmp_path) as daemon:
        before = await all_documents(daemon)
        await asyncio.to_thread(own_mariadb.stop)
        whole = file.read_bytes()
        await while_it_is_down(whole[: 2 * PAGE])
        await eventually(lambda: is_failing(daemon, table))
        async with connected(database) as connection:
            appliance = Appliance(connection)
            await appliance.job("gui-1")
            await eventually(lambda: daemon.job("gui-1"))  # no other table stops
        found = await parts(daemon)
        assert [*found["tables"]["states"]] == [table]
        assert found["tables"]["error"].startswith(
            f"{table} cannot be read: the database ends its queries with an error"
        )
        assert found["database"]["error"] == found["tables"]["error"]
        code, doctor, _ = await correlator(daemon, "doctor")
        assert code == 1
        assert found["tables"]["error"] in " ".join(doctor.split())
        after = await documents(daemon)
        assert {name: after[name] for name in before} == before  # what was read stays
        await while_it_is_down(whole)
        await eventually(lambda: is_well(daemon))
        after = await documents(daemon)
        assert {name: after[name] for name in before} == before


BROKEN_FIRST = {
    "job_steps": ("id, job_id, seq, started_at, completed_at, error_message, status", "name"),
    "failover_jobs": ("id, job_id, vm_id, job_type, source_vm_name, created_at, updated_at", "status"),
}
"""Columns that can be read, and one of which each value is an error."""


@pytest.mark.parametrize("table", BROKEN_FIRST)
async def test_a_table_that_is_broken_at_a_first_start_delays_nothing_and_gives_no_old_events(
    filled: Database, appliance: Appliance, mosquitto: Mosquitto, tmp_path: Path, table: str
):
    others, broken = BROKEN_FIRST[table]
    # It is newer than nearly all that can be read at first.
    ended = "UPDATE failover_jobs SET status = 'failed', created_at = %s, updated_at = %s, completed_at = %s"
    await appliance.run(ended, ago(minutes=5), ago(seconds=2), ago(seconds=2))
    await appliance.run(f"RENAME TABLE {table} TO whole")
    error = "(SELECT 'a' UNION SELECT 'b')"
    await appliance.run(f"CREATE VIEW {table} AS SELECT {others}, {error} AS {broken} FROM whole")
    settings = {"mqtt__url": mosquitto.url, "mqtt__instance": f"first-{table}"}
    listener = Listener()
    async with listener.listening(mosquitto, f"first-{table}"), running(filled, tmp_path, **settings) as daemon:
        assert await state_of(daemon, table) == "failing"
        found = await documents(daemon)
        assert len(found) >= JOBS
        assert all(bool(job["steps"]) == (table != "job_steps") for job in found.values() if job["metadata"])
        await appliance.run(f"DROP VIEW {table}")
        await appliance.run(f"RENAME TABLE whole TO {table}")
        await eventually(lambda: is_well(daemon))
        repaired = await all_documents(daemon)
        assert all(len(job["steps"]) == STEPS for name, job in repaired.items() if name != "legacy-1")
        # This one is announced when the grace is over; by then those of old steps would have been.
        ended = await appliance.job("gui-1")
        await eventually(lambda: daemon.job("gui-1"))
        await appliance.run("UPDATE job_tracking SET status = 'failed', completed_at = NOW() WHERE id = %s", ended)
        await eventually(lambda: listener.kinds(ended, "job.failed"))
        assert {event["job_id"] for event in listener.events} == {ended}


async def is_failing(daemon: Daemon, table: str) -> bool:
    return await state_of(daemon, table) == "failing"


async def has_message(daemon: Daemon, text: str) -> bool:
    _, body = await daemon.get("/api/v1/jobs/gui-1")
    return bool((body["last_message"] or {}).get("text") == text)
