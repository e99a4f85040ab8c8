"""Documents and log lines are shown as text, also if they contain markup."""

from __future__ import annotations

from typing import Any

from tests.support.browser import expect, heading, lines, rows
from tests.support.page_server import document, line, step

EVIL = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"


def evil() -> dict[str, Any]:
    """A document with markup in every member, with wrong types and unknown statuses."""
    return document(
        UUID,
        "failed",
        external_ids=[EVIL, "javascript:alert(3)"],
        context_id=EVIL,
        parent_job_id="javascript:alert(4)",
        child_job_ids=["//evil.example/", "x y\" class='pill"],
        job_type=EVIL,
        operation=EVIL,
        category=EVIL,
        owner=EVIL,
        error=EVIL,
        source=EVIL,
        current_step=EVIL,
        last_message={"level": EVIL, "text": EVIL, "at": EVIL},
        metadata={"vm_name": EVIL, EVIL: {"constructor": None, "type": "img", "props": {"onerror": "alert(5)"}}},
        steps=[step(1, EVIL, "failed", error=EVIL), step(2, "b", 'bad" onload="alert(6)')],
    )


async def nothing_ran(page) -> bool:
    """True if no text became an element, and no link leads to another site."""
    return bool(
        await page.evaluate(
            """() => {
                const all = (selector) => [...document.querySelectorAll(selector)];
                return all("main :is(img, script, iframe, [onerror], [onload])").length === 0
                    && all("main a").every((a) => a.getAttribute("href").startsWith("#/")
                        || a.href.startsWith(`${location.origin}/api/v1/jobs/`))
                    && all("main [class]").every((e) => /^[a-z -]*$/.test(e.getAttribute("class")));
            }"""
        )
    )


async def test_markup_is_shown_as_text_in_the_list_on_the_page_of_a_job_and_in_an_address(fake, page):
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    fake.jobs[UUID] = evil()
    fake.events[UUID] = [
        line(1, EVIL, "ERROR", ago=1, step_id=3001, attrs={EVIL: EVIL}),
        line(2, EVIL, attrs=EVIL, at=None),
    ]
    await page.goto(fake.url)
    assert await rows(page).locator("b").first.inner_text() == EVIL
    await page.locator("#search").fill(EVIL + "no match")
    await expect(page.get_by_role("link", name="Follow")).to_contain_text(EVIL)
    assert await nothing_ran(page)

    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(heading(page)).to_have_text(EVIL)
    await expect(lines(page)).to_have_count(2)
    await expect(page).to_have_title(f"Failed – {EVIL} – correlator")
    assert await page.locator(".family a").evaluate_all("all => all.map((a) => a.getAttribute('href'))") == [
        "#/jobs/javascript%3Aalert(4)",
        "#/jobs/%2F%2Fevil.example%2F",
        "#/jobs/x%20y%22%20class%3D'pill",
    ]
    assert await nothing_ran(page)

    await page.goto(f"{fake.url}/#/jobs/nobody{EVIL}")
    await expect(page.locator(".waiting code")).to_have_text(f"nobody{EVIL}")
    await page.goto(f"{fake.url}/#/?q={EVIL}&type={EVIL}&status={EVIL}")
    await expect(page.locator("#search")).to_be_visible()
    assert await nothing_ran(page)
    assert dialogs == []


async def test_a_document_with_missing_or_unknown_members_is_shown(fake, page):
    """Daemons of other versions: members are missing, null, or of another type."""
    fake.jobs["odd"] = {"job_id": "odd", "external_ids": [], "context_id": None, "status": "paused", "rev": 1}
    await page.goto(fake.url)
    await expect(rows(page)).to_contain_text("paused")
    await page.get_by_role("link", name="odd").click()
    await expect(heading(page)).to_have_text("odd")
