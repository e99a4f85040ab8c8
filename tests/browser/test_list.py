"""The list: its jobs, their order, filters and the keyboard."""

from __future__ import annotations

import re

from tests.support.browser import expect, heading, names, rows
from tests.support.eventually import eventually
from tests.support.page_server import document, forecast

DAY = 86_400.0


async def test_what_is_urgent_comes_first_and_older_failures_are_one_row_that_unfolds(fake, page):
    await fake.put(
        document("done-new", "completed", ago=10, took=5),
        document("run-old", "running", ago=500),
        document("failed-old", "failed", ago=900),
        document("failed-older", "failed", ago=9000),
        document("overdue", "running", ago=800, forecast=forecast(state="overdue")),
        document("cancelled", "cancelled", ago=100),
        document("run-new", "running", ago=50),
        document("failed-new", "failed", ago=80),
        document("pending", "pending", ago=5, started_at=None),
    )
    await page.goto(fake.url)
    await expect(rows(page)).to_have_count(9)
    order = ["vm-overdue", "vm-failed-new", "vm-failed-old", "1 older failure"]
    rest = [f"vm-{name}" for name in ("run-new", "run-old", "pending", "done-new", "cancelled")]
    assert await names(page) == [*order, *rest]
    for _ in order:
        await page.keyboard.press("j")
    await expect(page.get_by_role("button", name="1 older failure")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(rows(page)).to_have_count(10)
    await expect(page.get_by_role("button", name="1 older failure")).to_be_focused()
    assert await names(page) == [*order, "vm-failed-older", *rest]
    await page.reload()
    await page.get_by_role("button", name="1 older failure").click()
    await expect(rows(page)).to_have_count(9)


async def test_the_first_screen_of_a_phone_has_what_is_urgent_and_what_runs(fake, page):
    await fake.put(
        document("late", stalled=True),
        *(document(f"new{n}", "failed", ago=100 + n, error=f"error {'abc'[n]}") for n in range(3)),
        *(document(f"old{n}", "failed", ago=5000 + n, error=f"error {'abcdefgh'[n]}") for n in range(8)),
        document("run", forecast=forecast(state="late")),
    )
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.goto(fake.url)
    await expect(page.get_by_role("link", name="vm-late")).to_be_in_viewport(ratio=1)
    await expect(page.get_by_role("link", name="vm-run")).to_be_in_viewport(ratio=0.9)


async def test_no_row_moves_while_the_pointer_moves_over_the_rows_but_for_what_the_user_chooses(fake, page):
    await fake.put(*(document(f"j{number}", "running", ago=number + 10) for number in range(4)))
    await page.goto(fake.url)
    await page.get_by_role("link", name="vm-j3").hover()
    await fake.put(document("j4", "failed", ago=5, error="no space left"))
    await expect(page.get_by_role("button", name="Failed")).to_contain_text("1")
    assert await names(page) == ["vm-j0", "vm-j1", "vm-j2", "vm-j3"]
    await page.keyboard.press("/")
    await page.keyboard.type("vm")
    await expect(rows(page).first).to_contain_text("vm-j4")
    await expect(page.locator(".beyond")).to_contain_text("All jobs are searched")  # what is found renews the rows
    await page.get_by_role("link", name="vm-j3").hover()
    await fake.put(document("j5", "failed", ago=2, error="no space left"))
    await expect(page.get_by_role("button", name="Failed")).to_contain_text("2")
    await expect(rows(page).first).to_contain_text("vm-j4")
    await page.locator("#search").hover()
    await expect(rows(page).first).to_contain_text("vm-j5")


async def test_filters_are_stored_in_the_address_and_restored_from_it(fake, page, context):
    await fake.put(
        document("f1", "failed", job_type="failover"),
        document("f2", "failed", job_type="cleanup"),
        document("r1", "running", job_type="failover", stalled=True),
        document("old-running", "running", ago=2 * DAY),
        document("old-done", "completed", ago=2 * DAY) | {"progress": {"percent": 100.0, "steps_failed": 2}},
    )
    await page.goto(fake.url)
    await expect(rows(page)).to_have_count(4)  # what ended more than a day ago is hidden
    await page.get_by_label("Period").select_option("All")
    await expect(rows(page).filter(has_text="Completed")).to_contain_text("2 steps failed")
    assert page.url == f"{fake.url}/#/?when=all"
    stalled = page.get_by_role("button", name="Stalled")
    await expect(stalled).to_have_text(re.compile(r"Stalled\s*1"))
    await stalled.click()
    await expect(rows(page)).to_have_count(1)
    await expect(rows(page)).to_contain_text("vm-r1")
    await page.goto(f"{fake.url}/?new")
    await page.get_by_role("button", name="Failed").click()
    await expect(rows(page)).to_have_count(2)
    await page.get_by_label("Type").select_option("failover")
    await expect(rows(page)).to_have_count(1)
    await page.locator("#search").fill("vm-f & 1")
    await expect(rows(page)).to_have_count(0)
    await page.locator("#search").fill("VM-F1")
    await expect(rows(page)).to_have_count(1)
    assert page.url == f"{fake.url}/?new#/?q=VM-F1&status=failed&type=failover"

    other = await context.new_page()
    await other.goto(page.url)
    await expect(rows(other)).to_have_count(1)
    await expect(other.locator("#search")).to_have_value("VM-F1")
    await expect(other.get_by_role("button", name="Failed")).to_have_attribute("aria-pressed", "true")


async def test_search_finds_any_id_vm_operation_and_text_and_a_row_says_where(fake, page):
    error = "Disk is full, and whatever was asked, the answer was 503"
    await fake.put(
        document("uuid-1", external_ids=["ext/É 1"], context_id="ctx-1", metadata={"vm_name": "SVR 2019/Prod"}),
        document("uuid-2", "failed", operation="bulk-group-move", error=error, metadata={"vm_name": "other"}),
    )
    await page.goto(fake.url)
    for words, found, why in (
        ("uuid-1", "SVR", "ID: uuid-1"),
        ("ext/é", "SVR", "ID: ext/É 1"),
        ("svr CTX-1", "SVR", "context: ctx-1"),
        ("svr prod", "SVR", "unified-live-failover"),
        ("group-move", "other", "bulk-group-move"),
        ("disk full", "other", "bulk-group-move"),
        ("503", "other", "error: … answer was 503"),
    ):
        await page.locator("#search").fill(words)
        await expect(rows(page)).to_have_count(1)
        await expect(rows(page)).to_contain_text(found)
        await expect(rows(page).locator(".row-subject .soft")).to_have_text(why)


async def test_the_list_of_a_thousand_jobs_is_a_few_rows_and_can_be_used_by_keyboard_alone(fake, page):
    await fake.put(*(document(f"j{number:03}", "running", ago=number + 10) for number in range(1000)))
    await page.goto(fake.url)
    await expect(rows(page).first).to_have_attribute("aria-setsize", "1000")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    assert page.url == f"{fake.url}/"
    await page.keyboard.press("/")
    await expect(page.locator("#search")).to_be_focused()
    await page.keyboard.type("vm-j")
    await page.keyboard.press("Escape")
    await expect(page.locator("#search")).not_to_be_focused()

    focused = page.locator("a:focus")
    await page.keyboard.press("j")
    await expect(focused).to_contain_text("vm-j000")
    for _ in range(30):
        await page.keyboard.press("ArrowDown")
    await expect(focused).to_contain_text("vm-j030")
    await expect(focused).to_be_in_viewport(ratio=1)
    await page.keyboard.press("k")
    await expect(focused).to_contain_text("vm-j029")
    await page.keyboard.press("Enter")
    await expect(heading(page)).to_have_text("vm-j029")
    await expect(heading(page)).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(focused).to_contain_text("vm-j029")
    await expect(page.locator("#search")).to_have_value("vm-j")
    assert await rows(page).count() < 60

    async def is_scrolled_to_the_end() -> bool:
        await page.keyboard.press("End")  # the document has its height after the first rows have been measured
        return bool(await page.get_by_role("link", name="vm-j999").is_visible())

    await eventually(is_scrolled_to_the_end)
    await expect(page.get_by_role("link", name="vm-j999")).to_be_in_viewport()
    assert await rows(page).count() < 60


async def test_the_row_with_the_focus_stays_in_sight_when_jobs_come_unless_it_was_scrolled_away(fake, page):
    await fake.put(*(document(f"j{number:02}", "running", ago=number + 10) for number in range(60)))
    await page.goto(fake.url)
    await expect(rows(page).first).to_be_visible()
    focused = page.locator("a:focus")
    for _ in range(25):
        await page.keyboard.press("j")
    await expect(focused).to_contain_text("vm-j24")
    await fake.put(*(document(f"new{number}", "running", ago=1) for number in range(3)))
    await expect(rows(page).first).to_have_attribute("aria-setsize", "63")
    await expect(focused).to_contain_text("vm-j24")
    await expect(focused).to_be_in_viewport(ratio=1)

    await page.mouse.move(400, 400)
    await page.mouse.wheel(0, 1000)
    await expect(focused).not_to_be_in_viewport()
    scrolled = await page.evaluate("scrollY")
    await page.mouse.move(400, 10)  # to the header: no row stands because of the pointer
    await fake.put(document("newest", "running", ago=1))
    await expect(rows(page).first).to_have_attribute("aria-setsize", "64")
    assert await page.evaluate("scrollY") == scrolled


async def test_rows_of_other_days_show_their_date_also_when_a_day_begins(fake, page):
    await page.add_init_script("window.shift = 0; const real = Date.now.bind(Date); Date.now = () => real() + shift;")
    await fake.put(
        document("today", "completed", ago=0, took=0),
        document("yesterday", "completed", ago=DAY, took=60),
        document("run", "running", ago=3 * DAY),
    )
    await page.goto(f"{fake.url}/#/?when=all")
    started = page.locator(".row-started")
    await expect(started).to_have_count(3)
    dated = re.compile(r"^\d+ \w+, \d\d:\d\d:\d\d$")
    await expect(started.nth(0)).to_have_text(dated)
    await expect(started.nth(1)).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    await expect(started.nth(2)).to_have_text(dated)
    await page.evaluate(f"window.shift = {int(DAY) * 1000}")
    await expect(rows(page).filter(has_text="vm-today").locator(".row-started")).to_have_text(dated)
