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
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.appliance import Appliance, now
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE, eventually
from tests.support.mariadb import Database
from tests.support.paths import REPOSITORY
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


def ago(seconds: float) -> str:
    """A time of a row's `started_at`."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")


async def failed_job(appliance: Appliance, name: str) -> str:
    job_id = await appliance.job(name, metadata=json.dumps({"vm_name": "pgtest2"}))
    await appliance.step(job_id, 1, "validation", "completed")
    step_id = await appliance.step(job_id, 2, "volume-attachment", "failed")
    await appliance.run("UPDATE job_steps SET error_message = %s WHERE id = %s", "no such volume", step_id)
    await appliance.log("attach: retrying", "WARN", job_id=job_id, step_id=step_id)
    await appliance.end(job_id, "failed", "step failed")
    return job_id


# -- jobs and show


async def test_jobs_as_json_are_the_documents_of_the_api_newest_first(daemon: Daemon, appliance: Appliance, run: Run):
    await appliance.job("gui-1", started_at="2026-11-25 08:00:00")
    await appliance.job("gui-2", job_type="cleanup")
    await known(daemon, "gui-1")
    await known(daemon, "gui-2")
    command = await run("jobs", "-o", "json")
    assert await command.end() == 0
    _, body = await daemon.get("/api/v1/jobs")
    assert [job["job_id"] for job in json.loads(command.out)] == [job["job_id"] for job in body["jobs"]]
    only = await run("jobs", "-o", "json", "--type", "cleanup", "--status", "running", "-q", "gui-")
    assert await only.end() == 0
    assert [job["external_ids"] for job in json.loads(only.out)] == [["gui-2"]]
    for option in (
        ("--until", "1h"),
        ("--until", "2026-11-25T08:00:01Z", "--since", "2026-11-25T08:00:00Z", "--text", "GUI"),
    ):
        old = await run("jobs", "-o", "json", *option)
        assert await old.end() == 0
        assert [job["external_ids"] for job in json.loads(old.out)] == [["gui-1"]], option


async def test_a_command_that_runs_on_ends_when_nobody_reads_its_output(daemon: Daemon, appliance: Appliance):
    """Though it has nothing more to write, which would fail."""
    await appliance.job("gui-1")
    await known(daemon, "gui-1")

    async def ends(command: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "correlator", *command.split(), "--url", daemon.url),
            cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if "logs" not in command:
                assert await asyncio.wait_for(process.stdout.readline(), PATIENCE)
            process.stdout._transport.close()  # type: ignore[attr-defined]
            err = await asyncio.wait_for(process.stderr.read(), PATIENCE)
            await asyncio.wait_for(process.wait(), PATIENCE)
        finally:
            if process.returncode is None:
                process.kill()
        assert b"Traceback" not in err, command

    await asyncio.gather(*map(ends, ("watch gui-1 nobody", "logs -f nobody", "jobs -w")))


async def test_show_and_watch_find_a_job_by_any_id_and_by_the_short_form_that_a_list_prints(
    daemon: Daemon, appliance: Appliance, run: Run
):
    job_id = await failed_job(appliance, "gui-1")
    legacy = "unified-live-failover-pgtest2-1758553933"
    row = {"job_id": legacy, "vm_id": "1", "source_vm_name": "pgtest2", "job_type": "live", "status": "validating"}
    await appliance.insert("failover_jobs", **row, created_at=now())
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
        shown = await run("show", form, "-o", "json")
        assert await shown.end() == 0
        assert json.loads(shown.out) == await daemon.job(full)
    watched = await run("watch", job_id[:8], "--exit-status")
    assert await watched.end() == 10
    assert f"{job_id[:8]} unified-live-failover pgtest2 failed" in watched.out
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
    waiting = await run("watch", "00000000", "--timeout", "1")
    assert await waiting.end() == 12
    assert "00000000 waiting for it" in waiting.out


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


async def test_log_lines_of_a_job_that_has_ended_are_printed_in_their_order_before_it_is_over(
    daemon: Daemon, appliance: Appliance, run: Run
):
    job_id = await appliance.job("gui-1")
    for number in range(3):
        await appliance.log(f"line {number}", job_id=job_id)
    await appliance.end(job_id)
    await known(daemon, "gui-1", "completed")

    async def logged() -> bool:
        _, body = await daemon.get(f"/api/v1/jobs/{job_id}/events")
        return len(body["events"]) == 3

    await eventually(logged, within=PATIENCE)
    for progress in ("plain", "jsonl"):
        command = await run("watch", "gui-1", "--logs", "debug", "--progress", progress)
        assert await command.end() == 0
        lines = [line for line in command.out.splitlines() if progress == "plain" or '"type": "log"' in line]
        assert re.findall(r"line \d", "".join(lines)) == ["line 0", "line 1", "line 2"]


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


async def test_the_exit_status_is_the_highest_of_the_jobs_and_says_what_did_not_end_in_time(
    daemon: Daemon, appliance: Appliance, run: Run
):
    await appliance.job("runs")
    for status in ("completed", "cancelled", "failed"):
        await appliance.end(await appliance.job(status), status)
        await known(daemon, status, status)
    for jobs, code in ((["completed"], 0), (["failed", "completed"], 10), (["failed", "cancelled"], 11)):
        asked, unasked = await run("watch", *jobs, "--exit-status"), await run("watch", *jobs)
        assert (await asked.end(), await unasked.end()) == (code, 0), jobs
    missing, running = await run("watch", "nobody", "--timeout", "1"), await run("watch", "runs", "--timeout", "1")
    assert (await missing.end(), missing.err) == (12, "correlator: nobody: not found within 1 s\n")
    assert (await running.end(), running.err) == (1, "correlator: runs: still running after 1 s\n")


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
        "gui-1 unified-live-failover failed after boom",
    ]


async def test_on_a_terminal_of_40_columns_there_is_a_tree_that_fits_and_keeps_why_it_failed(
    daemon: Daemon, appliance: Appliance, run: Run
):
    command = await run("watch", "unified-live-failover-pgtest2-1758553933", "--exit-status", columns=40)
    await command.until(lambda: any("waiting for unified" in line for line in command.screen()))
    job_id = await failed_job(appliance, "unified-live-failover-pgtest2-1758553933")
    assert await command.end() == 10
    lines = command.screen()
    assert max(map(len, lines)) <= 40, lines
    assert lines[0].startswith("✗ pgtest2  unified-live-failo")
    assert lines[0].endswith(" failed")
    assert any(line.startswith("  ✓ validation") for line in lines)
    at = next(n for n, line in enumerate(lines) if line.startswith("  ✗ volume-attachment"))
    assert lines[at + 1] == "      no such volume"
    assert "attach: retrying" in lines[at + 2]
    assert "\x1b[?25h" in command.out.rsplit("\x1b[?25l", 1)[1]
    assert (await daemon.job(job_id))["status"] == "failed"
    plain = await run("watch", job_id, columns=60, PYTHONIOENCODING="ascii", NO_COLOR="1", LC_ALL="C")
    assert await plain.end() == 0
    assert plain.out.isascii()
    assert "\x1b[3" not in plain.out
    assert "####" in plain.out
    assert any("WARN" in line and "attach: retrying" in line for line in plain.screen())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_watch_fills_a_narrower_window_and_leaves_the_terminal_as_it_was(
    daemon: Daemon, appliance: Appliance, run: Run, number: int, code: int
):
    await appliance.job("gui-1")
    await known(daemon, "gui-1")
    command = await run("watch", "gui-1", columns=80)
    await command.until(lambda: any("running" in line for line in command.screen()))
    assert command.out.count("\x1b[?25l") == 1
    command.resize(40, 20)
    before = len(command.out)
    await command.until(lambda: "running" in command.out[before:])
    assert max(map(len, screen(command.out[before:]))) <= 40
    command.process.send_signal(number)
    assert (await command.end(), command.err) == (code, "")
    assert command.out.endswith("\x1b[?25h")


async def test_a_bar_moves_with_the_clock_and_never_back_and_the_end_is_in_words(
    daemon: Daemon, appliance: Appliance, run: Run
):
    for number in range(4):
        old = await appliance.job(f"old-{number}", started_at=ago(60))
        await appliance.step(old, 1, "validation", "completed")
        await appliance.end(old)

    async def learned() -> bool:
        _, body = await daemon.get("/api/v1/operations")
        return [one["runs"] for one in body["operations"]] == [4]

    await eventually(learned, within=PATIENCE)
    job_id = await appliance.job("gui-1")
    await known(daemon, "gui-1")
    command = await run("watch", "gui-1", columns=100)

    def percents() -> list[int]:
        return [int(found) for found in re.findall(r" (\d+)% ", command.out)]

    await command.until(lambda: len(set(percents())) > 4)
    assert percents() == sorted(percents())
    lines = command.screen()
    assert re.match(r"  perhaps (\d+ s|1 min) left \(by \d\d:\d\d \w+\); from only 4 earlier runs$", lines[2])
    assert re.match(r"  ○ then validation, under 1 s, in all earlier runs$", lines[-1])
    table, once = await run("jobs", "--type", "failover", columns=80), await run("show", "gui-1")
    assert await table.end() == await once.end() == 0
    assert any(re.search(r" ~\d+ s\? ", line) for line in table.screen())
    assert "from only 4 earlier runs" in once.out
    await appliance.end(job_id)
    assert await command.end() == 0
    assert re.match(r"  took .* s, typical 60 s; 0 % of 4 earlier runs were faster$", command.screen()[2])


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
