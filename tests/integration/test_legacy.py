"""Rows of failover_jobs at a real database: which are shown, when, and what asking for their owners costs."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

import pytest

from tests.support.appliance import Appliance, connected, now
from tests.support.bulk_rows import ago, counters, job_id, past_jobs, pending_failovers
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database

JOBS = 8_000
ALONE = {f"nobody-{n}" for n in range(20)}


@pytest.fixture
async def large(database: Database) -> Database:
    """Jobs of the past, and 300 rows of failover_jobs that still say pending: 20 are of no JobLog job."""
    await past_jobs(database, JOBS)
    numbers = range(0, JOBS, JOBS // 280)[:280]
    names = [(job_id, lambda n: f"engine-{n}", lambda n: f"gui-{n}")[i % 3](n) for i, n in enumerate(numbers)]
    ages = [ago(days=2 + 400 * n / JOBS) for n in numbers]
    await pending_failovers(
        database, [*zip(names, ages, strict=True), *((name, ago(days=30)) for name in sorted(ALONE))]
    )
    return database


async def legacy_of(daemon: Daemon) -> set[str]:
    """The legacy jobs that subscribers get: REST has older jobs from the tables besides."""
    async with daemon.socket(HELLO) as socket:
        jobs, _ = await socket.snapshot()
    return {i for i, d in jobs.items() if d["source"] == "legacy"}


async def test_a_start_asks_for_owners_in_batches_and_never_calls_the_database_down(large: Database, tmp_path: Path):
    daemon = Daemon(tmp_path, database__url=large.url)
    try:
        for start in ("first", "again"):
            before = await counters(large)
            await daemon.start(ready=False, within=60)
            errors: set[str] = set()

            async def ready(errors: set[str] = errors) -> bool:
                status, health = await daemon.get("/health/ready")
                errors.add(str(health["parts"]["database"]["error"]))
                return status == 200 and health["parts"]["database"]["state"] == "live"

            await eventually(ready)
            after = await counters(large)
            assert not [e for e in errors if "no answer" in e]
            assert after["Com_select"] - before["Com_select"] < 200, start
            assert after["Handler_read_rnd_next"] - before["Handler_read_rnd_next"] < 3 * JOBS, start
            assert await legacy_of(daemon) <= ALONE
            await eventually(lambda: _equals(legacy_of(daemon), ALONE))
            assert "no answer" not in daemon.log()
            assert await daemon.stop() == 0
    finally:
        await daemon.close()


async def _equals(found: Awaitable[set[str]], wanted: set[str]) -> bool:
    return await found == wanted


async def test_unchanged_rows_are_not_transferred_at_every_poll(database: Database, tmp_path: Path):
    await pending_failovers(database, [(f"alone-{n}", ago(days=3)) for n in range(500)])
    async with Daemon(tmp_path, database__url=database.url, database__reconcile_interval="100ms") as daemon:
        await eventually(lambda: _counts(daemon, 500))
        before = await counters(database)

        async def polled() -> bool:
            return (await counters(database))["Com_select"] > before["Com_select"] + 200

        await eventually(polled, every=0.5)
        after = await counters(database)
        queries = after["Com_select"] - before["Com_select"]
        assert after["Rows_sent"] - before["Rows_sent"] < 20 * queries, "one query in ten would send all 500 rows"
        async with connected(database) as connection:
            await Appliance(connection).run("UPDATE failover_jobs SET status = 'failed' WHERE job_id = 'alone-7'")
            await eventually(lambda: _status(daemon, "alone-7", "failed"))
            await Appliance(connection).run("DELETE FROM failover_jobs WHERE job_id = 'alone-8'")
            await eventually(lambda: _counts(daemon, 499))


async def _counts(daemon: Daemon, count: int) -> bool:
    return len(await legacy_of(daemon)) == count


async def _status(daemon: Daemon, name: str, status: str) -> bool:
    job = await daemon.job(name)
    return job is not None and bool(job["status"] == status)


async def test_a_failed_failover_of_joblog_never_comes_back_as_pending(
    database: Database, appliance: Appliance, tmp_path: Path
):
    at = ago(days=2)
    uuid = await appliance.job("gui-1", status="failed", started_at=at, completed_at=at, error_message="no disk")
    row = {"vm_id": "1", "job_type": "live", "source_vm_name": "v", "status": "pending"}
    await appliance.insert("failover_jobs", job_id=uuid, created_at=at, updated_at=at, **row)
    await appliance.insert("failover_jobs", job_id="real-legacy", created_at=now(), **row)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        for _ in range(2):
            await daemon.start()
            await eventually(lambda: _equals(legacy_of(daemon), {"real-legacy"}))
            for name in (uuid, "gui-1"):
                found = await daemon.job(name)
                assert (found["job_id"], found["status"], found["source"]) == (uuid, "failed", "joblog")
                status, reply = await daemon.get(f"/api/v1/failover/{name}/status")
                assert (status, reply["job_id"], reply["status"]) == (200, uuid, "failed")
            await appliance.run("UPDATE failover_jobs SET vm_id = '2' WHERE job_id = %s", uuid)
            await appliance.run("UPDATE failover_jobs SET status = 'validating' WHERE job_id = 'real-legacy'")
            await eventually(lambda: _status(daemon, "real-legacy", "running"))
            assert await legacy_of(daemon) == {"real-legacy"}
            await appliance.run("UPDATE failover_jobs SET status = 'pending' WHERE job_id = 'real-legacy'")
            assert await daemon.stop() == 0
    finally:
        await daemon.close()
