"""`correlator logs` against the daemon: a whole log, a followed one over a restart, an ID that comes later, a pipe."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
from tests.support.eventually import PATIENCE
from tests.support.paths import REPOSITORY
from tests.support.proxies import SharingNginx
from tests.support.terminal import commands_against

Run = Callable[..., Any]


@pytest.fixture
async def run(daemon: Daemon) -> AsyncIterator[Run]:
    async with commands_against(daemon.url) as run:
        yield run


async def test_a_followed_log_has_each_line_once_over_a_restart_and_ends_with_its_job(
    daemon: Daemon, appliance: Appliance, run: Run
):
    command = await run("logs", "gui-1", "-f", "-o", "json")
    await command.until(lambda: "waiting for gui-1" in command.err)
    job_id = await appliance.job("gui-1")
    due = [await appliance.log(f"line {n}", job_id=job_id) for n in range(3)]
    await command.until(lambda: "line 2" in command.out)
    due.append(await appliance.log("live", attrs={"job_id": job_id}))
    await command.until(lambda: "live" in command.out)
    assert await daemon.stop() == 0
    due.append(await appliance.log("meanwhile", job_id=job_id))
    await daemon.start()
    await command.until(lambda: "meanwhile" in command.out)
    due.append(await appliance.log("last", job_id=job_id))
    await appliance.end(job_id)
    assert await command.end() == 0
    lines = [json.loads(line) for line in command.out.splitlines()]
    assert [line["event_id"] for line in lines] == due
    assert {line["job_id"] for line in lines} == {job_id}


async def test_a_log_is_selected_by_level_and_step_and_a_closed_pipe_is_no_error(
    daemon: Daemon, appliance: Appliance, run: Run
):
    job_id = await appliance.job("gui-1")
    step = await appliance.step(job_id, 1, "copy", "completed")
    await appliance.log("quiet", "DEBUG", job_id=job_id)
    await appliance.log("copied", "WARN", attrs={"step_id": step, "volume": "v-1"})
    for _ in range(3):
        await appliance.log("x" * 60_000, job_id=job_id)
    await appliance.end(job_id)
    assert (await daemon.get("/api/v1/jobs/gui-1?wait=5"))[0] == 200
    chosen = await run("logs", job_id[:8], "--level", "info", "--step", "copy")
    assert await chosen.end() == 0
    assert chosen.out.split(" ", 1)[1] == "WARN  copy: copied  volume=v-1\n"
    for option in (("--grep", "V-1"), ("--grep", "COPIED", "--tail", "9"), ("--tail", "4", "--step", "copy")):
        found = await run("logs", "gui-1", *option)
        assert (await found.end(), found.out) == (0, chosen.out), option
    last = await run("logs", "gui-1", "-f", "--tail", "2", "-o", "json")
    assert await last.end() == 0
    assert [json.loads(line)["message"][:1] for line in last.out.splitlines()] == ["x", "x"]
    missing = await run("logs", "gui-1", "--step", "paste")
    assert await missing.end() == 1
    assert "no step 'paste'; its steps are: copy" in missing.err
    process = await asyncio.create_subprocess_shell(
        f"{sys.executable} -m correlator logs gui-1 -f --url {daemon.url} | head -c 10",
        cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (len(out), err) == (10, b"")


async def test_a_whole_log_is_sent_as_text_in_the_order_of_time_and_its_parts_are_selected(
    daemon: Daemon, appliance: Appliance
):
    job_id = await appliance.job("GUI 1/a")
    step = await appliance.step(job_id, 1, "copy", "completed")
    await appliance.run(
        "INSERT INTO log_events (job_id, level, message, ts)"
        " SELECT %s, 'INFO', CONCAT('line ', seq), NOW(6) - INTERVAL 9 SECOND + INTERVAL seq MICROSECOND"
        " FROM seq_1_to_2500",
        job_id,
    )
    await appliance.log("odd\n\x1b[2J", "WARN", attrs={"step_id": step, "volume": "V-1"})
    assert daemon.session is not None
    assert (await daemon.get("/api/v1/jobs/GUI%201%2Fa?wait=5"))[0] == 200
    path = "/api/v1/jobs/GUI%201%2Fa/log"
    async with daemon.session.get(URL(path, encoded=True)) as response:
        lines = (await response.text()).splitlines()
        assert (response.status, response.content_type) == (200, "text/plain")
        assert response.headers["Content-Disposition"] == 'attachment; filename="GUI_1_a.log"'
        assert (response.headers["X-Content-Type-Options"], response.headers["Cache-Control"]) == (
            "nosniff",
            "no-store",
        )
    assert [line.split(maxsplit=1)[1] for line in lines[:2500]] == [f"INFO  line {n}" for n in range(1, 2501)]
    assert lines[2500].split(maxsplit=1)[1] == "WARN  copy: odd\\n\\x1b[2J  volume=V-1"
    for part in (f"step={step}", "level=WARN", "q=v-1"):
        async with daemon.session.get(URL(f"{path}?{part}", encoded=True)) as response:
            assert (await response.text()).splitlines() == lines[2500:]
    status, body = await daemon.get(f"{path}?limit=5")
    assert (status, "'limit'" in body["detail"]) == (400, True)


async def test_clients_that_share_a_connection_of_nginx_get_nothing_of_each_other(daemon: Daemon, appliance: Appliance):
    job_id = await appliance.job("secret")
    await appliance.run(
        "INSERT INTO log_events (job_id, ts, level, message)"
        " SELECT %s, UTC_TIMESTAMP(6), 'INFO', REPEAT('secret ', 100) FROM seq_1_to_5000",
        job_id,
    )
    assert (await daemon.get("/api/v1/jobs/secret?wait=5"))[0] == 200
    proxy = SharingNginx(daemon.port)
    try:
        await asyncio.to_thread(proxy.start)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{proxy.port}") as session:
            for path in ("/api/v1/jobs/secret/log", "/api/v1/stream", "/api/v1/jobs/secret"):
                async with session.head(path) as response:
                    assert response.status == (405 if path.endswith("stream") else 200)
                for _ in range(20):  # the pages of the log would come between them
                    async with session.get("/health/live") as response:
                        assert (response.status, await response.text()) == (200, '{"live":true}'), path
            async with session.get("/api/v1/jobs/secret/log") as response:
                assert len((await response.text()).splitlines()) == 5_000
    finally:
        await asyncio.to_thread(proxy.close)
