"""What the page says in words and on paper: the tab's title, a stalled timeline, legacy jobs, the print sheet."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime

from tests.support.browser import expect
from tests.support.page_server import document, stamp, step


def known(fake, *jobs) -> None:
    fake.jobs.update({job["job_id"]: job for job in jobs})


async def test_the_title_counts_no_failure_that_is_marked_as_seen(fake, page):
    known(fake, document("a", "failed", error="x"), document("b", "failed", error="y"), document("c"))
    await page.goto(fake.url)
    await expect(page).to_have_title("2 failed, 1 running – correlator")
    await page.get_by_role("button", name="Mark 2 failures as seen").click()
    await expect(page).to_have_title("1 running – correlator")
    await fake.put(document("d", "failed", error="z"))
    await expect(page).to_have_title("1 failed, 1 running – correlator")
    await page.get_by_role("button", name="Mark 1 failure as seen").click()
    await page.get_by_role("button", name="failures seen: show first again").click()
    await expect(page).to_have_title("3 failed, 1 running – correlator")


async def test_the_steps_of_a_stalled_job_keep_their_width_and_the_axis_says_how_long_it_is_silent(fake, page):
    steps = [step(1, "snapshot", ago=7 * 3600, took=60), step(2, "copy", "running", ago=7 * 3600 - 60)]
    job = document("a", ago=7 * 3600, stalled=True, last_event_at=stamp(7 * 3600 - 120), steps=steps)
    known(fake, job)
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(page.locator(".axis-break")).to_contain_text("6 h 58 min of silence")
    await page.set_viewport_size({"width": 390, "height": 844})
    right = "e => e.getBoundingClientRect().right"
    assert await page.locator(".axis-break").evaluate(right) <= await page.locator(".axis-line").evaluate(right)
    lane = page.locator(".lane").first
    share = await lane.evaluate("(lane) => lane.firstElementChild.getBoundingClientRect().width / lane.clientWidth")
    assert 0.3 < share < 0.5  # half of 75 %
    await fake.put(job | {"stalled": False, "last_event_at": stamp()})
    await expect(page.locator(".axis-break")).to_have_count(0)


async def test_a_legacy_job_says_in_words_what_its_tracker_does_not_have(fake, page):
    job = document("old", "failed", source="legacy", error="timeout")
    job["progress"]["basis"] = "legacy"
    known(fake, job, document("done", "completed"))
    await page.goto(f"{fake.url}/#/jobs/old")
    await expect(page.locator(".log")).to_contain_text("The old failover tracker writes no log lines.")
    about = page.get_by_role("complementary", name="Particulars")
    await expect(about).to_contain_text("the old failover tracker: it has no steps and no log lines")
    await expect(about).to_contain_text("the status in the old tracker")
    await expect(page.locator(".steps")).to_have_count(0)
    await page.goto(fake.url)
    await expect(page.locator(".row-progress")).to_have_text(["timeout", ""])


async def test_on_paper_there_are_all_rows_and_no_controls(fake, page):
    known(fake, *(document(f"j{n}", "completed", ago=60 + n, steps=[step(1, "boot")]) for n in range(300)))
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
    await expect(page.get_by_role("heading", level=1)).to_have_text("vm-j1")
    await page.emulate_media(media="print")
    await expect(page.locator(".job-tools")).to_be_hidden()
    await expect(page.get_by_role("heading", name="Steps")).to_be_visible()
