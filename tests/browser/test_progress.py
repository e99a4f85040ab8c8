"""The element `correlator-progress` on a page of another program."""

from __future__ import annotations

import re

from tests.support.browser import AXE, Page, expect, findings
from tests.support.eventually import eventually
from tests.support.page_server import PageServer, document, forecasted, serving, step

SCRIPT = '<script type="module" src="/progress.js"></script>'
STEPS = [step(1, "validation"), step(2, "final-sync", "running")]
EVENTS = """
    window.seen = [];
    for (const kind of ["change", "end"]) {
        document.addEventListener(kind, ({ target, detail }) => {
            seen.push([kind, target.job, detail.job?.status ?? null]);
        }, { capture: true });
    }
"""


def element(job: str, more: str = "") -> str:
    return f'<correlator-progress job="{job}" {more}></correlator-progress>'


async def opened(page: Page, fake: PageServer, *elements: str) -> None:
    fake.html = SCRIPT + "".join(elements)
    await page.goto(f"{fake.url}/test.html")


async def test_elements_show_jobs_on_one_connection_and_axe_finds_nothing(fake, browser):
    context = await browser.new_context(locale="en-GB", timezone_id="UTC")
    page = await context.new_page()
    await page.add_init_script(path=AXE)
    await fake.put(
        forecasted(document("a", steps=STEPS), 42.5),
        forecasted(document("b", steps=STEPS), 88.0, state="overdue", left=0, most=0),
        document("c", "failed", error="no <b>space</b> left\nTraceback\n  line 7", steps=STEPS),
        document("d", "completed", steps=[step(1, "validation", "failed")]),
    )
    await opened(page, fake, *map(element, "abcde"))
    shown = [page.locator("correlator-progress").nth(n) for n in range(5)]
    await expect(shown[0]).to_contain_text("Running")
    bar = shown[0].get_by_role("progressbar", name="vm-a")
    await expect(bar).to_have_attribute("aria-valuenow", "42")
    said = re.compile("^about 42 %, 1 of about 2 steps done, final-sync, about [23] min left")
    await expect(bar).to_have_attribute("aria-valuetext", said)
    await expect(shown[1].get_by_role("status")).to_contain_text("Running, overdue: longer at this point than any of")
    await expect(shown[2].locator("pre")).not_to_be_visible()
    await shown[2].get_by_text("no <b>space</b> left").click()
    await expect(shown[2].locator("pre")).to_have_text("Traceback\n  line 7")
    await expect(shown[3]).to_contain_text("Completed with 1 failed step")
    await expect(shown[4]).to_contain_text("Waiting for the job")
    assert (fake.connections, len(fake.subscriptions)) == (1, 5)
    await fake.stop()
    await expect(shown[0]).to_contain_text("Offline: as of")
    await expect(shown[3]).not_to_contain_text("Offline")  # an end is final
    assert await findings(page) == []


async def test_an_element_reports_changes_and_each_end_once_and_follows_its_attribute(fake, page):
    await page.add_init_script(EVENTS)
    await fake.put(document("b", "failed"))
    await opened(page, fake, element("a"))
    shown = page.locator("correlator-progress")
    await expect(shown).to_contain_text("Waiting for the job")
    await fake.put(document("a", steps=STEPS))
    await expect(shown).to_contain_text("final-sync")
    for errors in (0, 1):
        await fake.put(document("a", "completed", errors=errors))
    await expect(shown).to_contain_text("Completed")
    await eventually(lambda: shown.evaluate("element => element.update?.job?.errors === 1"))
    # A move within the page keeps the subscription.
    subscription = fake.subscriptions[0]["id"]
    await page.evaluate("document.querySelector('main').append(document.querySelector('correlator-progress'))")
    await expect(shown).to_contain_text("Completed")
    assert [wanted["id"] for wanted in fake.subscriptions] == [subscription]
    await page.evaluate("document.querySelector('correlator-progress').job = 'b'")
    await expect(shown).to_contain_text("Failed")
    seen = await page.evaluate("seen")
    assert [each for each in seen if each[0] == "end"] == [["end", "a", "completed"], ["end", "b", "failed"]]
    assert ["change", "a", "running"] in seen
    # Without a job it has no subscription.
    await page.evaluate("document.querySelector('correlator-progress').job = null")
    await eventually(lambda: shown.evaluate("element => element.update === null"))
    await eventually(lambda: fake.subscriptions == [])


async def test_an_element_gives_its_token_from_an_attribute_a_property_and_after_a_refusal(page):
    shown = page.locator("correlator-progress")
    async with serving(token="secret") as fake:
        await fake.put(document("a", steps=STEPS))
        await opened(page, fake, element("a", 'token="secret"'))
        await expect(shown).to_contain_text("final-sync")
        before = '<script>document.querySelector("correlator-progress").token = () => "secret";</script>'
        fake.html = element("a") + before + SCRIPT
        await page.goto(f"{fake.url}/test.html?before")
        await expect(shown).to_contain_text("final-sync")
        await opened(page, fake, element("a"))
        await expect(shown).to_contain_text("Refused: a token is needed")
        await page.evaluate("document.querySelector('correlator-progress').token = 'secret'")
        await expect(shown).to_contain_text("final-sync")


async def test_an_element_names_an_address_that_is_none(fake, page):
    await opened(page, fake, element("a", 'server="http://["'))
    await expect(page.locator("correlator-progress")).to_contain_text("The server http://[ is not an address")
