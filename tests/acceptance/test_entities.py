"""The jobs of one VM or context over time, of the tables and of memory, over REST and in a terminal."""

from __future__ import annotations

import json

from tests.support.appliance import Appliance
from tests.support.bulk_rows import ago
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.terminal import commands_against

OPERATION = "unified-live-failover"


async def run_of_pgtest2(appliance: Appliance, days: float, seconds: float, status: str, context: str) -> str:
    return await appliance.job(
        status=status, started_at=ago(days=days), completed_at=ago(days=days, seconds=-seconds), context_id=context,
        metadata=json.dumps({"vm_name": "pgtest2"}), error_message="No such volume" if status == "failed" else None,
    )  # fmt: skip


async def collected(daemon: Daemon, path: str, **parameters: str) -> list[str]:
    """The IDs of all pages of a list, one job each."""
    found: list[str] = []
    async for page in daemon.pages(path, **parameters, limit="1"):
        found += [job["job_id"] for job in page["jobs"]]
        assert (page["searched_to"] is None) == (page["next_cursor"] is None)
    return found


async def test_a_vm_and_a_context_have_their_jobs_of_all_days_and_how_long_each_took(
    daemon: Daemon, appliance: Appliance
):
    oldest = await run_of_pgtest2(appliance, 9, 100, "completed", "ctx-a")
    failed = await run_of_pgtest2(appliance, 3, 5, "failed", "ctx-a")
    newest = await run_of_pgtest2(appliance, 2, 150, "completed", "ctx-b")
    await appliance.job(status="completed", started_at=ago(days=2), completed_at=ago(days=2), context_id="ctx-b")
    running = await appliance.job("gui-1", metadata=json.dumps({"vm_name": "pgtest2"}))
    await eventually(lambda: daemon.job("gui-1"))

    status, vm = await daemon.get("/api/v1/entities/pgtest2")
    assert status == 200
    assert [job["job_id"] for job in vm["jobs"]] == [running, newest, failed, oldest]
    assert (vm["entity"], vm["kind"], vm["contexts"]) == ("pgtest2", "vm", ["ctx-a", "ctx-b"])
    assert (vm["complete"], vm["next_cursor"], vm["searched_to"]) == (True, None, None)
    assert vm["operations"] == [
        {
            "job_type": "failover", "operation": OPERATION, "runs": 4, "completed": 2, "failed": 1,
            "newest_seconds": 150.0, "typical_seconds": 100.0, "ratio": 1.5,
        }
    ]  # fmt: skip
    assert await collected(daemon, "/api/v1/entities/pgtest2", kind="vm") == [running, newest, failed, oldest]
    _, context = await daemon.get("/api/v1/entities/ctx-a")
    assert ([job["job_id"] for job in context["jobs"]], context["kind"]) == ([failed, oldest], "context")
    assert await collected(daemon, "/api/v1/jobs", text="no such VOLUME") == [failed]

    async with commands_against(daemon.url) as run:
        shown, unknown = await run("history", "pgtest2", columns=100), await run("history", "nobody")
        assert (await shown.end(), await unknown.end()) == (0, 1)
        since = await run("history", "pgtest2", "--since", "4d", "--no-header", "--limit", "2")
        assert await since.end() == 0
    name, outcomes, trend, *_ = shown.screen()
    assert (name, outcomes) == ("pgtest2", "outcomes ✓✗✓●")
    assert trend == f"{OPERATION}: 2 of 4 completed, 1 failed; the newest took 2m 30s, usually 1m 40s (+50 %)"
    assert "no job is known of a VM or context 'nobody'" in unknown.err
    assert [line.split("\t")[2] for line in since.out.splitlines()] == ["running", "completed"]
    assert "these are the newest 2, and there are more" in since.err
