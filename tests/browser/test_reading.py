"""What the page says of legacy jobs, and on paper."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime

from tests.support.browser import expect, heading
from tests.support.page_server import document, step


async def test_a_legacy_job_says_in_words_what_its_tracker_does_not_have(fake, page):
    job = document("old", "failed", source="legacy", error="timeout")
    job["progress"]["basis"] = "legacy"
    await fake.put(job, document("done", "completed"))
    await page.goto(f"{fake.url}/#/jobs/old")
    await expect(page.locator(".log")).to_contain_text("The old failover tracker writes no log lines.")
    about = page.get_by_role("complementary", name="Particulars")
    await expect(about).to_contain_text("the old failover tracker: it has no steps and no log lines")
    await expect(about).to_contain_text("the status in the old tracker")
    await expect(page.locator(".steps")).to_have_count(0)
    await page.goto(fake.url)
    await expect(page.locator(".row-progress")).to_have_text([re.compile(r"^timeout\s*\d+ min ago$"), ""])


async def test_on_paper_there_are_all_rows_and_no_controls(fake, page):
    await fake.put(*(document(f"j{n}", "completed", ago=60 + n, steps=[step(1, "boot")]) for n in range(300)))
    await page.goto(fake.url)
    await expect(page.locator(".row").first).to_be_visible()
    await page.emulate_media(media="print", color_scheme="dark")
    # Firefox copies the document for the printer as soon as the listeners of the event have returned.
    drawn = "dispatchEvent(new Event('beforeprint')); document.querySelectorAll('.row').length"
    assert await page.evaluate(drawn) == 300
    when = rf"^\d+ \w+ {datetime.now(UTC).year}, [\d:]+ UTC · {re.escape(fake.url)}/$"
    await expect(page.locator(".on-paper")).to_have_text(re.compile(when))
    await expect(page.locator(".on-paper")).to_be_visible()
    for hidden in (".filters", ".columns", ".connection-state"):
        await expect(page.locator(hidden)).to_be_hidden()
    tops = await page.evaluate("[...document.querySelectorAll('.row')].map((row) => row.getBoundingClientRect().top)")
    assert all(above < below for above, below in itertools.pairwise(tops))
    assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 31, 39)"  # of the light theme
    await page.evaluate("dispatchEvent(new Event('afterprint'))")
    await page.emulate_media(media="screen")
    await expect(page.locator(".on-paper")).to_be_hidden()
    await expect(page.locator(".row")).not_to_have_count(300)
    await page.goto(f"{fake.url}/#/jobs/j1")
    await expect(heading(page)).to_have_text("vm-j1")
    await page.emulate_media(media="print")
    await expect(page.locator(".job-tools")).to_be_hidden()
    await expect(page.get_by_role("heading", name="Steps")).to_be_visible()
