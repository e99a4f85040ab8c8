"""The commands as people run them: in a terminal, in a pipe, before the job exists, and while the daemon restarts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.screens import screen
from tests.support.terminal import commands_against

Run = Callable[..., Any]


@pytest.fixture
async def run(daemon: Daemon) -> AsyncIterator[Run]:
    """Start a command against the daemon; `columns` puts it in a terminal."""
    async with commands_against(daemon.url) as run:
        yield run


async def known(daemon: Daemon, name: str, status: str = "running") -> Any:
    """The document of a job, once the daemon has it like that."""

    async def there() -> Any:
        job = await daemon.job(name)
        return job if job is not None and job["status"] == status else None

    return await eventually(there, within=PATIENCE)


async def failed_job(appliance: Appliance, name: str) -> str:
    job_id = await appliance.job(name, metadata=json.dumps({"vm_name": "pgtest2"}))
    await appliance.step(job_id, 1, "validation", "completed")
    step_id = await appliance.step(job_id, 2, "volume-attachment", "failed")
    await appliance.run("UPDATE job_steps SET error_message = %s WHERE id = %s", "no such volume", step_id)
    await appliance.log("attach: retrying", "WARN", job_id=job_id, step_id=step_id)
    await appliance.end(job_id, "failed", "step failed")
    return job_id


async def has_lines(daemon: Daemon, job_id: str, count: int) -> bool:
    return len((await daemon.get(f"/api/v1/jobs/{job_id}/events"))[1]["events"]) == count


# -- jobs and show


async def test_show_and_watch_find_a_job_by_any_id_and_by_the_short_form_that_a_list_prints(
    daemon: Daemon, appliance: Appliance, run: Run
):
    job_id = await failed_job(appliance, "gui-1")
    legacy = "unified-live-failover-pgtest2-1758553933"
    row = {"job_id": legacy, "vm_id": "1", "source_vm_name": "pgtest2", "job_type": "live", "status": "validating"}
    await appliance.insert("failover_jobs", **row, created_at=now())
    for number in range(3):
        await appliance.log(f"line {number}", "DEBUG", job_id=job_id)
    await known(daemon, "gui-1", "failed")
    await known(daemon, legacy)
    command = await run("show", "gui-1")
    assert await command.end() == 0
    for text in (job_id, "gui-1", "✗ failed", "step failed", "volume-attachment", "no such volume", "vm_name pgtest2"):
        assert text in command.out
    listed = await run("jobs", columns=119)
    assert await listed.end() == 0
    forms = [line.split()[-1] for line in listed.screen()[1:]]
    assert sorted(forms) == sorted([job_id[:8], "…1758553933"])
    for form, full in ((job_id, job_id), (job_id[:8], job_id), ("…1758553933", legacy), ("1758553933", legacy)):

        async def shown_and_served(form: str = form, full: str = full) -> tuple[Any, Any] | None:
            shown = await run("show", form, "-o", "json")
            assert await shown.end() == 0
            found, served = json.loads(shown.out), await daemon.job(full)
            return (found, served) if found["rev"] == served["rev"] else None  # It changed between the two questions.

        found, served = await eventually(shown_and_served, within=PATIENCE)
        assert found == served
    await eventually(lambda: has_lines(daemon, job_id, 4), within=PATIENCE)
    watched = await run("watch", job_id[:8], "--exit-status", "--logs", "debug")
    assert await watched.end() == 10
    assert f"{job_id[:8]} unified-live-failover pgtest2 failed" in watched.out
    assert re.findall(r"line \d", watched.out) == ["line 0", "line 1", "line 2"]
    unknown = await run("show", "nobody\x1b[2J")
    assert await unknown.end() == 1
    assert unknown.err.splitlines() == [r"correlator: no job is known by 'nobody\x1b[2J'"]


async def test_a_short_form_of_two_jobs_is_refused_and_an_unknown_one_waited_for(
    daemon: Daemon, appliance: Appliance, run: Run
):
    ids = [f"3974a3aa-3e28-407f-914f-6a786727569{end}" for end in "bc"]
    for number, job_id in enumerate(ids):
        await appliance.job(f"gui-{number}", id=job_id)
        await known(daemon, f"gui-{number}")
    for command in ("show", "watch"):
        refused = await run(command, "3974a3aa")
        assert await refused.end() == 1
        assert "'3974a3aa' is short for several jobs" in refused.err
        assert all(job_id in refused.err for job_id in ids)
    missing, running = [await run("watch", name, "--timeout", "1") for name in ("00000000", "gui-0")]
    assert (await missing.end(), missing.err) == (12, "correlator: 00000000: not found within 1 s\n")
    assert "00000000 waiting for it" in missing.out
    assert (await running.end(), running.err) == (1, "correlator: gui-0: still running after 1 s\n")


async def test_a_list_that_is_not_whole_says_so(daemon: Daemon, appliance: Appliance, run: Run):
    for number in range(60):
        await appliance.job(f"gui-{number}", metadata=json.dumps({"vm_name": f"vm-{number}"}))
    await known(daemon, "gui-59")
    once = await run("jobs", "--no-header")
    assert await once.end() == 0
    assert len(once.out.splitlines()) == 50
    assert "these are the newest 50, and there are more" in once.err
    followed = await run("jobs", "-w", columns=100, rows=12)
    await followed.until(lambda: followed.screen()[-1:] == ["… 51 more: 51 running (the window is too low)"])
    assert len(followed.screen()) == 11
    every = await run("jobs", "-w", "-o", "plain", "--no-header")
    await every.until(lambda: len(every.out.splitlines()) == 60)


async def test_bash_completes_ids_and_the_names_of_vms_from_the_daemon(daemon: Daemon, appliance: Appliance):
    await appliance.job("gui-1", metadata=json.dumps({"vm_name": "pgtest2"}))
    await known(daemon, "gui-1")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def bash(*words: str) -> list[str]:
        script = (
            'eval "$(_CORRELATOR_COMPLETE=bash_source correlator)";'
            f" COMP_WORDS=(correlator {' '.join(words)}) COMP_CWORD={len(words)};"
            ' _correlator_completion correlator; echo "${COMPREPLY[@]}"'
        )
        environ = {**os.environ, "PATH": path, "CORRELATOR_URL": daemon.url}
        done = subprocess.run(
            ["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == ""
        return done.stdout.split()

    async def completed(*words: str) -> list[str]:
        return await asyncio.to_thread(bash, *words)

    # A daemon of a busy machine may answer too late, and then nothing is offered.
    assert await eventually(partial(completed, "watch", "gui"), within=PATIENCE) == ["gui-1"]
    assert await eventually(partial(completed, "history", "pg"), within=PATIENCE) == ["pgtest2"]
    assert await completed("show", "--url", "127.0.0.1:9", "gui") == []


# -- watch


async def test_a_watch_in_a_pipe_prints_each_transition_once_also_over_a_restart(
    daemon: Daemon, appliance: Appliance, run: Run
):
    command = await run("watch", "gui-1", "late-2", "--exit-status")
    await command.until(lambda: "gui-1 waiting for it" in command.out and "late-2 waiting for it" in command.out)
    job_id = await appliance.job("gui-1")
    await command.until(lambda: "gui-1 unified-live-failover running" in command.out)
    step_id = await appliance.step(job_id, 1, "validation")
    await command.until(lambda: "step validation running" in command.out)
    await appliance.log("odd \x1b[31m", "WARN", job_id=job_id, step_id=step_id)
    await appliance.run("UPDATE job_steps SET status = 'completed', completed_at = NOW(6) WHERE id = %s", step_id)
    await command.until(lambda: "step validation completed" in command.out)
    assert await daemon.stop() == 0
    await command.until(lambda: "trying again" in command.err)
    await daemon.start()
    await command.until(lambda: "connected again" in command.err)
    late = await appliance.job("late-2")
    await command.until(lambda: "late-2 unified-live-failover running" in command.out)
    await appliance.end(late)
    await command.until(lambda: "late-2 unified-live-failover completed" in command.out)
    await appliance.end(job_id, "failed", "boom")
    assert await command.end() == 10
    assert "\x1b" not in command.out
    lines = [re.sub(r"after \S+", "after", line.split(" ", 1)[1]) for line in command.out.splitlines()]
    assert sorted(lines) == sorted(set(lines))
    assert [line for line in lines if " WARN " not in line and not line.endswith("waiting for it")] == [
        "gui-1 unified-live-failover running",
        "gui-1 step validation running",
        "gui-1 step validation completed after",
        "late-2 unified-live-failover running",
        "late-2 unified-live-failover completed after",
        "gui-1 unified-live-failover failed after The job reports: boom. The last step was validation.",
    ]


async def test_a_watch_fills_a_narrower_window_and_leaves_the_terminal_as_it_was(
    daemon: Daemon, appliance: Appliance, run: Run
):
    await appliance.job("gui-1")
    await known(daemon, "gui-1")
    command = await run("watch", "gui-1", columns=80)
    await command.until(lambda: any("running" in line for line in command.screen()))
    assert command.out.count("\x1b[?25l") == 1
    command.resize(40, 20)
    seen = len(command.out)

    def is_narrow() -> bool:
        """What was written since the last call: the first may have been made for the wider window."""
        nonlocal seen
        begin, seen = seen, len(command.out)
        written = command.out[begin:seen]
        return "running" in written and max(map(len, screen(written))) <= 40

    await command.until(is_narrow)
    command.process.send_signal(signal.SIGINT)
    assert (await command.end(), command.err) == (130, "")
    assert command.out.endswith("\x1b[?25h")


async def test_tap_shows_each_row_with_its_job_and_why(database: Database, appliance: Appliance, run: Run):
    job_id = await appliance.job("gui-1")
    settings = {"CORRELATOR_DATABASE__URL": database.url, "CORRELATOR_DATABASE__TIMEZONE": "UTC"}
    text = await run("tap", **settings)
    objects = await run("tap", "-o", "json", "--job", "gui-1", "--level", "warn", **settings)
    window = await run("tap", "--attributed", columns=70, **settings)

    async def received() -> bool:
        await appliance.log("are you there", "WARN", {"job_id": job_id})
        return all("are you there" in command.out for command in (text, objects, window))

    await eventually(received, within=PATIENCE, every=0.2)
    step_id = await appliance.step(job_id, 1, "validation")
    await appliance.log("by step", attrs={"step_id": step_id})
    await appliance.log("by column \x1b[2J", "ERROR", job_id=job_id)
    await appliance.log("of nobody", "WARN")
    await text.until(lambda: "of nobody" in text.out and "by step" in text.out)
    await objects.until(lambda: "by column" in objects.out)
    await appliance.log("x" * 200, job_id=job_id)
    await window.until(lambda: "xxx" in window.out)
    shown = window.screen()
    assert {len(line) for line in shown if line} == {70}
    assert any(line.startswith(r"ERROR by column \x1b[2J ") and line.endswith(job_id[:8]) for line in shown)
    assert not [line for line in shown if "of nobody" in line]
    assert "\x1b[31mERROR" in window.out

    async def named() -> bool:
        await appliance.log("again", attrs={"step_id": step_id})
        return f"step {step_id} validation, by " in text.out

    await eventually(named, within=PATIENCE, every=0.2)
    lines = {line.split(" <- ")[0].split(" ", 2)[2]: line.split(" <- ")[1] for line in text.out.splitlines()}
    assert lines["WARN  are you there "] == f"{job_id} (unified-live-failover), by its attrs"
    assert lines[r"ERROR by column \x1b[2J "] == f"{job_id} (unified-live-failover), by its job_id column"
    assert lines["INFO  by step "].startswith(f"{job_id} (unified-live-failover) step {step_id}")
    assert lines["WARN  of nobody "] == "no job"
    found = [json.loads(line) for line in objects.out.splitlines()]
    assert {(one["message"], one["by"]) for one in found} == {
        ("are you there", "attrs"),
        ("by column \x1b[2J", "column"),
    }
    assert {one["job_id"] for one in found} == {job_id}
    for command in (text, objects, window):
        command.process.send_signal(signal.SIGTERM)
        assert (await command.end(), command.err) == (0, "")
