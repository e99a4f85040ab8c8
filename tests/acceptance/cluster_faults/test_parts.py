"""What is around NATS breaks: the database, a client of a gateway; and NATS with an option, and large documents."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from correlator.state.checkpoint import VERSION
from tests.support.bulk_rows import jobs_without_rows
from tests.support.collectors import has_role, is_active
from tests.support.earlier_build import earlier_build
from tests.support.eventually import eventually
from tests.support.faketime import environment, needs_faketime
from tests.support.faults.cluster_run import ClusterRun, cluster_run
from tests.support.faults.watchers import WebsocketWatcher
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.nats import Nats, NatsCluster
from tests.support.subscriptions import documents, plain
from tests.support.yardstick import interpreter

JOBS = 20_000

SILENCE = 3.5
"""Seconds after which a standby takes the lease of a collector that was killed."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.mark.timeout(900)
async def test_active_killed_with_twenty_thousand_jobs(database: Database, nats: Nats, tmp_path: Path):
    await jobs_without_rows(database, JOBS)
    async with cluster_run(tmp_path, database, nats, jobs__max_jobs=JOBS + 1_000) as run:
        async with run.traffic.running():
            await eventually(lambda: len(run.watcher.jobs) > JOBS)
            await run.active.saved()
            await asyncio.sleep(10)  # The standby has read the checkpoint.
            await run.active.kill()
            recovery = await run.recovered()
            await run.goes_on()
        await run.verdict(f"collector: killed, {JOBS:,} jobs", recovery, within=400.0)
        assert recovery < SILENCE + 10 * await asyncio.to_thread(interpreter)


@needs_faketime
async def test_clocks_of_collectors_five_minutes_wrong(database: Database, nats_cluster: NatsCluster, tmp_path: Path):
    clocks = [environment(tmp_path / f"stamp{offset}", offset) for offset in ("+300", "-300")]
    async with cluster_run(tmp_path, database, nats_cluster, environs=clocks) as run:
        recoveries = []
        async with run.traffic.running():
            for one, other in ((run.active, run.standby), (run.standby, run.active)):
                await run.goes_on()
                assert await has_role(one, "active")
                recoveries.append(await run.recovered())
                ((shown,), part) = await appliances(run), (await one.get("/health/ready"))[1]
                assert (shown["online"], shown["database"], shown["error"]) == (True, "live", None)
                assert not part["degraded"], part
                assert "300 s" in await asyncio.to_thread(one.log), "its clock is right"
                await one.kill()
                recoveries.append(await run.recovered())
                await one.start(ready=False)
                await eventually(lambda: is_active(other))  # noqa: B023
            await run.goes_on()
        await run.verdict("collectors: clocks 5 min wrong, each killed in turn", max(recoveries))


async def test_active_collector_killed_and_suspended_past_its_takeover(
    database: Database, nats_cluster: NatsCluster, tmp_path: Path
):
    """Its successor reads the last rows again: no client of a gateway gets a log line twice."""
    async with cluster_run(tmp_path, database, nats_cluster) as run:
        recoveries = []
        async with run.traffic.running():
            await run.goes_on()
            await run.active.kill()
            recoveries.append(await run.recovered())
            await run.active.start(ready=False)
            await eventually(lambda: has_role(run.active, "standby"))
            await run.goes_on()
            os.kill(run.standby.pid, signal.SIGSTOP)
            try:
                recoveries.append(await run.recovered())
            finally:
                os.kill(run.standby.pid, signal.SIGCONT)
            await eventually(lambda: has_role(run.standby, "standby"))
            await run.goes_on()
        await run.verdict("collector: killed, and suspended past its takeover", max(recoveries))
        assert len(run.watcher.lines) > 200


UNKNOWN_EARLIER = {"failure"}
"""Members of a document that the earlier gateway does not pass on."""


async def test_collectors_and_gateways_of_this_version_and_an_earlier_one(
    database: Database, nats_cluster: NatsCluster, tmp_path: Path
):
    """Each takes over from the other one and goes on from its checkpoint, or says that this has another form."""
    earlier = await asyncio.to_thread(earlier_build, tmp_path / "earlier")
    async with (
        cluster_run(tmp_path, database, nats_cluster, environs=(earlier.environ, None)) as run,
        gateway_process(tmp_path / "earlier-gateway", nats_cluster.url, **earlier.environ) as gateway,
        WebsocketWatcher(gateway.url) as watcher,
    ):
        recoveries = []
        async with run.traffic.running():
            for one, other in ((run.active, run.standby), (run.standby, run.active)):
                await run.goes_on()
                assert await has_role(one, "active")
                await one.kill()
                recoveries.append(await run.recovered())
                assert await has_role(other, "active")
                await one.start(ready=False)
                await eventually(lambda: has_role(one, "standby"))  # noqa: B023
            await run.goes_on()
        await run.verdict("two versions, the active of each killed in turn", max(recoveries))

        async def are_equal() -> bool:
            jobs = await documents(run.gateway)
            shown = {job_id: {name: job[name] for name in job.keys() - UNKNOWN_EARLIER} for job_id, job in jobs.items()}
            assert await documents(gateway) == shown
            assert plain(watcher.jobs) == plain(shown)
            return True

        await eventually(are_equal)
        assert watcher.twice == 0
        assert "Traceback" not in await asyncio.to_thread(gateway.log)
        for one in (run.active, run.standby):
            afresh = re.search(
                r"(all is read from the tables|everything is read again)", await asyncio.to_thread(one.log)
            )
            assert (afresh is not None) == (earlier.form != VERSION), afresh


async def appliances(run: ClusterRun) -> Any:
    return (await run.gateway.get("/api/v1/instances"))[1]["instances"]
