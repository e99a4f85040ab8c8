"""Logs of jobs from the daemon: one that `correlator logs` follows over a restart, and a whole one as text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from yarl import URL

from tests.support.appliance import Appliance
from tests.support.daemon import Daemon
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


@pytest.mark.parametrize("back", [1.2, 3, 8])
async def test_a_log_is_whole_although_its_clock_was_set_back_by_hours(
    daemon: Daemon, appliance: Appliance, run: Run, back: float
):
    def at(minute: float) -> str:
        return (begin + timedelta(minutes=minute)).strftime("%Y-%m-%d %H:%M:%S.%f")

    begin = datetime.now(UTC) - timedelta(hours=12)
    due: dict[str, list[int]] = {}
    for number in range(20):  # one after the other, before the clock is set back
        job = f"old-{number}"
        await appliance.job(id=job, status="completed", started_at=at(6 * number), completed_at=at(6 * number + 5))
        due[job] = [
            await appliance.log(f"line {n}", attrs={"job_id": job}, ts=at(6 * number + n / 2)) for n in range(7)
        ]
    after = 125 - 60 * back
    await appliance.job(id="Across", started_at=at(120))
    due["Across"] = [await appliance.log("x", attrs={"job_id": "aCROSS"}, ts=at(120 + n / 10)) for n in range(21)]
    due["Across"] += [await appliance.log("x", attrs={"job_id": "Across"}, ts=at(after + n / 10)) for n in range(21)]
    due["Across"].append(await appliance.log("x", attrs={"job_id": "Across"}, ts=at(after - 30 * 60)))
    dump = {"job_id": "Across", "dump": "x" * (1 << 21)}
    due["Across"].append(await appliance.log("x", attrs=dump, ts=at(after + 4)))
    assert (await daemon.get("/api/v1/jobs/Across?wait=30"))[0] == 200
    for job, ids in due.items():
        status, page = await daemon.get(f"/api/v1/jobs/{job}/events?limit=1000")
        assert (status, page["complete"], page["reason"], page["more"]) == (200, True, None, False)
        assert sorted(line["event_id"] for line in page["events"]) == ids, job
    assert daemon.session is not None
    async with daemon.session.get(URL("/api/v1/jobs/Across/log")) as response:
        assert len((await response.text()).splitlines()) == len(due["Across"])
    command = await run("logs", "Across", "-o", "json")
    assert await command.end() == 0
    assert sorted(json.loads(line)["event_id"] for line in command.out.splitlines()) == due["Across"]
    assert command.err == ""
