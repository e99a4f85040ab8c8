"""What clients see where JobLog's tables, the legacy table and the log say different things of a job."""

from __future__ import annotations

from tests.support.appliance import Appliance, now
from tests.support.daemon import HELLO, Daemon


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


async def test_a_filter_means_the_same_for_jobs_from_the_database(daemon: Daemon, appliance: Appliance):
    old = {"status": "completed", "started_at": "2026-01-02 10:00:00", "completed_at": "2026-01-02 10:05:00"}
    await appliance.job(metadata='{"vm_name": "pgtest2"}', **old)
    for query, count in (("q=vm_name", 0), ("operation=UNIFIED-live-failover", 0), ("q=pgTest2", 1), ("limit=1", 1)):
        _, page = await daemon.get(f"/api/v1/jobs?{query}")
        assert len(page["jobs"]) == count, query
