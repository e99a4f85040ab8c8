"""More jobs than `jobs.max_jobs`, in an idle database: the daemon comes to rest, and no old job is announced again."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from correlator.sources.tables.reconcile import ROUND
from tests.support.bulk_rows import fill
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.listener import Listener
from tests.support.mariadb import Database, MariaDB
from tests.support.mosquitto import Mosquitto
from tests.support.yardstick import processor_seconds

IDLE_SHARE = 0.5
"""Of a core, at most, with ten reconciliations a second on a machine that runs other tests too."""

READINGS = 2
"""Of each running job, at most, while twenty polls or more pass: one at each would be ten times as many."""

SETTLED_WITHIN = 300
"""Seconds within which a start of 21,000 jobs, or of 4,000 that never end, comes to rest, also on a busy machine."""


async def write(database: Database, ended: int, running: int, legacy: int) -> set[str]:
    """Write jobs of the last 15 hours, each with a step, and ended legacy jobs; their IDs.

    No job of the running operation has ended.
    """
    uuid = "CONCAT(LPAD(HEX(seq), 8, '0'), '-0000-4000-8000-', LPAD(HEX(seq), 12, '0'))"
    every = 50_000 / (ended + running)
    began = f"UTC_TIMESTAMP() - INTERVAL 1 HOUR - INTERVAL {every:f} * seq SECOND"
    done = f"IF(seq < {ended}, UTC_TIMESTAMP() - INTERVAL 1 HOUR - INTERVAL {every:f} * seq - 5 SECOND, NULL)"
    setup = "SET time_zone = '+00:00'"
    async with database.connect(init_command=setup) as connection, connection.cursor() as cursor:
        await cursor.execute(
            "INSERT INTO job_tracking (id, operation, job_type, status, started_at, completed_at, updated_at) SELECT"
            f" {uuid}, IF(seq < {ended}, 'op', 'other'), 'failover', IF(seq < {ended}, 'completed', 'running'),"
            f" {began}, {done}, {began}"
            f" FROM seq_0_to_{ended + running - 1}"
        )
        await cursor.execute("SELECT id FROM job_tracking")
        ids = [row[0] for row in await cursor.fetchall()]
        began = f"UTC_TIMESTAMP() - INTERVAL 1 HOUR - INTERVAL {50_000 / legacy:f} * seq SECOND"
        await cursor.execute(
            "INSERT INTO failover_jobs (job_id, vm_id, job_type, status, source_vm_name, created_at, updated_at,"
            f" completed_at) SELECT CONCAT('legacy-', seq), 'v', 'live', 'completed', 'vm', {began}, {began}, {began}"
            f" FROM seq_0_to_{legacy - 1}"
        )
    steps = [(job_id, "one", 1, "completed", "2026-01-01 00:00:00", "2026-01-01 00:00:01") for job_id in ids]
    await fill(database, "job_steps", ("job_id", "name", "seq", "status", "started_at", "completed_at"), steps)
    return {*ids, *(f"legacy-{n}" for n in range(legacy))}


async def listed(daemon: Daemon, limit: int) -> Counter[str]:
    """The jobs of a whole listing, page by page, each with its number."""
    found: Counter[str] = Counter()
    async for page in daemon.pages("/api/v1/jobs", limit=limit):
        assert page["complete"], page
        found.update(job["job_id"] for job in page["jobs"])
    return found


async def log_a_line(database: Database) -> None:
    """Write a row of no job."""
    async with database.connect() as connection, connection.cursor() as cursor:
        await cursor.execute(
            "INSERT INTO log_events (level, message, ts) VALUES ('INFO', 'of no job', UTC_TIMESTAMP(6))"
        )


async def rows_sent(database: Database) -> int:
    """The rows that the server has sent."""
    return int((await database.run("SHOW GLOBAL STATUS LIKE 'Rows_sent'"))[0][1])


async def rests(
    daemon: Daemon, database: Database, messages: Listener, ids: set[str], running: int, seconds: float
) -> None:
    """Nothing is published for so long, running jobs are not read at every poll, and each listing is whole."""
    limit = min(500, max(20, len(ids) // 40))
    quiet = 0
    async with asyncio.timeout(SETTLED_WITHIN):
        while quiet < 3:  # The jobs beyond the limit leave, 500 a second, and the broker gets that.
            before = messages.count, await daemon.metric("correlator_jobs")
            assert await eventually(partial(listed, daemon, limit)) == Counter(ids)
            await asyncio.sleep(0.3)
            quiet = quiet + 1 if (messages.count, await daemon.metric("correlator_jobs")) == before else 0
        while True:  # A first start still reads the past.
            count, began, used = messages.count, await rows_sent(database), processor_seconds(daemon.pid)
            await asyncio.sleep(seconds)
            # Each job has a step, ended ones are read once a round, and ten polls a second read little.
            ended = 3 * len(ids) / ROUND
            if await rows_sent(database) - began <= 2 * READINGS * running + (100 + ended) * seconds:
                break
    assert processor_seconds(daemon.pid) - used < IDLE_SHARE * seconds
    assert await listed(daemon, limit) == Counter(ids)
    assert messages.count > 0
    assert (messages.events, messages.count - count) == ([], 0)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("max_jobs", "ended", "running", "legacy", "seconds"),
    [
        pytest.param(200, 260, 0, 50, 2, id="more-have-ended"),
        pytest.param(20_000, 21_000, 0, 1_000, 30, id="full", marks=pytest.mark.long),
        pytest.param(3_000, 1_000, 4_000, 1_000, 30, id="full-more-run", marks=pytest.mark.long),
    ],
)
async def test_more_jobs_than_the_limit_cause_no_event_and_no_work_whenever_the_daemon_starts(
    max_jobs: int,
    ended: int,
    running: int,
    legacy: int,
    seconds: float,
    tmp_path: Path,
    mariadb: MariaDB,
    own_mosquitto: Mosquitto,
):
    database = await mariadb.create_schema(f"more_jobs_{max_jobs}_{ended}")
    ids = await write(database, ended, running, legacy)
    settings = {"database__url": database.url, "database__reconcile_interval": "0.1s", "jobs__max_jobs": max_jobs}
    settings |= {"mqtt__url": f"mqtt://127.0.0.1:{own_mosquitto.port}", "jobs__stalled_after": "1000000s"}
    messages = Listener()
    async with messages.listening(own_mosquitto, "test"):
        for limit, end in ((max_jobs, "kill"), (max_jobs, "stop"), (max_jobs // 2, "kill"), (2 * max_jobs, "stop")):
            async with Daemon(tmp_path, **settings | {"jobs__max_jobs": limit}) as daemon:
                await rests(daemon, database, messages, ids, running, seconds)
                assert await daemon.metric("correlator_jobs") == max(running, min(limit, len(ids)))
                if end == "kill":
                    await log_a_line(database)  # With nothing new to write, the checkpoint would wait for ten seconds.
                    await daemon.saved()
                    await daemon.kill()
                else:
                    await daemon.stop()
    await database.drop()
