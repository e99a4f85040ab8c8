"""Jobs that failed alike, and what surrounds one: rows in MariaDB, answers of a daemon and of a gateway of two."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance
from tests.support.bulk_rows import ago
from tests.support.cluster import create_streams
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.mariadb import Database
from tests.support.nats import Nats

FULL, REFUSED = "copy of {} failed: no space left on device", "copy of {} failed: no inode left on device"
STEPS = {"prepare": 5, "copy": 60, "switch": 5}


async def run(appliance: Appliance, vm: str, hours: float, error: str | None = None, copy: int = 60) -> str:
    """A run that began so many hours ago. One that failed did so in its step "copy"."""
    begun, ended = ago(hours=hours), ago(hours=hours, seconds=-(copy + 10))
    text, status = (error.format(vm), "failed") if error is not None else (None, "completed")
    times = {"started_at": begun, "created_at": begun, "updated_at": ended, "completed_at": ended}
    job_id = await appliance.job(status=status, error_message=text, metadata=f'{{"vm_name":"{vm}"}}', **times)
    at = 0
    for seq, (name, took) in enumerate((STEPS | {"copy": copy}).items(), 1):
        failed = name == "copy" and error is not None
        await appliance.insert(
            "job_steps",
            job_id=job_id,
            seq=seq,
            name=name,
            error_message=text if failed else None,
            status="failed" if failed else "completed",
            started_at=ago(hours=hours, seconds=-at),
            completed_at=ago(hours=hours, seconds=-(at := at + took)),
        )
        if failed:
            break
    return job_id


async def ask(daemon: Any, path: str) -> Any:
    status, body = await daemon.get(f"/api/v1{path}")
    assert status == 200, body
    return body


async def test_jobs_that_failed_alike_are_one_group_and_one_job_says_what_surrounds_it(
    tmp_path: Path, database: Database, appliance: Appliance, nats: Nats
):
    for hours in (100, 90, 80):
        await run(appliance, "web", hours)
    job = await run(appliance, "web", 3, FULL, copy=600)
    recovered = await run(appliance, "web", 2)
    for vm, begun in (("sql", 3.002), ("mail", 3.004), ("old", 200)):
        await run(appliance, vm, begun, FULL, copy=600)
    await run(appliance, "web", 1, REFUSED)
    await create_streams(nats.url)
    async with contextlib.AsyncExitStack() as stack:
        daemons = []
        for name in ("dc1", "dc2"):
            (tmp_path / name).mkdir()
            settings = {"database__url": database.url, "cluster__url": nats.url, "cluster__instance": name}
            daemons.append(await stack.enter_async_context(Daemon(tmp_path / name, **settings)))
        gateway = await stack.enter_async_context(gateway_process(tmp_path / "gateway", nats.url))
        daemon = daemons[0]

        async def complete() -> bool:
            pages = [(await one.get("/api/v1/failures"))[1] for one in (*daemons, gateway)]
            counts = [[group["count"] for group in page.get("failures", ())] for page in pages]
            return counts == [[1, 4], [1, 4], [2, 8]] and all(page["complete"] for page in pages)

        await eventually(complete)
        refused, full = (await ask(daemon, "/failures"))["failures"]
        assert (full["vms"], full["vm_count"], full["step"]) == (["web", "sql", "mail", "old"], 4, "copy")
        assert full["text"] == "no space left on device"
        assert full["jobs"][0]["job_id"] == job
        assert sum(one["count"] for one in full["days"]) == 4
        assert [one["count"] for one in (await ask(daemon, "/failures?since=5d"))["failures"]] == [1, 3]
        assert [one["count"] for one in (await ask(daemon, "/failures?vm=sql"))["failures"]] == [1]
        assert (await ask(daemon, "/failures?operation=other"))["failures"] == []

        page = await ask(gateway, "/failures?limit=1")
        assert [group["fingerprint"] for group in page["failures"]] == [refused["fingerprint"]]
        page = await ask(gateway, f"/failures?limit=1&cursor={page['next_cursor']}")
        (of_fleet,) = page["failures"]
        assert (of_fleet["fingerprint"], of_fleet["count"]) == (full["fingerprint"], 8)
        assert (of_fleet["vm_count"], of_fleet["instances"], page["next_cursor"]) == (8, ["dc1", "dc2"], None)

        for one, times in ((daemon, 1), (gateway, 2)):
            about = await ask(one, f"/failures/{full['fingerprint']}")
            assert about["variants"] == [{"text": "no space left on device", "count": 4 * times}]
            assert about["next_runs"]["completed"] == times
            assert about["next_runs"]["unknown"] == 3 * times
            (similar,) = about["similar"]
            assert similar["fingerprint"] == refused["fingerprint"]
            assert (similar["word"], similar["other_word"], similar["count"]) == ("space", "inode", times)

        for one, count in ((daemon, 4), (gateway, 8)):
            why = await ask(one, f"/jobs/{job}/why")
            assert why["sentence"] == "Step copy: no space left on device."
            assert [row["step"] for row in why["rows"]] == [None, "copy"]
            assert why["group"]["count"] == count
            assert why["differs"]["missing"] == ["switch"]
            assert [step["name"] for step in why["differs"]["longer"]] == ["copy"]
            assert (why["differs"]["runs"], why["differs"]["vm_name"]) == (3, "web")
            assert (why["burst"]["failed"], why["burst"]["alike"]) == (3, 3)
            assert (why["complete"], why["reason"]) == (True, None)
            assert (await ask(one, f"/job/why?id={job}"))["group"]["count"] == count
        ended = await ask(daemon, f"/jobs/{recovered}/why")
        assert (ended["failure"], ended["sentence"], ended["group"], ended["rows"]) == (None, "", None, [])
        assert (await daemon.get("/api/v1/failures/0123456789ab"))[0] == 404
        for wrong in ("/failures?since=yesterday", "/failures/xyz", "/failures?cursor=x", "/jobs/nobody/why"):
            assert (await daemon.get(f"/api/v1{wrong}"))[0] in (400, 404), wrong
