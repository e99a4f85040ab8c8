"""The pages of docs/gui.md, in a browser with a real daemon."""

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


async def test_the_pages_of_gui_md_show_a_job_and_its_percent_from_earlier_runs(
    page: Page, database: Database, appliance: Appliance, tmp_path: Path
):
    minimal, line = (
        next(b.text for b in blocks("docs/gui.md") if b.section == section and b.language == "html" and NAME in b.text)
        for section in ("A minimal page", "One line")
    )
    await write_past_runs(database, [in_sequence(("validation", 1000 + n)) for n in range(20)])
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start()
        await eventually(lambda: "forecasts: read" in daemon.log())
        address = f"{daemon.url}/minimal.html"
        text = (minimal + line).replace('"/correlator/', '"/')  # without a proxy
        await page.route(address, lambda route: route.fulfill(body=text, content_type="text/html"))
        await page.goto(address)
        state = page.locator("#state")
        element = page.locator("correlator-progress")
        await expect(state).to_have_text("waiting for the job")
        await expect(element).to_contain_text("Waiting for the job")
        # It has no steps yet: counted by them, it would be at 0 %.
        job_id = await appliance.job(NAME, started_at=f"{datetime.now(UTC) - timedelta(seconds=500):%F %T}")
        await expect(state).to_have_text(re.compile(r"^running, [45]\d(\.\d)? %$"))
        await expect(element).to_contain_text(re.compile("Running.*about .* left"))
        await appliance.end(job_id)
        await expect(state).to_have_text("completed, 100 %")
        await expect(element).to_contain_text(re.compile("100 %.*Completed.*Took .*, typical"))
    finally:
        await daemon.close()
