"""The page with a real daemon and a real MariaDB."""

from __future__ import annotations

import json
from collections import Counter
from urllib.parse import quote

from tests.support import replay
from tests.support.appliance import Appliance
from tests.support.browser import Page, expect
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.expected_jobs import owners
from tests.support.replay import MariaDBReplayer

NAME = "unified-live-failover-SVR 2019/Prod-1758553933"


def address(daemon: Daemon, name: str) -> str:
    return f"{daemon.url}/#/jobs/{quote(name, safe='')}"


def state(page):
    return page.locator(".job-state")


async def begun(appliance: Appliance) -> str:
    """Write what JobLog writes when the GUI's job starts: only the metadata has the GUI's ID."""
    job_id = await appliance.job(metadata=json.dumps({"vm_name": "SVR 2019/Prod", "failover_job_id": NAME}))
    attrs = {"job_id": job_id, "job_type": "failover", "operation": "unified-live-failover", "owner": "system"}
    await appliance.log("Job started", attrs=attrs)
    return job_id


async def test_a_page_opened_before_its_job_exists_shows_it_run_and_fail_without_a_reload(appliance, daemon, page):
    await page.goto(address(daemon, NAME))
    await expect(page.get_by_role("heading", name="Waiting for this ID")).to_be_visible()
    await page.evaluate("window.same = true")

    job_id = await begun(appliance)
    await expect(page.get_by_role("heading", level=1)).to_have_text("SVR 2019/Prod")
    await expect(state(page)).to_contain_text("Running")

    step_id = await appliance.step(job_id, 1, "final-sync")
    await appliance.log(
        "Step started", attrs={"job_id": job_id, "step_id": step_id, "step_name": "final-sync", "sequence": 1}
    )
    step = page.locator(".steps").get_by_role("listitem")
    await expect(step).to_contain_text("final-sync")
    await expect(step).to_contain_text("Running")

    await appliance.log("disk <b>is</b> filling", "WARN", attrs={"job_id": job_id, "step_id": step_id, "free_gb": 1})
    line = (
        page.get_by_role("region", name="Log lines").get_by_role("listitem").filter(has_text="disk <b>is</b> filling")
    )
    await expect(line).to_contain_text("free_gb=1")

    await appliance.run(
        "UPDATE job_steps SET status = 'failed', error_message = 'no space left', completed_at = UTC_TIMESTAMP(6)"
        " WHERE id = %s",
        step_id,
    )
    await appliance.end(job_id, "failed", "final sync failed: no space left")
    await appliance.log("Job failed", "ERROR", attrs={"job_id": job_id, "status": "failed"}, job_id=job_id)
    await expect(state(page)).to_contain_text("Failed")
    await expect(page.locator(".failure")).to_contain_text("final sync failed: no space left")
    await expect(step.locator("pre")).to_have_text("no space left")
    assert await page.evaluate("window.same")


async def test_the_page_survives_a_restart_of_the_daemon_without_a_reload(appliance, daemon, page):
    job_id = await begun(appliance)
    await page.goto(address(daemon, NAME))
    await expect(state(page)).to_contain_text("Running")
    await page.evaluate("window.same = true")

    assert await daemon.stop() == 0
    await expect(page.locator(".banner")).to_contain_text("as of")
    await appliance.end(job_id)
    await appliance.log("Job completed", attrs={"job_id": job_id, "status": "completed"}, job_id=job_id)
    await daemon.start()
    await expect(state(page)).to_contain_text("Completed")
    await expect(page.locator(".banner")).to_have_count(0)
    lines = page.get_by_role("region", name="Log lines").get_by_role("listitem")
    await expect(lines.filter(has_text="Job completed")).to_have_count(1)
    assert await page.evaluate("window.same")


async def test_the_list_and_the_job_pages_show_a_recording_as_it_is_written(mixed, database, daemon, page, context):
    tables = replay.expected(mixed)
    tracked = tables["job_tracking"]
    # IDs repeat in the recording: the page shows the newest job that carries one.
    ended = {str(tracked[job_id]["status"]): (name, tracked[job_id]) for name, job_id in owners(tables).items()}
    assert ended.keys() >= {"completed", "failed", "running"}

    pages: dict[str, Page] = {}
    for status, (name, _) in ended.items():
        pages[status] = await context.new_page()
        await pages[status].goto(address(daemon, name))
        await expect(pages[status].get_by_role("heading", name="Waiting for this ID")).to_be_visible()
    await page.goto(daemon.url)
    await expect(page.get_by_text("No job yet")).to_be_visible()

    async with MariaDBReplayer.connect(database) as replayer:
        await replayer.replay(mixed, speed=8.0)

    for status, (_, row) in ended.items():
        await expect(state(pages[status])).to_contain_text(status.capitalize())
        await expect(pages[status].locator(".failure")).to_have_count(1 if row["error_message"] else 0)

    async def shows_the_daemons_jobs() -> bool:
        found = Counter[str]()
        cursor = ""
        while True:
            _, answer = await daemon.get(f"/api/v1/jobs?limit=500{cursor}")
            found.update(job["status"] for job in answer["jobs"])
            if answer["next_cursor"] is None:
                break
            cursor = f"&cursor={answer['next_cursor']}"
        chips = page.get_by_role("group", name="Status").get_by_role("button")
        shown = dict(text.rsplit(maxsplit=1) for text in await chips.all_inner_texts())
        counts = {word.lower(): int(number) for word, number in shown.items() if number != "0"}
        assert counts == dict(found)
        return found.total() >= len(tracked)

    await eventually(shows_the_daemons_jobs, every=0.5)
