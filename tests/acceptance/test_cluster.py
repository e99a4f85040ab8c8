"""A fleet with the certificates and permissions of deploy/nats: what its gateway serves, also after a takeover."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from correlator.model import job_token
from tests.support.appliance import Appliance
from tests.support.bulk_rows import ago
from tests.support.cluster import create_streams
from tests.support.collectors import is_active, pair
from tests.support.daemon import HELLO, Daemon
from tests.support.deployed_nats import DeployedNats
from tests.support.eventually import eventually
from tests.support.gateways import GatewayProcess, gateway_process
from tests.support.mariadb import Database
from tests.support.nats import Nats
from tests.support.small_appliance import NAMES, write_small_appliance
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


KEY = "the-key-of-the-backend-and-of-us"
NAME, OTHER = NAMES[0], "00000000-0000-4000-8000-000000000001"
NOT_OF_ONE_JOB = (
    "/api/v1/jobs", f"/api/v1/jobs/{OTHER}", f"/api/v1/jobs/{OTHER}/log", f"/api/v1/jobs/{OTHER}/events",
    f"/api/v1/stream?id={OTHER}", "/api/v1/stream", f"/api/v1/resolve/{OTHER}", "/api/v1/events?text=line",
    "/api/v1/operations", "/api/v1/entities/ctx", "/metrics", "/api/v1/failures", "/api/v1/failures/0123456789ab",
    f"/api/v1/jobs/{NAME}/why", f"/api/v1/jobs/{OTHER}/why",
)  # fmt: skip


def bearer(*, key: str = KEY, made: float | None = None, **what: Any) -> dict[str, str]:
    token = job_token.create(key, now=time.time() if made is None else made, **what)
    return {"Authorization": f"Bearer {token}"}


async def status(daemon: Daemon, path: str, headers: dict[str, str]) -> int:
    assert daemon.session is not None
    async with daemon.session.get(path, headers=headers) as response:
        return response.status


async def subscribed(daemon: Daemon, path: str, headers: dict[str, str]) -> set[str] | int | None:
    """The appliances of the jobs in the snapshot of a websocket that subscribes to `NAME`, or its close code."""
    assert daemon.session is not None
    async with daemon.session.ws_connect(path) as ws:
        token = headers["Authorization"].partition(" ")[2]
        await ws.send_json([HELLO | {"token": token}, {"type": "subscribe", "id": 1, "jobs": [NAME]}])
        found: set[str] = set()
        async for frame in ws:
            messages = frame.json()
            for message in messages if isinstance(messages, list) else [messages]:
                found |= {job["instance"] for job in message.get("jobs", ())}
                if message["type"] == "synced":
                    return found
        return ws.close_code


@pytest.fixture
async def gateway(nats: Nats, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway of two appliances that have the same jobs, with the same IDs. All three have the key."""
    (tmp_path / "key").write_text(KEY)
    await create_streams(nats.url)
    await write_small_appliance(tmp_path / "jobs")
    async with contextlib.AsyncExitStack() as stack:
        for instance in ("dc1", "dc2"):
            (tmp_path / instance).mkdir()
            daemon = Daemon(
                tmp_path / instance,
                database__url=f"sqlite://{tmp_path / 'jobs'}",
                http__job_token_key_file=tmp_path / "key",
                cluster__url=nats.url,
                cluster__instance=instance,
            )
            await stack.enter_async_context(daemon)
            for of, expected in ((instance, 200), ("another", 403)):
                assert await status(daemon, f"/api/v1/jobs/{NAME}", bearer(job=NAME, instance=of)) == expected
        key = {"CORRELATOR_HTTP__JOB_TOKEN_KEY_FILE": str(tmp_path / "key")}
        gateway = await stack.enter_async_context(gateway_process(tmp_path / "gateway", nats.url, **key))

        async def serves_both() -> bool:
            paths = (f"/i/{instance}/api/v1/jobs/{NAME}" for instance in ("dc1", "dc2"))
            return [await status(gateway, path, bearer(job=NAME)) for path in paths] == [200, 200]

        await eventually(serves_both)
        yield gateway


@pytest.mark.parametrize(("own", "foreign"), [("dc1", "dc2"), ("dc2", "dc1")])
async def test_a_token_for_a_job_of_one_appliance_opens_it_at_a_gateway_and_nothing_else(gateway, own, foreign):
    headers = bearer(job=NAME, instance=own)
    for base in ("", f"/i/{own}"):
        got, job = await gateway.get(f"{base}/api/v1/jobs/{NAME}", headers=headers)
        assert (got, job["instance"]) == (200, own), base
        for below in ("/events", "/log"):
            assert await status(gateway, f"{base}/api/v1/jobs/{NAME}{below}", headers) == 200, (base, below)
        assert await subscribed(gateway, f"{base}/ws", headers) == {own}
        assert await status(gateway, f"{base}/api/v1/stream?id={NAME}", headers) == 200
        for path in NOT_OF_ONE_JOB:
            assert await status(gateway, f"{base}{path}", headers) == 403, (base, path)
    assert await status(gateway, "/api/v1/instances", headers) == 403
    for path in ("", "/events", "/log"):
        assert await status(gateway, f"/i/{foreign}/api/v1/jobs/{NAME}{path}", headers) == 403, path
    assert await subscribed(gateway, f"/i/{foreign}/ws", headers) == 4403


async def test_a_gateway_opens_a_job_of_any_appliance_by_a_token_for_none_and_refuses_wrong_tokens(gateway):
    for instance in ("dc1", "dc2"):
        assert await subscribed(gateway, f"/i/{instance}/ws", bearer(job=NAME)) == {instance}
    for wrong in (bearer(job=NAME, key=KEY.upper(), instance="dc1"), bearer(job=NAME, made=1, instance="dc1")):
        for base in ("", "/i/dc1", "/i/dc2"):
            assert await status(gateway, f"{base}/api/v1/jobs/{NAME}", wrong) == 401, base
            assert await subscribed(gateway, f"{base}/ws", wrong) in (4401, 4403), base
    unknown = bearer(job=NAME, instance="dc3")  # may come
    assert await status(gateway, f"/api/v1/jobs/{NAME}", unknown) == 503
    assert await subscribed(gateway, "/ws", unknown) == 1013
    assert await status(gateway, f"/i/dc3/api/v1/jobs/{NAME}", unknown) == 404
    assert "Traceback" not in gateway.log()
