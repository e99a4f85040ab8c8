"""A collector, its standby and a gateway do all of their work with the certificates and permissions of deploy/nats."""

from __future__ import annotations

from pathlib import Path

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import eventually
from tests.support.gateways import running
from tests.support.mariadb import Database

LEASE = 'correlator_cluster_lease{{appliance="dc1"}} {}.0'


async def has(daemon: Daemon, metric: str) -> bool:
    return metric in await daemon.text("/metrics")


def collector(folder: Path, nats: DeployedNats, database: Database) -> Daemon:
    folder.mkdir()
    return Daemon(
        folder,
        database__url=database.url,
        cluster__url=nats.url,
        cluster__instance="dc1",
        cluster__tls__ca=nats.certificates.ca,
        cluster__tls__cert=nats.certificates.cert("collector-dc1"),
        cluster__tls__key=nats.certificates.key("collector-dc1"),
        jobs__retention="3s",
    )


async def test_nothing_that_a_fleet_does_is_refused_by_the_permissions(
    database: Database, appliance: Appliance, tmp_path: Path
):
    with DeployedNats() as nats:
        active, standby = (collector(tmp_path / name, nats, database) for name in ("active", "standby"))
        try:
            await active.start()
            async with running(nats.url, nats.section("gateway", "here")) as gateway:

                async def shown(name: str) -> bool:
                    return (await gateway.get(f"/api/v1/jobs/{name}"))[0] == 200

                job_id = await appliance.job("gui-1")
                await appliance.log("Job started", attrs={"job_id": job_id}, job_id=job_id)
                await eventually(lambda: shown("gui-1"))
                await standby.start(ready=False)
                assert LEASE.format(1) in await active.text("/metrics")
                await eventually(lambda: has(standby, LEASE.format(0)))
                await active.kill()

                async def is_active() -> bool:
                    return (await standby.get("/health/ready"))[0] == 200

                await eventually(is_active)
                await eventually(lambda: has(standby, LEASE.format(1)))
                await appliance.job("gui-2")
                await eventually(lambda: shown("gui-2"))
                # Gateways ask the collector for the rows of the log.
                status, body = await gateway.get(f"/api/v1/jobs/{job_id}/events")
                assert (status, [event["message"] for event in body["events"]]) == (200, ["Job started"])
            assert await standby.stop() == 0
        finally:
            await active.close()
            await standby.close()
        assert "violation" not in nats.log().lower()
        assert "violation" not in active.log().lower() + standby.log().lower()
