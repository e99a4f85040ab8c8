"""A GUI asks for its ID before the job's row exists: the answer comes with the row, without asking again."""

from __future__ import annotations

import asyncio
import statistics
import time
from urllib.parse import quote

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import HELLO, Daemon

GUI_ID = "unified-live-failover-SVR 2019/Prod-{}"


async def test_wait_returns_soon_after_the_commit_although_the_log_is_silent(daemon: Daemon, appliance: Appliance):
    took, yardstick = [], []
    for number in range(7):
        name = GUI_ID.format(1758553930 + number)
        request = asyncio.create_task(daemon.get(f"/api/v1/jobs/{quote(name, safe='')}?wait=30"))
        await asyncio.sleep(0.3 + number * 0.017)  # so that the request is held, at different moments of a cycle
        assert not request.done()
        await appliance.job(metadata=f'{{"failover_job_id": "{name}", "vm_name": "SVR 2019/Prod"}}')
        committed = time.monotonic()
        status, job = await request
        took.append(time.monotonic() - committed)
        assert status == 200
        assert name in job["external_ids"]
        began = time.monotonic()
        await appliance.job()
        await daemon.get(f"/api/v1/jobs/{quote(name, safe='')}")
        yardstick.append(time.monotonic() - began)
    # A cycle of 50 ms, and what a commit and an answer take here; without the waiting it would be 0.5 s in the middle.
    assert statistics.median(took) < 0.1 + 10 * statistics.median(yardstick), (took, yardstick)


async def test_wait_ends_with_404_when_nothing_comes(daemon: Daemon):
    began = time.monotonic()
    status, problem = await daemon.get("/api/v1/jobs/nobody-1758553933?wait=0.5")
    assert (status, problem["status"]) == (404, 404)
    assert "nobody-1758553933" in problem["detail"]
    assert time.monotonic() - began > 0.45


async def test_a_subscription_made_first_gets_a_put_when_the_job_appears(daemon: Daemon, appliance: Appliance):
    async with daemon.socket(HELLO) as socket:
        jobs, synced = await socket.snapshot(jobs=["gui-7"])
        assert (jobs, synced["unknown"], synced["count"]) == ({}, ["gui-7"], 0)
        job_id = await appliance.job("gui-7")
        put = await socket.shown()
        assert (put["sub"], put["job_id"], put["job"]["status"]) == ([1], job_id, "running")
        step = await appliance.step(job_id, 1, "validation")
        await appliance.log("Step started", attrs={"job_id": job_id, "step_id": step, "step_name": "validation"})
        while (put := await socket.shown())["job"]["current_step"] != "validation":
            pass
        await appliance.end(job_id, "failed", "no space left")
        while not (put := await socket.shown())["job"]["terminal"]:
            pass
        assert (put["job"]["status"], put["job"]["error"]) == ("failed", "no space left")


async def test_wait_with_rev_returns_on_the_next_change_and_304_without_one(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-8")
    _, job = await daemon.get("/api/v1/jobs/gui-8?wait=5")
    status, _ = await daemon.get(f"/api/v1/jobs/gui-8?wait=0.3&rev={job['rev']}")
    assert status == 304
    request = asyncio.create_task(daemon.get(f"/api/v1/jobs/gui-8?wait=20&rev={job['rev']}"))
    await appliance.log("copying disk 1", attrs={"job_id": job_id})
    status, later = await request
    assert status == 200
    assert later["rev"] > job["rev"]
    assert later["last_message"]["text"] == "copying disk 1"


async def test_an_etag_saves_the_body(daemon: Daemon, appliance: Appliance):
    await appliance.job("gui-9", status="completed", completed_at=now())
    await daemon.get("/api/v1/jobs/gui-9?wait=5")
    assert daemon.session is not None
    async with daemon.session.get("/api/v1/jobs/gui-9") as response:
        etag = response.headers["ETag"]
    async with daemon.session.get("/api/v1/jobs/gui-9", headers={"If-None-Match": etag}) as response:
        assert (response.status, await response.read()) == (304, b"")


@pytest.mark.parametrize("late", ["commit", "rollback"])
async def test_rows_committed_below_the_head_arrive_and_rolled_back_ones_harm_nothing(
    daemon: Daemon, appliance: Appliance, database, late
):
    job_id = await appliance.job("gui-10")
    async with database.connect(autocommit=False, init_command="SET time_zone = '+00:00'") as other:
        slow = Appliance(other)
        await slow.run("BEGIN")
        await slow.log("a late error", "ERROR", {"job_id": job_id}, ts=now(micros=True))
        await appliance.log("an early line", attrs={"job_id": job_id})
        _, job = await daemon.get("/api/v1/jobs/gui-10?wait=5")
        while (job["last_message"] or {}).get("text") != "an early line":
            _, job = await daemon.get(f"/api/v1/jobs/gui-10?wait=5&rev={job['rev']}")
        assert job["errors"] == 0
        await slow.run("COMMIT" if late == "commit" else "ROLLBACK")
    await appliance.log("the last line", attrs={"job_id": job_id})
    wanted = 1 if late == "commit" else 0
    for _ in range(20):
        _, found = await daemon.get(f"/api/v1/jobs/gui-10?wait=1&rev={job['rev']}")
        job = found or job
        if job["last_message"]["text"] == "the last line" and job["errors"] == wanted:
            break
    assert (job["last_message"]["text"], job["errors"]) == ("the last line", wanted)
