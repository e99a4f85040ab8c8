"""From the tables over a collector, NATS and a gateway to its clients: equal, over a takeover and a gateway's death."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.support.appliance import Appliance
from tests.support.collectors import is_active, pair
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.nats import Nats
from tests.support.stream_clients import CheckedWebsocket
from tests.support.subscriptions import Wanted, plain
from tests.support.terminal import commands_against


def comparable(documents: Any) -> dict[str, Any]:
    """Documents by job ID, without what differs between a collector and a gateway."""
    return {d["job_id"]: {k: v for k, v in d.items() if k not in ("rev", "instance")} for d in documents}


async def listed(process: Daemon) -> dict[str, Any]:
    status, page = await process.get("/api/v1/jobs?limit=500&steps=1")
    assert status == 200
    return comparable(page["jobs"])


async def streamed(process: Daemon) -> dict[str, Any]:
    """The snapshot of an event stream."""
    jobs: list[Any] = []
    assert process.session is not None
    async with process.session.get("/api/v1/stream") as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                message = orjson.loads(line[6:])
                jobs += message.get("jobs", ())
                if message["type"] == "synced":
                    break
    return comparable(jobs)


async def equal(collector: Daemon, gateways: list[Daemon], clients: list[CheckedWebsocket]) -> bool:
    """True once gateways and clients have the documents of the collector; an assertion fails until then."""
    due = await listed(collector)
    for gateway in gateways:
        assert await listed(gateway) == due
        assert await streamed(gateway) == due
    for client in clients:
        assert plain(comparable(client.jobs.values())) == plain(due)
    assert due == await listed(collector)
    return bool(due)


async def test_gateways_show_what_the_collector_shows_over_a_takeover_and_their_own_death(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats
):
    async with (
        pair(tmp_path, database, nats.url) as (active, standby),
        gateway_process(tmp_path / "g1", nats.url) as first,
        gateway_process(tmp_path / "g2", nats.url) as second,
    ):
        gateways: list[Daemon] = [first, second]
        client, other = CheckedWebsocket(wanted=Wanted(logs="DEBUG")), CheckedWebsocket()
        async with other.connected(second.url):
            async with client.connected(first.url):
                jobs = [await appliance.job(f"ext-{n}") for n in range(5)]
                for job_id in jobs:
                    await appliance.log("begins", job_id=job_id)
                await appliance.end(jobs[0])
                await eventually(lambda: equal(active, gateways, [client, other]), every=0.2)
                assert {job["instance"] for job in client.jobs.values()} == {"dc1"}
                await eventually(lambda: "begins" in {line["message"] for line in client.fold.lines.values()})
                epoch = client.fold.epoch
                await active.saved()
                await active.kill()
                await appliance.end(jobs[1])
                await appliance.job("ext-later")
                await eventually(lambda: is_active(standby), every=0.05)
                await eventually(lambda: equal(standby, gateways, [client, other]), every=0.2)
                assert (client.closed, other.closed) == (None, None)
                await first.kill()
            await appliance.end(jobs[2])
            async with client.connected(second.url):
                assert (client.welcome["resumed"], client.welcome["epoch"]) == (True, epoch)
                await eventually(lambda: equal(standby, [second], [client, other]), every=0.2)
        status, health = await second.get("/api/v1/instances")
        assert (status, [(one["instance"], one["online"]) for one in health["instances"]]) == (200, [("dc1", True)])
        assert await second.stop() == 0


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
