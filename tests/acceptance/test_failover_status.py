"""The appliance's own status reply, member by member, in each of its shapes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

from correlator.client.client import Client
from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database

START, END = "2026-11-25 08:00:00", "2026-11-25 08:01:30"
METADATA = '{"failover_job_id": "gui-a", "external_job_id": "engine-a", "vm_name": "pgtest2"}'


async def status(daemon: Daemon, name: str) -> tuple[int, Any]:
    return await daemon.get(f"/api/v1/failover/{quote(name, safe='/')}/status")


def details(job_id: str, error: str | None = None) -> dict[str, Any]:
    return {
        "job_type": "failover",
        "operation": "unified-live-failover",
        "total_steps": 3,
        "completed_steps": 1,
        "failed_steps": 1,
        "running_steps": 1,
        "step_completion": 1 / 3 * 100,
        "error_message": error,
        "metadata": {"failover_job_id": "gui-a", "external_job_id": "engine-a", "vm_name": "pgtest2"},
    }


async def test_a_joblog_job_by_each_of_its_ids(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job(
        "column-a", metadata=METADATA, started_at=START, context_id="ctx-a", job_category="failover"
    )
    for seq, step in enumerate(("completed", "failed", "running"), 1):
        await appliance.step(job_id, seq, f"step-{seq}", step)
    for state, error in (("running", None), ("completed", None), ("failed", "boom")):
        ended = END if state != "running" else None
        sql = "UPDATE job_tracking SET status = %s, completed_at = %s, error_message = %s"
        await appliance.run(sql, state, ended, error)
        await assert_answers(daemon, job_id, state, error)


async def assert_answers(daemon: Daemon, job_id: str, state: str, error: str | None) -> None:
    base: dict[str, Any] = {
        "success": True,
        "job_id": job_id,
        "status": state,
        "progress": 1 / 3 * 100,
        "start_time": "2026-11-25T08:00:00Z",
    }

    async def is_read() -> bool:
        code, body = await status(daemon, job_id)
        return code == 200 and body["status"] == state and body["job_details"]["total_steps"] == 3

    await eventually(is_read)
    direct = base | {
        "message": "Retrieved status for failover job via direct JobLog lookup",
        "job_details": details(job_id, error) | {"tracking_source": "direct_joblog_uuid"},
    }
    enhanced = base | {
        "message": "Retrieved status for failover job via enhanced tracking",
        "job_details": details(job_id, error)
        | {
            "context_id": "ctx-a",
            "external_job_id": "column-a",
            "job_category": "failover",
            "internal_job_id": job_id,
            "tracking_source": "external_job_id_correlation",
        },
    }
    before = 0
    for name in (job_id, "ctx-a", "column-a", "gui-a", "engine-a"):
        code, body = await status(daemon, name)
        duration = body.pop("duration")
        assert isinstance(duration, int)
        assert duration > before if state == "running" else duration == 90_000_000_000
        before = duration
        wanted = direct
        if name not in (job_id, "ctx-a"):
            wanted = enhanced | {"job_details": enhanced["job_details"] | {"gui_job_id": name}}
        assert (code, body) == (200, wanted), name


async def test_a_legacy_job_answers_in_its_tables_words(daemon: Daemon, appliance: Appliance):
    await appliance.insert(
        "failover_jobs",
        job_id="legacy-a",
        vm_id="4205",
        job_type="test",
        status="creating_vm",
        source_vm_name="pgtest9",
        source_vm_spec='{"cpus": 4}',
        created_at=START,
        started_at=START,
    )
    await eventually(lambda: _is(daemon, "legacy-a", 200))
    code, body = await status(daemon, "legacy-a")
    assert code == 200
    assert body.pop("duration") > 0
    assert body == {
        "success": True,
        "message": "Retrieved status for test failover job via legacy tracking",
        "job_id": "legacy-a",
        "status": "creating_vm",
        "progress": 50,
        "start_time": "2026-11-25T08:00:00Z",
        "job_details": {
            "vm_id": "4205",
            "vm_name": "pgtest9",
            "job_type": "test",
            "destination_vm_id": "",
            "snapshot_id": "",
            "error_message": "",
            "started_at": "2026-11-25T08:00:00Z",
            "completed_at": None,
            "custom_config": {"cpus": 4},
            "tracking_source": "legacy_failover_jobs",
        },
    }


async def test_an_unknown_id_gets_the_appliances_404(daemon: Daemon):
    name = "100%/a+b?c#d&e=ü<x>"
    nothing = {"job_id": "", "status": "", "progress": 0, "start_time": "0001-01-01T00:00:00Z", "duration": 0}
    failed = {"success": False, "message": "Failover job not found", "error": f"failover job not found: {name}"}
    assert await status(daemon, name) == (404, nothing | failed)


async def test_an_id_that_urls_would_lose_is_found_by_its_parameter(daemon: Daemon, appliance: Appliance):
    for name in (".", "..", "a/../b"):
        job_id = await appliance.job(name)
        parameter = quote(name, safe="")
        for path in (f"/api/v1/job?id={parameter}&wait=5", f"/api/v1/job?id={job_id}"):
            code, job = await daemon.get(path)
            assert (code, (job or {}).get("job_id")) == (200, job_id), path
        event_id = await appliance.log("x", job_id=job_id)
        code, page = await daemon.get(f"/api/v1/job/events?id={parameter}&limit=10&level=INFO")
        assert (code, [event["event_id"] for event in page["events"]]) == (200, [event_id])
        assert daemon.session is not None
        async with daemon.session.get(f"/api/v1/job/log?id={parameter}") as response:
            assert (response.status, " x" in await response.text()) == (200, True)
        async with Client(daemon.url) as client:
            found = await client.job(name, wait=5)
            lines = await client.events_page(name, {}, None)
        assert found is not None
        assert found["job_id"] == job_id
        assert lines is not None
        assert [line.event_id for line in lines.events] == [event_id]


async def _is(daemon: Daemon, name: str, code: int) -> bool:
    found = await status(daemon, name)
    assert found[0] == code, found
    return True


async def test_an_unknown_id_is_held_until_its_job_appears(database: Database, appliance: Appliance, tmp_path: Path):
    async with Daemon(tmp_path, database__url=database.url, http__unknown_id_wait="60s") as daemon:
        asked = asyncio.create_task(status(daemon, "gui-late"))
        await asyncio.sleep(0.3)  # not a wait for anything: a moment in which there is no such job
        job_id = await appliance.job("gui-late")
        code, body = await asked
        assert (code, body["job_id"]) == (200, job_id)
