"""The minimal page of docs/gui.md, in a browser with a real daemon."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.appliance import Appliance
from tests.support.browser import Page, expect
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.mariadb import Database
from tests.support.markdown import blocks
from tests.support.past_runs import in_sequence, write_past_runs

NAME = "unified-live-failover-pgtest2-1758553933"


async def test_the_minimal_page_of_gui_md_shows_a_job_and_its_percent_from_earlier_runs(
    page: Page, database: Database, appliance: Appliance, tmp_path: Path
):
    (shown,) = (
        block.text for block in blocks("docs/gui.md") if block.section == "A minimal page" and NAME in block.text
    )
    await write_past_runs(database, [in_sequence(("validation", 1000 + n)) for n in range(20)])
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await eventually(lambda: "forecasts: read" in daemon.log())
        minimal = f"{daemon.url}/minimal.html"
        text = shown.replace("/correlator/client.js", "/client.js")  # without a proxy
        await page.route(minimal, lambda route: route.fulfill(body=text, content_type="text/html"))
        await page.goto(minimal)
        state = page.locator("#state")
        await expect(state).to_have_text("waiting for the job")
        # It has no steps yet: counted by them, it would be at 0 %.
        job_id = await appliance.job(NAME, started_at=f"{datetime.now(UTC) - timedelta(seconds=500):%F %T}")
        await expect(state).to_have_text(re.compile(r"^running, [45]\d(\.\d)? %$"))
        await appliance.end(job_id)
        await expect(state).to_have_text("completed, 100 %")
    finally:
        await daemon.close()
