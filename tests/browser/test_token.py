"""The page of a daemon or a gateway that requires tokens: each view waits for the right one, and then works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance
from tests.support.browser import BrowserContext, Page, expect, rows
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.page_server import appliance, document, serving, serving_fleet


async def lists(page: Page) -> None:
    await expect(rows(page)).to_have_count(1)


async def heads(page: Page) -> None:
    await expect(page.locator(".job-state")).to_contain_text("Running")


async def logs(page: Page) -> None:
    await heads(page)
    await expect(page.locator(".line.is-target")).to_contain_text("a secret line")


async def runs(page: Page) -> None:
    await expect(page.locator(".runs tbody tr")).to_have_count(1)


FIRST, SECOND = "the-first-of-the-tokens", "the-second-of-the-tokens"


async def enter(page: Page, token: str) -> None:
    await expect(page.get_by_role("heading", name="A token is needed")).to_be_visible()
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Connect").click()


async def refuse(page: Page, token: str) -> None:
    """Enter a token that is wrong: the form is there again, empty."""
    await page.evaluate("document.querySelector('form.token').dataset.before = 'yes'")
    await enter(page, token)
    await expect(page.locator("form.token:not([data-before])")).to_contain_text("The daemon answered")
    await expect(page.get_by_label("Token")).to_have_value("")
    for waiting in ("Loading the jobs", "Searching for this ID"):  # nothing is under way until a token is accepted
        await expect(page.get_by_text(waiting)).to_have_count(0)


async def is_live(page: Page, shows: Any) -> None:
    await shows(page)
    await expect(page.locator("form.token")).to_have_count(0)
    await expect(page.locator(".connection-state")).to_contain_text(re.compile("Live.*websocket"))


async def test_each_view_works_after_the_right_token_also_after_a_wrong_and_a_revoked_one(
    appliance: Appliance, database, context: BrowserContext, page, tmp_path: Path
):
    """Each in a tab of its own, without a reload. One at which the right token is entered at once follows changes."""
    job_id = await appliance.job("gui-1", context_id="ctx-1")
    line = await appliance.log("a secret line", job_id=job_id)
    views = {"#/?q=gui-1": lists, f"#/jobs/gui-1/log/{line}": logs, "#/entities/ctx-1": runs}
    (tmp_path / "tokens").write_text(f"{FIRST}\n")
    daemon = Daemon(tmp_path, database__url=database.url, http__tokens_file=tmp_path / "tokens")

    async def is_applied() -> bool:
        return (await daemon.get("/api/v1/jobs", headers={"Authorization": f"Bearer {SECOND}"}))[0] == 200

    try:
        await daemon.start()
        pages = [(await context.new_page(), shows) for shows in views.values()]
        for (each, shows), address in zip(pages, views, strict=True):
            await each.goto(f"{daemon.url}/{address}")
            await expect(each.get_by_role("heading", name="A token is needed")).to_be_visible()
            await refuse(each, "wrong")
            await each.evaluate("window.same = true")
            await enter(each, FIRST)
            await is_live(each, shows)
        (tmp_path / "tokens").write_text(f"{SECOND}\n")
        daemon.hang_up()
        await eventually(is_applied)
        for each, shows in pages:
            await expect(each.get_by_role("heading", name="A token is needed")).to_be_visible()
            await refuse(each, FIRST)
            await enter(each, SECOND)
            await is_live(each, shows)
            assert await each.evaluate("window.same")
            await each.reload()
            await is_live(each, shows)
            assert await each.evaluate("localStorage.length") == 0
        await page.goto(daemon.url)
        await enter(page, SECOND)
        await is_live(page, lists)
        await appliance.end(job_id, "failed", "seen live")
        await expect(page.locator("main")).to_contain_text("seen live")
    finally:
        await daemon.close()


async def test_the_page_of_a_fleet_asks_once_for_all_of_its_appliances(page: Page):
    async with serving_fleet(appliance("dc1"), token="first") as fleet:
        await fleet.put(document("a", instance="dc1"))
        await page.goto(fleet.url)
        await expect(page.get_by_role("heading", name="A token is needed")).to_be_visible()
        await refuse(page, "wrong")
        await enter(page, "first")
        for address, shows in (("", lists), ("#/i/dc1/jobs/a", heads), ("i/dc1/", lists)):
            await page.goto(f"{fleet.url}/{address}")
            await is_live(page, shows)


async def test_a_part_that_has_a_problem_is_named_with_its_error_once_the_token_is_known(page):
    async with serving(token="right") as fake:
        fake.parts = {"mqtt": {"ok": False, "error": "broker.example refuses the login"}}
        fake.jobs["a"] = document("a")
        await page.goto(fake.url)
        await enter(page, "right")
        await expect(page.locator(".health-banner")).to_have_text("MQTT: broker.example refuses the login.")


async def test_a_refused_page_can_be_loaded_again_which_leads_to_the_sign_in_of_a_proxy(page: Page):
    async with serving(token="right") as fake:
        fake.jobs["a"] = document("a")
        address = f"{fake.url}/#/jobs/a"
        await page.goto(address)
        await expect(page.get_by_role("heading", name="A token is needed")).to_be_visible()
        await page.evaluate("window.before = true")
        await page.get_by_role("link", name="load it again").click()
        await page.wait_for_function("window.before === undefined")
        assert page.url == address, "the view stays"
