"""From a VM's name to the link of one line of a job of last month, by the keyboard, with a full database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from tests.support.browser import MILLISECONDS, Browser, Locator, Page, expect, heading, lines, rows
from tests.support.bulk_rows import vm, year_of_jobs
from tests.support.daemon import Daemon
from tests.support.mariadb import Database

TABS = 60
Scheme = Literal["light", "dark"]
SCREENS: tuple[tuple[int, Scheme], ...] = ((1280, "light"), (360, "dark"))


async def opened(browser: Browser, width: int, scheme: Scheme, permissions: Sequence[str] = ()) -> Page:
    """A page of a browser of its own, as wide as a desktop or a telephone."""
    context = await browser.new_context(
        viewport={"width": width, "height": 740}, color_scheme=scheme, reduced_motion="reduce",
        timezone_id="UTC", locale="en-GB", permissions=permissions,
    )  # fmt: skip
    context.set_default_timeout(MILLISECONDS)
    return await context.new_page()


async def tab_to(page: Page, wanted: Locator, key: str = "Tab") -> None:
    """Press `key` until this button has the focus."""
    for _ in range(TABS):
        await page.keyboard.press(key)
        if await wanted.count() and await wanted.evaluate("e => e === document.activeElement"):
            return
    raise AssertionError(f"{TABS} times {key} do not lead to {wanted}")


async def find(page: Page, name: str) -> None:
    """Type the name of a VM and Enter, without waiting for what is found."""
    await expect(rows(page).first).to_be_visible()
    await page.keyboard.press("/")
    await page.keyboard.type(name)
    await page.keyboard.press("Enter")
    await expect(heading(page)).to_have_text(name)


async def copied_link(page: Page) -> tuple[str, str]:
    """Mark a line and copy its link, by keys: the line's text, and the link."""
    await page.keyboard.press("l")
    await page.keyboard.press("j")
    await expect(page.locator(".line.is-target")).to_be_visible()
    line = await page.locator(".line.is-target").inner_text()
    await tab_to(page, page.get_by_title("Copy the link to the marked line"), "Shift+Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return line, str(await page.evaluate("navigator.clipboard.readText()"))


async def check(page: Page, picture: Path) -> None:
    """Nothing is wider than the window; the picture is for the eyes."""
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    await page.screenshot(path=picture)


@pytest.mark.parametrize(
    ("jobs", "in_memory", "screens"),
    [(1_000, 100, SCREENS[:1]), pytest.param(100_000, 2_000, SCREENS, marks=pytest.mark.long)],
)
async def test_a_job_of_last_month_is_found_by_its_vm_and_one_line_of_it_is_shared(
    database: Database,
    browser: Browser,
    tmp_path: Path,
    jobs: int,
    in_memory: int,
    screens: tuple[tuple[int, Scheme], ...],
):
    number = jobs * 35 // 365
    job_id = await year_of_jobs(database, jobs, in_memory, number)
    daemon = Daemon(tmp_path, database__url=database.url)
    try:
        await daemon.start(within=60)
        for width, scheme in screens:
            page = await opened(browser, width, scheme, permissions=["clipboard-read", "clipboard-write"])
            await page.goto(daemon.url)
            await find(page, vm(number))
            assert page.url == f"{daemon.url}/#/jobs/{job_id}"
            await expect(page.locator(".failure")).to_contain_text("no space left on volume")
            await tab_to(page, page.get_by_role("button", name="copy", exact=True))
            await page.keyboard.press("Enter")
            await expect(lines(page)).to_have_count(20)
            await expect(lines(page).last).to_contain_text("copy line 20")
            await check(page, tmp_path / f"step-{width}-{scheme}.png")
            line, link = await copied_link(page)

            elsewhere = await opened(browser, width, scheme)
            await elsewhere.goto(link)
            await expect(elsewhere.locator(".line.is-target")).to_be_visible()
            assert await elsewhere.locator(".line.is-target").inner_text() == line
            await check(elsewhere, tmp_path / f"line-{width}-{scheme}.png")
    finally:
        await daemon.close()
