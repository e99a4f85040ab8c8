"""The page with a real daemon and a real MariaDB."""

from __future__ import annotations

import json
import re
from collections import Counter
from urllib.parse import quote

from tests.support import replay
from tests.support.browser import expect, heading, lines, rows
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.past_runs import in_sequence, write_past_runs
from tests.support.replay import MariaDBReplayer

NAME = "unified-live-failover-SVR 2019/Prod?#%-1758553933"


async def test_a_page_opened_before_its_job_exists_shows_it_run_and_fail_without_a_reload(appliance, daemon, page):
    await page.goto(f"{daemon.url}/#/jobs/{quote(NAME, safe='')}")
    await expect(page.get_by_role("heading", name="Waiting for this ID")).to_be_visible()
    await expect(page.locator("code")).to_have_text(NAME)
    await page.evaluate("window.same = true")

    state = page.locator(".job-state")
    # What JobLog writes when the GUI's job starts: only the metadata has the GUI's ID.
    job_id = await appliance.job(metadata=json.dumps({"vm_name": "SVR 2019/Prod", "failover_job_id": NAME}))
    attrs = {"job_id": job_id, "job_type": "failover", "operation": "unified-live-failover", "owner": "system"}
    await appliance.log("Job started", attrs=attrs)
    await expect(heading(page)).to_have_text("SVR 2019/Prod")
    await expect(state).to_contain_text("Running")
    await expect(page.get_by_role("status").last).to_have_text("SVR 2019/Prod has appeared: Running")

    step_id = await appliance.step(job_id, 1, "final-sync")
    await appliance.log(
        "Step started", attrs={"job_id": job_id, "step_id": step_id, "step_name": "final-sync", "sequence": 1}
    )
    step = page.locator(".steps").get_by_role("listitem")
    await expect(step).to_contain_text("final-sync")
    await expect(step).to_contain_text("Running")

    await appliance.log("disk <b>is</b> filling", "WARN", attrs={"job_id": job_id, "step_id": step_id, "free_gb": 1})
    await expect(lines(page).filter(has_text="disk <b>is</b> filling")).to_contain_text("free_gb=1")

    await appliance.run(
        "UPDATE job_steps SET status = 'failed', error_message = 'no space left', completed_at = UTC_TIMESTAMP(6)"
        " WHERE id = %s",
        step_id,
    )
    await appliance.end(job_id, "failed", "final sync failed: no space left")
    await appliance.log("Job failed", "ERROR", attrs={"job_id": job_id, "status": "failed"}, job_id=job_id)
    await expect(state).to_contain_text("Failed")
    await expect(page.get_by_role("status").last).to_have_text("SVR 2019/Prod: Failed")
    await expect(page).to_have_title("Failed – SVR 2019/Prod – correlator")
    await expect(page.locator(".failure")).to_contain_text("final sync failed: no space left")
    await expect(step.locator("pre")).to_have_text("no space left")
    assert await page.evaluate("window.same")


async def test_the_list_has_the_jobs_of_a_recording_as_the_daemon_has_them(mixed, database, daemon, page):
    await page.goto(daemon.url)
    await expect(page.get_by_text("No job yet")).to_be_visible()
    async with MariaDBReplayer.connect(database) as replayer:
        await replayer.replay(mixed)

    async def shows_the_daemons_jobs() -> bool:
        answers = daemon.pages("/api/v1/jobs", limit=500)
        found = Counter([job["status"] async for answer in answers for job in answer["jobs"]])
        chips = page.get_by_role("group", name="Status").get_by_role("button")
        shown = dict(text.rsplit(maxsplit=1) for text in await chips.all_inner_texts())
        counts = {word.lower(): int(number) for word, number in shown.items() if number != "0"}
        assert counts == dict(found)
        return found.total() >= len(replay.expected(mixed)["job_tracking"])

    await eventually(shows_the_daemons_jobs, every=0.5)


async def test_a_job_that_hangs_becomes_late_on_the_page_and_its_bar_never_goes_back(
    appliance, database, tmp_path, page
):
    """Its daemon has read forty earlier runs, of which later ones took up to a quarter more time."""
    paces = [1 + n / 160 for n in range(40)]
    steps = (("prepare", 2.0), ("copy", 5.0), ("boot", 2.0))
    await write_past_runs(database, [in_sequence(*((name, pace * took) for name, took in steps)) for pace in paces])
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await eventually(lambda: "forecasts: read" in daemon.log())
        job_id = await appliance.job(metadata=json.dumps({"vm_name": "pgtest2"}))
        prepare = await appliance.step(job_id, 1, "prepare")
        await page.goto(f"{daemon.url}/#/jobs/{job_id}")
        ahead = page.locator(".steps .is-ahead .step-name")
        await expect(ahead).to_have_text(["copy", "boot", "Probable end"])
        await expect(page.locator(".outlook")).to_contain_text("From 40 earlier runs")
        await appliance.run("UPDATE job_steps SET status = 'completed', completed_at = NOW(6) WHERE id = %s", prepare)
        await appliance.step(job_id, 2, "copy")
        await expect(ahead).to_have_text(["boot", "Probable end"])
        shown = []

        async def overdue() -> bool:
            style = await page.locator(".bar-done").get_attribute("style")
            shown.append(float(str(style).partition("translateX(")[2].partition("%")[0]))
            return "Overdue" in await page.locator(".job-state").inner_text()

        await eventually(overdue, every=0.2)
        assert shown == sorted(shown)
        assert shown[0] < shown[-1] <= -1
        await page.goto(f"{daemon.url}/#/?forecast=overdue")
        await expect(rows(page)).to_contain_text("Overdue: longer than")
        await page.go_back()
        await appliance.end(job_id)
        slower = re.compile(r"slower than (all|\d+ % of) 40 earlier runs")
        await expect(page.locator(".outlook")).to_contain_text(slower)
    finally:
        await daemon.close()
