"""A fleet with the certificates and permissions of deploy/nats: what its gateway serves, also after a takeover."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance
from tests.support.bulk_rows import ago
from tests.support.collectors import is_active, pair
from tests.support.daemon import Daemon
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.terminal import commands_against


def tls(nats: DeployedNats, user: str) -> dict[str, Any]:
    """The settings of a process that has the certificate of `user`."""
    files = {"ca": nats.certificates.ca, "cert": nats.certificates.cert(user), "key": nats.certificates.key(user)}
    return {f"cluster__tls__{name}": file for name, file in files.items()} | {"cluster__domain": "correlator"}


async def holds_the_lease(daemon: Daemon) -> bool:
    return 'correlator_cluster_lease{appliance="dc1"} 1.0' in await daemon.text("/metrics")


async def test_a_gateway_serves_an_appliance_over_a_takeover_and_permissions_refuse_nothing(
    database: Database, appliance: Appliance, tmp_path: Path
):
    await appliance.job("old", status="completed", started_at=ago(days=2), completed_at=ago(days=1))
    with DeployedNats() as nats:
        await nats.create_streams()
        of_gateway = {f"CORRELATOR_{name.upper()}": str(file) for name, file in tls(nats, "gateway").items()}
        options = tls(nats, "collector-dc1") | {"jobs__retention": "3s"}
        async with (
            pair(tmp_path, database, nats.url, **options) as (active, standby),
            gateway_process(tmp_path / "gateway", nats.url, **of_gateway) as gateway,
            commands_against(gateway.url) as run,
        ):

            async def serves_what_left_memory() -> bool:
                job = await gateway.job("old")
                return job is not None and job["instance"] == "dc1"

            job_id = await appliance.job("gui-1")
            await appliance.log("Job started", attrs={"job_id": job_id}, job_id=job_id)
            await appliance.step(job_id, 1, "validation")
            watching = await run("watch", "gui-1", "--exit-status")
            await watching.until(lambda: "validation" in watching.out)
            await appliance.log("attach: retrying", "WARN", job_id=job_id)
            await watching.until(lambda: "attach: retrying" in watching.out)
            shown = await run("show", job_id[:8])
            assert await shown.end() == 0, shown.err
            assert "dc1" in shown.out
            await eventually(serves_what_left_memory)
            assert (await holds_the_lease(active), await holds_the_lease(standby)) == (True, False)

            waiting = asyncio.create_task(gateway.get("/api/v1/jobs/soon?wait=60"))
            await active.kill()
            await eventually(lambda: is_active(standby))
            await eventually(lambda: holds_the_lease(standby))
            await eventually(serves_what_left_memory)
            soon = await appliance.job("soon")
            status, body = await waiting
            assert (status, body["job_id"], body["instance"]) == (200, soon, "dc1")

            async def serves_its_rows() -> bool:
                status, body = await gateway.get(f"/api/v1/jobs/{job_id}/events")
                assert status == 200, body  # 503: the collector, which gateways ask for them, is too slow
                return [event["message"] for event in body["events"]] == ["Job started", "attach: retrying"]

            await eventually(serves_its_rows)
            await appliance.end(job_id, "failed", "no such volume")
            assert await watching.end() == 10, watching.err
            assert "no such volume" in watching.out
            assert await standby.stop() == 0
            logs = [nats.log(), *(one.log() for one in (active, standby, gateway))]
            assert "violation" not in "".join(logs).lower()
