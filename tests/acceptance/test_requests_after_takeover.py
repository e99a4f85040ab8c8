"""A gateway and the daemons of one appliance: the active one answers what has left memory, also after a takeover."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.appliance import Appliance, connected
from tests.support.archive_queries import at
from tests.support.collectors import is_active, pair
from tests.support.eventually import eventually
from tests.support.gateways import running
from tests.support.mariadb import Database
from tests.support.nats import Nats


async def test_the_lease_holder_answers_a_gateway_also_after_a_takeover(tmp_path: Path, database: Database, nats: Nats):
    async with connected(database) as connection:
        appliance = Appliance(connection)
        await appliance.insert(
            "job_tracking",
            id="old",
            operation="live",
            status="completed",
            started_at=at(-90_000),
            completed_at=at(-89_000),
        )
        async with pair(tmp_path, database, nats.url) as (active, standby), running(nats.url) as gateway:

            async def found(name: str) -> bool:
                status, body = await gateway.get(f"/api/v1/jobs/{name}")
                return status == 200 and body["instance"] == "dc1"

            await eventually(lambda: found("old"))
            assert gateway.gateway.fleet.hub.published.get("old") is None
            waiting = asyncio.create_task(gateway.get("/api/v1/jobs/soon", wait=60))
            await active.kill()
            await eventually(lambda: is_active(standby))
            await eventually(lambda: found("old"))
            await appliance.insert(
                "job_tracking", id="new", operation="live", external_job_id="soon", status="running", started_at=at(0)
            )
            status, body = await waiting
            assert (status, body["job_id"], body["instance"]) == (200, "new", "dc1")
