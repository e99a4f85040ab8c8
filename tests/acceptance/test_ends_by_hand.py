"""A job that a person ends in the tables, because its process has died: every client that saw it run sees its end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance
from tests.support.bulk_rows import ago
from tests.support.collectors import is_active, pair
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.faults.watchers import MqttWatcher, WebsocketWatcher
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.mosquitto import Mosquitto
from tests.support.nats import Nats
from tests.support.servers import free_port
from tests.support.terminal import commands_against
from tests.support.webhook_receiver import Receiver

WEBHOOK = """
[[webhooks]]
name = "tickets"
url = "{url}"
events = ["job.*"]
allow_private = true
"""

ENDS = {
    "without a time": "UPDATE job_tracking SET status = 'failed' WHERE id = %s",
    "long ago": "UPDATE job_tracking SET status = 'failed', completed_at = started_at WHERE id = %s",
}
"""The jobs began before the retention."""


@pytest.fixture
async def dead_job(appliance: Appliance) -> str:
    """A job that began 26 hours ago, and that nobody will end."""
    began = ago(hours=26)
    job_id = await appliance.job(started_at=began, created_at=began, updated_at=began)
    await appliance.log("Job started", attrs={"job_id": job_id}, ts=began)
    return job_id


@contextlib.asynccontextmanager
async def watched(
    folder: Path, database: Database, broker: Mosquitto, instance: str
) -> AsyncIterator[tuple[Daemon, WebsocketWatcher, MqttWatcher, Receiver]]:
    receiver = Receiver(free_port())
    (folder / "correlator.toml").write_text(WEBHOOK.format(url=receiver.url))
    daemon = Daemon(folder, database__url=database.url, mqtt__url=broker.url, mqtt__instance=instance)
    daemon.arguments = ("--config", str(folder / "correlator.toml"))
    async with (
        receiver,
        daemon,
        WebsocketWatcher(daemon.url) as client,
        MqttWatcher(broker.port, instance) as listener,
    ):
        await eventually(lambda: client.connected and listener.connected)
        yield daemon, client, listener, receiver


def failed(holder: WebsocketWatcher | MqttWatcher, job_id: str) -> bool:
    held = holder.jobs if isinstance(holder, WebsocketWatcher) else holder.retained
    return (held.get(job_id) or held.get(f"job/{job_id}/state") or {}).get("status") == "failed"


def posted(receiver: Receiver, job_id: str) -> list[str]:
    events = [json.loads(one.body) for one in receiver.accepted]
    return [event["type"] for event in events if event["subject"] == job_id]


@pytest.mark.parametrize("end", ENDS)
async def test_a_dead_job_that_is_ended_by_hand_is_announced_and_stays(
    end: str, tmp_path: Path, database: Database, appliance: Appliance, dead_job: str, mosquitto: Mosquitto
):
    async with (
        watched(tmp_path, database, mosquitto, f"by-hand-{end[0]}") as (daemon, client, listener, receiver),
        commands_against(daemon.url) as run,
    ):
        await eventually(lambda: dead_job in client.jobs)
        command = await run("watch", dead_job, "--exit-status")
        await command.until(lambda: "running" in command.out)
        await appliance.run(ENDS[end], dead_job)
        await eventually(lambda: failed(client, dead_job))
        await eventually(lambda: (None, "job.failed", dead_job) in listener.events)
        await eventually(lambda: posted(receiver, dead_job)[-1:] == ["correlator.job.failed"])
        assert await command.end() == 10
        assert await daemon.metric("correlator_jobs_ended_total") == 1
        await daemon.saved()
        await daemon.kill()
        await daemon.start()
        await eventually(lambda: client.connections == 2 and failed(client, dead_job) and failed(listener, dead_job))
        assert listener.events[None, "job.failed", dead_job] == 1


async def test_a_job_that_was_ended_by_hand_while_the_daemon_was_down_is_announced_at_its_start(
    tmp_path: Path, database: Database, appliance: Appliance, dead_job: str, mosquitto: Mosquitto
):
    async with watched(tmp_path, database, mosquitto, "by-hand-down") as (daemon, client, listener, receiver):
        await eventually(lambda: dead_job in client.jobs)
        await daemon.saved()
        await daemon.kill()
        await appliance.run(ENDS["long ago"], dead_job)
        await daemon.start()
        await eventually(lambda: failed(client, dead_job) and failed(listener, dead_job))
        await eventually(lambda: (None, "job.failed", dead_job) in listener.events)
        await eventually(lambda: posted(receiver, dead_job) != [])
        assert await daemon.metric("correlator_jobs_ended_total") == 1


async def test_a_standby_announces_a_job_that_was_ended_by_hand_before_it_took_over(
    tmp_path: Path, database: Database, appliance: Appliance, dead_job: str, nats: Nats, mosquitto: Mosquitto
):
    options: dict[str, Any] = {"mqtt__url": mosquitto.url, "mqtt__instance": "by-hand-takeover"}
    async with (
        pair(tmp_path, database, nats.url, **options) as (active, standby),
        gateway_process(tmp_path / "gateway", nats.url) as gateway,
        WebsocketWatcher(gateway.url) as client,
        MqttWatcher(mosquitto.port, "by-hand-takeover") as listener,
    ):
        await eventually(lambda: dead_job in client.jobs and listener.connected)
        await active.saved()
        await active.kill()
        await appliance.run(ENDS["without a time"], dead_job)
        await eventually(lambda: is_active(standby))
        await eventually(lambda: failed(client, dead_job) and failed(listener, dead_job))
        await eventually(lambda: (None, "job.failed", dead_job) in listener.events)
