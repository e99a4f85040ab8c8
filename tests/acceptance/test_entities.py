"""The jobs of one VM or context over time: what is in memory, and what only the database has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.terminal import commands_against

Start = Callable[..., Any]

OPERATION = "unified-live-failover"


@pytest.fixture
async def command(daemon: Daemon) -> AsyncIterator[Start]:
    async with commands_against(daemon.url) as run:
        yield run


def days_ago(days: float, seconds: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(days=days) + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")


async def run_of_pgtest2(appliance: Appliance, days: float, seconds: float, status: str, context: str) -> str:
    return await appliance.job(
        status=status, started_at=days_ago(days), completed_at=days_ago(days, seconds), context_id=context,
        metadata=json.dumps({"vm_name": "pgtest2"}), error_message="No such volume" if status == "failed" else None,
    )  # fmt: skip


async def collected(daemon: Daemon, path: str, **parameters: str) -> list[dict[str, Any]]:
    """All pages of a list, one job each."""
    pages: list[dict[str, Any]] = []
    while True:
        status, page = await daemon.get(path, params={**parameters, "limit": "1"})
        assert status == 200
        pages.append(page)
        if (cursor := page["next_cursor"]) is None:
            return pages
        assert page["searched_to"] is not None
        parameters["cursor"] = cursor


async def test_a_vm_and_a_context_have_their_jobs_of_all_days_and_how_long_each_took(
    daemon: Daemon, appliance: Appliance
):
    oldest = await run_of_pgtest2(appliance, 9, 100, "completed", "ctx-a")
    failed = await run_of_pgtest2(appliance, 3, 5, "failed", "ctx-a")
    newest = await run_of_pgtest2(appliance, 2, 150, "completed", "ctx-b")
    await appliance.job(status="completed", started_at=days_ago(2), completed_at=days_ago(2, 1), context_id="ctx-b")
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
    by_cursor = await collected(daemon, "/api/v1/entities/pgtest2", kind="vm")
    assert [job["job_id"] for page in by_cursor for job in page["jobs"]] == [running, newest, failed, oldest]

    status, context = await daemon.get("/api/v1/entities/ctx-a")
    assert ([job["job_id"] for job in context["jobs"]], context["kind"]) == ([failed, oldest], "context")
    status, nobody = await daemon.get("/api/v1/entities/nobody")
    assert (status, nobody["jobs"], nobody["next_cursor"]) == (200, [], None)

    found = await collected(daemon, "/api/v1/jobs", text="no such VOLUME")
    assert [job["job_id"] for page in found for job in page["jobs"]] == [failed]


async def test_history_in_a_terminal_shows_outcomes_durations_and_the_trend(
    daemon: Daemon, appliance: Appliance, command: Start
):
    for days, seconds, status in ((9, 100, "completed"), (3, 5, "failed"), (2, 150, "completed")):
        await run_of_pgtest2(appliance, days, seconds, status, "ctx-a")
    on_terminal = await command("history", "pgtest2", columns=100)
    assert await on_terminal.end() == 0
    name, outcomes, trend, header, newest, failed, oldest = on_terminal.screen()
    assert (name, outcomes) == ("pgtest2", "outcomes ✓✗✓")
    assert trend == f"{OPERATION}: 2 of 3 completed, 1 failed; the newest took 2m 30s, usually 1m 40s (+50 %)"
    assert header.split() == ["STARTED", "STATUS", "OPERATION", "TIME", "ID"]
    assert "2m 30s █" in newest
    assert "No such volume" in failed
    assert "1m 40s" in oldest
    as_json = await command("history", "ctx-a", "-o", "json", "--limit", "2")
    assert await as_json.end() == 0
    assert [job["status"] for job in json.loads(as_json.out)["jobs"]] == ["completed", "failed"]
    assert "these are the newest 2, and there are more" in as_json.err
    since = await command("history", "pgtest2", "--since", "4d", "--no-header")
    assert await since.end() == 0
    assert [line.split("\t")[2] for line in since.out.splitlines()] == ["completed", "failed"]
    late = await command("history", "pgtest2", "--since", "1h")
    assert (await late.end(), late.out) == (1, "")
    assert "no job that started since " in late.err
    unknown = await command("history", "nobody")
    assert await unknown.end() == 1
    assert "no job is known of a VM or context 'nobody'" in unknown.err
