"""Webhooks of the installed program: through an outage of the receiver and a kill."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from correlator.sinks.webhooks import webhook_headers
from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.servers import free_port
from tests.support.webhook_receiver import Receiver

KEY = b"0123456789abcdef0123456789abcdef"
TABLE = """
[[webhooks]]
name = "{name}"
url = "{url}"
secret = "whsec_{secret}"
events = ["job.*"]
allow_private = true
"""


def table(receiver: Receiver, name: str = "tickets") -> str:
    return TABLE.format(name=name, url=receiver.url, secret=base64.b64encode(KEY).decode())


@pytest.fixture
async def configured(database: Database, tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path, database__url=database.url)
    daemon.arguments = ("--config", str(tmp_path / "correlator.toml"))
    try:
        yield daemon
    finally:
        await daemon.close()


async def state(daemon: Daemon, name: str = "tickets") -> Any:
    return (await daemon.get("/health/ready"))[1]["parts"]["webhooks"]["receivers"][name]


async def run_job(appliance: Appliance, status: str) -> str:
    job_id = await appliance.job()
    await appliance.log("Job started", attrs={"job_id": job_id})
    await appliance.log(f"Job {status}", attrs={"job_id": job_id})
    await appliance.end(job_id, status)
    return job_id


async def test_after_an_outage_and_a_kill_every_event_arrives_signed_and_in_order(
    configured: Daemon, appliance: Appliance, tmp_path: Path
):
    receiver = Receiver(free_port())
    (tmp_path / "correlator.toml").write_text(table(receiver))
    await configured.start()
    jobs = [await run_job(appliance, status) for status in ("failed", "completed", "failed")]
    await eventually(lambda: is_pending(configured, 6))
    await configured.saved()
    await configured.kill()
    jobs.append(await run_job(appliance, "completed"))
    async with receiver:
        await configured.start()
        await eventually(lambda: len({one.id for one in receiver.accepted}) == 8)
        await eventually(lambda: is_pending(configured, 0))
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for one in receiver.accepted:
        expected = webhook_headers([KEY], one.id, int(one.headers["webhook-timestamp"]), one.body)
        assert one.headers["webhook-signature"] == expected["webhook-signature"]
        event = json.loads(one.body)
        assert (event["id"], event["data"]["job_id"]) == (one.id, event["subject"])
        kinds[event["subject"]].setdefault(one.id, event["type"])
    ends = ("failed", "completed", "failed", "completed")
    assert {job_id: [*found.values()] for job_id, found in kinds.items()} == {
        job_id: ["correlator.job.started", f"correlator.job.{end}"] for job_id, end in zip(jobs, ends, strict=True)
    }


async def is_pending(daemon: Daemon, count: int) -> bool:
    return bool((await state(daemon))["pending"] == count)
