"""Jobs that stay `running` for ever at a real database: they cost little, and those that wake up are seen at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance, connected
from tests.support.bulk_rows import counters, job_id, silent_jobs
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database

JOBS = 2_000
FIRST = 10_000_000
WOKEN = 40
"""Jobs that wake up together. Readings of silent jobs are spread over two minutes: they alone would find a sixth."""

POLLS = 5.0
"""A second, in this test: each used to read all jobs, with 3 steps of each."""


async def test_silent_jobs_are_not_read_at_every_poll_and_those_that_change_are_noticed(
    database: Database, tmp_path: Path
):
    await silent_jobs(database, JOBS)
    daemon = Daemon(tmp_path, database__url=database.url, database__reconcile_interval=f"{1000 / POLLS:.0f}ms")
    try:
        await daemon.start(within=60)
        began = time.monotonic()
        before = await counters(database)
        await asyncio.sleep(4.0)
        after = await counters(database)
        seconds = time.monotonic() - began
        rows = after["Rows_sent"] - before["Rows_sent"]
        assert rows < JOBS * POLLS * seconds / 20
        async with connected(database) as connection:
            appliance = Appliance(connection)
            moved, woken, ended = ([job_id(FIRST + 100 * k + n) for n in range(WOKEN)] for k in range(3))
            await appliance.run(f"UPDATE job_tracking SET percent_complete = 42 WHERE id IN {_quoted(moved)}")
            await eventually(lambda: _all(daemon, moved, lambda job: job["progress"]["percent"] == 42.0))
            await appliance.run(
                "UPDATE job_steps SET status = 'failed', completed_at = UTC_TIMESTAMP(6)"
                f" WHERE job_id IN {_quoted(woken)}"
            )
            for name in woken:
                await appliance.log("it moves", attrs={"job_id": name})
            await eventually(lambda: _all(daemon, woken, lambda job: job["progress"]["steps_failed"] == 3))
            # Ends without a log row and without a time: their number in the table has changed.
            await appliance.run(
                "UPDATE job_tracking SET status = 'failed', updated_at = '2026-01-01 00:00:00'"
                f" WHERE id IN {_quoted(ended)}"
            )
            by_number = 30  # a comparison that no number asks for comes once a minute
            await eventually(lambda: _all(daemon, ended, lambda job: job is None or job["terminal"]), within=by_number)
    finally:
        await daemon.close()


async def test_jobs_are_hardly_read_while_nothing_changes_and_any_change_is_seen(database: Database, tmp_path: Path):
    """The jobs are so young that each would be read every few seconds; the tables say that nothing has changed."""
    await silent_jobs(database, JOBS, hours=0.02)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start(within=60)

        async def is_quiet() -> bool:
            began, before = time.monotonic(), (await counters(database))["Rows_sent"]
            await asyncio.sleep(2.0)
            rows = (await counters(database))["Rows_sent"] - before
            return rows / (time.monotonic() - began) < JOBS / 10

        await eventually(is_quiet)
        for number in range(3):  # By hand: no log row, no time.
            changed = job_id(FIRST + number)
            await database.run(f"UPDATE job_steps SET status = 'failed' WHERE job_id = '{changed}' AND seq = 1")
            await eventually(partial(_all, daemon, [changed], lambda job: job["progress"]["steps_failed"] == 1))
            await eventually(is_quiet)
    finally:
        await daemon.close()


def _quoted(names: Sequence[str]) -> str:
    return "(" + ",".join(f"'{name}'" for name in names) + ")"


async def _all(daemon: Daemon, names: Sequence[str], holds: Callable[[Any], bool]) -> bool:
    return all(holds(job) for job in await asyncio.gather(*map(daemon.job, names)))
