"""A job that runs longer than earlier ones: streams and the broker say so once, and its document has the state."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt

from correlator.forecast.estimate import ROUGH_BELOW
from tests.support.appliance import Appliance, connected
from tests.support.client_fold import ClientFold
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.stream_clients import CheckedEventStream

OPERATION = "/api/v1/operations/failover/unified-live-failover"
QUIET = 3.0
"""Seconds without a second event."""


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")


async def history(appliance: Appliance, daemon: Daemon) -> None:
    """Earlier runs of about ten seconds."""
    for n in range(ROUGH_BELOW):
        job_id = await appliance.job(f"run-{n}", started_at=ago(10))
        assert (await daemon.get(f"/api/v1/jobs/{job_id}?wait=5"))[0] == 200
        await appliance.end(job_id)

    async def learned() -> bool:
        status, body = await daemon.get(OPERATION)
        return status == 200 and body["runs"] == ROUGH_BELOW

    await eventually(learned)


async def compared(daemon: Daemon, job_id: str) -> Any:
    job = await daemon.job(job_id)
    return job["compared_with"]


async def published(url: str, found: list[dict[str, Any]]) -> None:
    """Collect the events that the broker gets."""
    host, _, port = url.removeprefix("mqtt://").partition(":")
    async with aiomqtt.Client(host, int(port), protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe("+/+/+/job/+/event", qos=1)
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            found.append(json.loads(message.payload))


async def test_an_overdue_job_is_announced_once_to_every_client_and_the_broker(
    database: Database, own_mosquitto: Mosquitto, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, database__url=database.url, mqtt__url=own_mosquitto.url)
    over_mqtt: list[dict[str, Any]] = []
    listener = asyncio.create_task(published(own_mosquitto.url, over_mqtt))
    try:
        await daemon.start()
        async with connected(database) as connection, daemon.socket(HELLO) as socket:
            appliance = Appliance(connection)
            await history(appliance, daemon)
            assert daemon.session is not None
            async with daemon.session.get("/api/v1/stream") as response:
                stream = CheckedEventStream(response, ClientFold())
                await stream.until("synced")
                await socket.snapshot()
                late = await appliance.job("gui-late", started_at=ago(3600))
                over_websocket = await socket.until("event")
                *_, (position, over_stream) = await stream.until("event")
                assert over_stream == over_websocket
                assert position == f"{socket.welcome['epoch']}:{over_stream['seq']}"
                assert (over_stream["kind"], over_stream["job_id"]) == ("job.overdue", late)
                assert stream.fold.jobs[1][late]["forecast"]["state"] == "overdue"
            await eventually(lambda: any(e["kind"] == "job.overdue" for e in over_mqtt))
            await asyncio.sleep(QUIET)
            announced = [e for e in over_mqtt if e["kind"] in ("job.late", "job.overdue")]
            members = {name: value for name, value in over_stream.items() if name not in ("type", "sub")}
            assert announced == [members | {"epoch": socket.welcome["epoch"]}]
            await appliance.end(late)
            assert (await eventually(lambda: compared(daemon, late)))["percentile"] == 100.0
    finally:
        listener.cancel()
        await daemon.close()
