"""The messages to clients when an ID gets another job, a job leaves a filter, is deleted, or becomes JobLog's."""

from __future__ import annotations

from tests.support.appliance import Appliance, now
from tests.support.daemon import HELLO, Daemon
from tests.support.eventually import eventually


async def test_a_legacy_job_is_shown_live_and_merges_when_the_joblog_job_appears(daemon: Daemon, appliance: Appliance):
    async with daemon.socket(HELLO) as socket:
        await socket.snapshot(jobs=["live-a"])
        await appliance.insert(
            "failover_jobs",
            job_id="live-a",
            vm_id="1",
            job_type="live",
            status="validating",
            source_vm_name="vm",
            created_at=now(),
        )
        legacy = (await socket.shown())["job"]
        assert (legacy["job_id"], legacy["source"], legacy["status"]) == ("live-a", "legacy", "running")
        assert (legacy["progress"]["percent"], legacy["progress"]["basis"]) == (10.0, "legacy")
        assert legacy["metadata"]["legacy_status"] == "validating"
        await appliance.run("UPDATE failover_jobs SET status = 'powering_on' WHERE job_id = 'live-a'")
        assert (await socket.shown())["job"]["progress"]["percent"] == 90.0
        job_id = await appliance.job(metadata='{"failover_job_id": "live-a"}')
        gone = await socket.until("delete")
        assert (gone["job_id"], gone["reason"]) == ("live-a", "merged")
        put = await socket.shown()
        assert (put["job_id"], put["job"]["source"]) == (job_id, "joblog")
    assert (await daemon.job("live-a"))["job_id"] == job_id


async def test_a_job_that_leaves_a_filter_gets_one_last_put_and_a_delete(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    await daemon.get("/api/v1/jobs/gui-1?wait=5")
    async with daemon.socket(HELLO) as socket:
        jobs, _ = await socket.snapshot(status=["running"])
        assert list(jobs) == [job_id]
        await appliance.end(job_id)
        assert (await socket.shown())["job"]["status"] == "completed"
        gone = await socket.until("delete")
        assert (gone["job_id"], gone["reason"], gone["sub"]) == (job_id, "filter", [1])


async def test_a_deleted_job_is_gone_for_every_client(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("gui-1")
    await daemon.get("/api/v1/jobs/gui-1?wait=5")
    async with daemon.socket(HELLO) as socket:
        await socket.snapshot()
        await appliance.run("DELETE FROM job_tracking WHERE id = %s", job_id)
        gone = await socket.until("delete")
        assert (gone["job_id"], gone["reason"]) == (job_id, "gone")
    assert (await daemon.get("/api/v1/jobs/gui-1"))[0] == 404


async def test_a_subscription_by_id_follows_the_newest_job_of_that_id(daemon: Daemon, appliance: Appliance):
    old = await appliance.job("again-1", started_at="2026-11-25 08:00:00")
    await daemon.get("/api/v1/jobs/again-1?wait=5")
    async with daemon.socket(HELLO) as socket:
        jobs, _ = await socket.snapshot(jobs=["again-1"])
        assert list(jobs) == [old]
        new = await appliance.job("again-1")
        messages = [await socket.shown()]
        while messages[-1]["type"] != "delete":
            messages.append(await socket.next())
        assert messages[0]["job_id"] == new
        assert (messages[-1]["job_id"], messages[-1]["reason"]) == (old, "filter")
    _, resolved = await daemon.get("/api/v1/resolve/again-1")
    assert resolved == {"job_id": new, "resolved_by": "external_id", "also": [old]}


async def test_what_the_log_dropped_comes_from_the_tables(daemon: Daemon, appliance: Appliance):
    parent = await appliance.job("gui-p", job_type="scheduler")
    child = await appliance.job(parent_job_id=parent, percent_complete=40)
    step = await appliance.step(child, 1, "replicate")
    _, job = await daemon.get(f"/api/v1/jobs/{child}?wait=5")
    while "1" not in {str(s["seq"]) for s in job["steps"].values()}:
        _, job = await daemon.get(f"/api/v1/jobs/{child}?wait=5&rev={job['rev']}")
    assert job["progress"] | {"percent": 40.0, "basis": "reported", "steps_running": 1} == job["progress"]
    assert job["current_step"] == "replicate"
    assert (await daemon.job("gui-p"))["child_job_ids"] == [child]
    await appliance.run("UPDATE job_steps SET status = 'failed', completed_at = UTC_TIMESTAMP(6) WHERE id = %s", step)
    await appliance.end(child)
    while not job["terminal"]:
        _, job = await daemon.get(f"/api/v1/jobs/{child}?wait=5&rev={job['rev']}")
    assert (job["status"], job["progress"]["percent"], job["progress"]["steps_failed"]) == ("completed", 100.0, 1)


async def test_a_legacy_row_of_a_joblog_job_that_left_memory_is_not_shown_apart(daemon: Daemon, appliance: Appliance):
    old = {"status": "completed", "started_at": "2026-01-02 10:00:00", "completed_at": "2026-01-02 10:05:00"}
    job_id = await appliance.job(metadata='{"failover_job_id": "FX-1"}', **old)
    await appliance.insert(
        "failover_jobs",
        job_id="FX-1",
        vm_id="1",
        job_type="live",
        status="pending",
        source_vm_name="v",
        created_at="2026-01-02 10:00:00",
    )
    await appliance.insert(
        "failover_jobs",
        job_id="FX-2",
        vm_id="1",
        job_type="live",
        status="pending",
        source_vm_name="v",
        created_at=now(),
    )
    assert (await daemon.get("/api/v1/jobs/FX-2?wait=5"))[1]["source"] == "legacy"
    _, resolved = await daemon.get("/api/v1/resolve/FX-1")
    assert resolved == {"job_id": job_id, "resolved_by": "external_id", "also": []}


async def test_a_subscription_replaced_in_its_snapshot_sends_nothing_more_of_the_old(
    daemon: Daemon, appliance: Appliance
):
    for number in range(300):
        await appliance.job(f"e-{number}")

    async with daemon.socket(HELLO) as socket:

        async def all_in_memory() -> bool:
            return len((await socket.snapshot())[0]) == 300

        await eventually(all_in_memory)
        await socket.say({"type": "subscribe", "id": 1})
        await socket.say({"type": "subscribe", "id": 1, "jobs": ["e-7"]})
        await socket.say({"type": "subscribe", "id": 2})
        await socket.say({"type": "unsubscribe", "id": 2})
        await socket.say({"type": "ping"})
        first: list[int] = []
        while (message := await socket.next())["type"] != "pong":
            if message["type"] == "synced" and message["sub"] == 1:
                first.append(message["count"])
        assert first in ([1], [300, 1])  # where it was sent whole before it was replaced, it has an end
        for _ in range(5):
            await socket.say({"type": "ping"})
            while (message := await socket.next())["type"] != "pong":
                assert message["type"] not in ("snapshot", "synced"), message


async def test_a_filter_means_the_same_for_jobs_from_the_database(daemon: Daemon, appliance: Appliance):
    old = {"status": "completed", "started_at": "2026-01-02 10:00:00", "completed_at": "2026-01-02 10:05:00"}
    await appliance.job(metadata='{"vm_name": "pgtest2"}', **old)
    for query, count in (("q=vm_name", 0), ("operation=UNIFIED-live-failover", 0), ("q=pgTest2", 1), ("limit=1", 1)):
        _, page = await daemon.get(f"/api/v1/jobs?{query}")
        assert len(page["jobs"]) == count, query
