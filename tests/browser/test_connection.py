"""Whether what is shown is true now is always to be seen."""

from __future__ import annotations

import re

from tests.browser.driver import expect
from tests.browser.fake import document, serving

UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"


def standing(page):
    return page.locator(".standing")


def banner(page):
    return page.locator(".banner")


async def test_live_says_by_which_way_and_how_far_the_database_is_behind(fake, page):
    fake.jobs[UUID] = document(UUID)
    await page.goto(fake.url)
    await expect(standing(page)).to_have_text(re.compile("Live.*websocket · database up to date"))
    await expect(banner(page)).to_have_count(0)
    await fake.say(type="status", source="live", lag_seconds=2.34)
    await expect(standing(page)).to_contain_text("database 2.3 s behind")


async def test_an_outage_says_since_when_stops_the_clocks_and_ends_by_itself(fake, page):
    fake.jobs[UUID] = document(UUID, ago=30)
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(standing(page)).to_contain_text("Live")
    await page.evaluate("window.same = true")
    await fake.stop()
    await expect(standing(page)).to_contain_text("Offline")
    await expect(banner(page)).to_contain_text(re.compile(r"Not connected.*as of \d\d:\d\d:\d\d.*Trying again"))
    elapsed = await page.locator(".elapsed").inner_text()
    # The countdown shows that the page's second has ticked.
    told = await banner(page).inner_text()
    await expect(banner(page)).not_to_have_text(told)
    assert await page.locator(".elapsed").inner_text() == elapsed

    fake.jobs[UUID] = document(UUID, "failed", error="while nobody looked")
    await fake.start()
    await expect(standing(page)).to_contain_text("Live", timeout=15_000)
    await expect(banner(page)).to_have_count(0)
    await expect(page.locator(".failure")).to_contain_text("while nobody looked")
    assert await page.evaluate("window.same")


async def test_a_database_that_is_away_is_said_and_what_is_known_stays(fake, page):
    fake.jobs[UUID] = document(UUID)
    await page.goto(fake.url)
    await expect(standing(page)).to_contain_text("Live")
    await fake.say(type="status", source="down", lag_seconds=12.0)
    await expect(standing(page)).to_contain_text("Stale")
    await expect(banner(page)).to_contain_text("database does not answer")
    await expect(banner(page)).to_contain_text("as of")
    await expect(page.get_by_role("list", name="Jobs").get_by_role("listitem")).to_have_count(1)
    await fake.say(type="status", source="live", lag_seconds=0.0)
    await expect(banner(page)).to_have_count(0)


async def test_a_token_is_asked_for_kept_for_the_tab_and_said_to_rest_too(page):
    async with serving(token="open sesame") as fake:
        fake.jobs[UUID] = document(UUID)
        fake.events[UUID] = [
            {
                "event_id": 1,
                "level": "INFO",
                "message": "secret",
                "step_id": None,
                "attrs": None,
                "at": "2026-01-01T00:00:00Z",
            }
        ]
        await page.goto(f"{fake.url}/#/jobs/{UUID}")
        field = page.get_by_label("Token")
        await field.fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("The answer was")).to_be_visible()
        await field.fill("open sesame")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"vm-{UUID}")
        await expect(page.get_by_role("region", name="Log lines")).to_contain_text("secret")
        await expect(field).to_have_count(0)
        await page.reload()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"vm-{UUID}")
        assert await page.evaluate("Object.keys(localStorage).length") == 0
