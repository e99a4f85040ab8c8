"""Forecasts on the page, from a real daemon that has read the earlier runs from MariaDB."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support import slow_replay
from tests.support.appliance import Appliance, connected
from tests.support.browser import expect
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.past_runs import write_past_runs
from tests.support.replay import MariaDBReplayer

RUNS = 40
STEPS = (("prepare", 2.0), ("copy", 5.0), ("boot", 2.0))
SLOWER = re.compile(r"slower than (all|9\d % of) 40 earlier runs\.")
"""The times of jobs have whole seconds, so that the longest earlier run may seem a little longer."""
DONE = "e => 100 + new DOMMatrix(getComputedStyle(e).transform).e / e.offsetWidth * 100"


BARS = """() => {
    const bars = new Map();
    Object.assign(window, { falls: [], moves: 0 });
    setInterval(() => {
        for (const row of document.querySelectorAll("[data-job]")) {
            const bar = row.querySelector(".bar-done");
            const before = bars.get(row.dataset.job);
            bars.delete(row.dataset.job);
            if (bar !== null && row.querySelector(".row-left") !== null) {
                const at = parseFloat(bar.style.transform.slice("translateX(".length));
                window.moves += before < at;
                if (before > at) window.falls.push([row.textContent, before, at]);
                bars.set(row.dataset.job, at);
            }
        }
    }, 50);
}"""
"""Watch the bars of the list that have a forecast: where each one is to move to, in percent from its end."""


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")


async def earlier_run(appliance: Appliance, number: int) -> None:
    """A run that completed `number` hours ago; later ones take up to a quarter more time."""
    started = at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=number + 1)
    steps = []
    for name, seconds in STEPS:
        begun, at = at, at + timedelta(seconds=seconds * (1 + number / RUNS / 4))
        steps.append({"name": name, "started_at": text(begun), "completed_at": text(at)})
    job_id = await appliance.job(status="completed", started_at=text(started), completed_at=text(at))
    for seq, step in enumerate(steps, 1):
        await appliance.insert("job_steps", job_id=job_id, seq=seq, status="completed", **step)


@pytest.fixture
async def experienced(appliance: Appliance, database: Database, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon whose appliance has earlier runs."""
    for number in range(RUNS):
        await earlier_run(appliance, number)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        yield daemon
    finally:
        await daemon.close()


async def test_a_job_that_hangs_becomes_late_on_the_page_and_its_bar_never_goes_back(appliance, experienced, page):
    await page.emulate_media(reduced_motion="no-preference")
    job_id = await appliance.job(metadata=json.dumps({"vm_name": "pgtest2"}))
    prepare = await appliance.step(job_id, 1, "prepare")
    await appliance.log("Job started", attrs={"job_id": job_id, "operation": "unified-live-failover"}, job_id=job_id)
    await page.goto(f"{experienced.url}/#/jobs/{job_id}")
    ahead = page.locator(".steps .is-ahead .step-name")
    await expect(ahead).to_have_text(["copy", "boot", "Probable end"])
    await expect(page.locator(".outlook")).to_contain_text("From 40 earlier runs")

    bar, shown = page.locator(".bar-done"), []

    async def overdue() -> bool:
        shown.append(float(await bar.evaluate(DONE)))
        await asyncio.sleep(0.1)
        return "Overdue" in await page.locator(".job-state").inner_text()

    await appliance.run("UPDATE job_steps SET status = 'completed', completed_at = NOW(6) WHERE id = %s", prepare)
    copy = await appliance.step(job_id, 2, "copy")
    await expect(ahead).to_have_text(["boot", "Probable end"])
    await eventually(overdue)
    assert all(after >= before - 0.01 for before, after in itertools.pairwise(shown)), shown
    assert shown[0] < shown[-1] <= 99, shown

    await page.goto(f"{experienced.url}/#/?forecast=overdue")
    await expect(page.get_by_role("list", name="Jobs").get_by_role("listitem")).to_contain_text("Overdue: longer than")
    await page.go_back()
    await appliance.run("UPDATE job_steps SET status = 'completed', completed_at = NOW(6) WHERE id = %s", copy)
    await appliance.end(job_id)
    await expect(page.locator(".outlook")).to_contain_text(SLOWER)
    await expect(page.locator(".bar-done")).to_have_attribute("style", "transform: translateX(0%);")


async def run(database: Database, pace: float) -> None:
    """A job that takes `pace` times as long as the newest earlier run."""
    async with connected(database) as connection:
        own = Appliance(connection)
        job_id = await own.job()
        await own.log("Job started", attrs={"job_id": job_id, "operation": "unified-live-failover"}, job_id=job_id)
        for seq, (name, seconds) in enumerate(STEPS, 1):
            step = await own.step(job_id, seq, name)
            await asyncio.sleep(seconds * pace)
            await own.run("UPDATE job_steps SET status = 'completed', completed_at = NOW(6) WHERE id = %s", step)
        await own.end(job_id)


async def test_while_the_recording_is_replayed_at_its_pace_no_bar_goes_back(database, recording, tmp_path, page):
    silent = slow_replay.without_percent(recording, but_of="migration")
    await write_past_runs(database, slow_replay.past_runs(silent, 1.0, copies=5))
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await eventually(lambda: "forecasts: read " in daemon.log())
        await page.goto(daemon.url)
        await page.evaluate(BARS)
        async with MariaDBReplayer.connect(database) as replayer:
            await slow_replay.replay(replayer, silent, 1.0)
        await expect(page.get_by_role("list", name="Jobs").get_by_role("listitem")).not_to_have_count(0)
        assert await page.evaluate("falls") == []
        assert await page.evaluate("moves") > 10
    finally:
        await daemon.close()


async def test_while_jobs_run_at_different_paces_no_bar_in_the_list_goes_back(experienced, database, page):
    await page.goto(experienced.url)
    await expect(page.get_by_role("list", name="Jobs").get_by_role("listitem")).not_to_have_count(0)
    await page.evaluate(BARS)
    await asyncio.gather(*(run(database, pace) for pace in (0.6, 1.0, 1.2, 1.6)))
    assert await page.evaluate("falls") == []
    assert await page.evaluate("moves") > 20
