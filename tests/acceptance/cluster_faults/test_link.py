"""The link between the collectors and NATS is slow: nobody takes over, and new jobs do not wait for the old ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from correlator.cluster import keys
from correlator.state.checkpoint import MOMENT
from tests.support.bulk_rows import jobs_without_rows
from tests.support.cluster import connected
from tests.support.eventually import eventually
from tests.support.faults.cluster_run import cluster_run, takeovers
from tests.support.faults.proxy import Proxy
from tests.support.mariadb import Database
from tests.support.nats import Nats

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

MEGABIT = 125_000
"""Bytes a second."""

JOBS = 1_500
"""Jobs that have ended. With their checkpoint they take 4 MB, which is 32 s on the link."""


async def test_one_megabit_for_both_collectors(database: Database, nats: Nats, tmp_path: Path):
    await jobs_without_rows(database, JOBS)
    async with Proxy(nats.port) as link:
        link.rate = MEGABIT
        async with cluster_run(tmp_path, database, nats, link=f"nats://127.0.0.1:{link.port}") as run:
            assert len(run.watcher.jobs) < JOBS, "the link is not slow"
            async with connected(nats.url, role="doctor") as connection:
                await eventually(lambda: len(run.watcher.jobs) >= JOBS, within=300.0)
                written = await connection.last(keys.CHECKPOINT, keys.checkpoint("dc1", *MOMENT))
                assert written is None, "the documents waited for the checkpoint"
            async with run.traffic.running():
                recovery = await run.recovered()
                await run.goes_on(200)
            await run.verdict(f"link of 1 Mbit/s: first start with {JOBS:,} jobs", recovery, within=300.0)
            assert await takeovers(run) == 1
            await run.active.kill()
            recovery = await run.recovered()
            await run.verdict("link of 1 Mbit/s: active killed", recovery, within=300.0)
            assert await takeovers(run) == 2
