"""From the tables over a collector, NATS and a gateway to its clients: equal, over a takeover and a gateway's death."""

from __future__ import annotations

from pathlib import Path

from tests.support.appliance import Appliance
from tests.support.collectors import pair
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.nats import Nats
from tests.support.terminal import commands_against


async def test_watch_and_show_work_at_a_gateway_as_at_a_daemon(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats
):
    async with (
        pair(tmp_path, database, nats.url),
        gateway_process(tmp_path / "gateway", nats.url) as gateway,
        commands_against(gateway.url) as run,
    ):
        job_id = await appliance.job("ext-watched")
        await appliance.step(job_id, 1, "validation")
        watching = await run("watch", "ext-watched", "--exit-status")
        await watching.until(lambda: "validation" in watching.out)
        await appliance.end(job_id, "failed", "no such volume")
        assert await watching.end() == 10, watching.err
        assert "no such volume" in watching.out
        shown = await run("show", job_id[:8])
        assert await shown.end() == 0, shown.err
        assert "dc1" in shown.out
