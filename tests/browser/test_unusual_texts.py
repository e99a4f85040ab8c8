"""Unusual names, IDs and texts: nothing is out of shape, and nobody is misled."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.support.browser import expect, heading
from tests.support.page_server import document, line, step

ZALGO = "".join(letter + "\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307" * 20 for letter in "zalgo")
NAMES = (ZALGO, "n" * 10_000, "name of a machine " * 600)
REORDERING = "ab\u202edc\u2066ef\x1b[31m\ufeff"
SHOWN = "ab\\u202edc\\u2066ef\\x1b[31m\\ufeff"


def odd(name: str, job_id: str = "a", **more: Any) -> dict[str, Any]:
    """A job with this text wherever the appliance writes one."""
    return document(
        job_id,
        "failed",
        operation=name,
        external_ids=[name],
        context_id=name,
        parent_job_id=name,
        child_job_ids=[name],
        owner=name,
        error=name,
        current_step=name,
        metadata={"vm_name": name, "key": name, name: name},
        steps=[step(1, name, "failed", error=name), step(2, "b")],
        **more,
    )


async def test_no_name_makes_a_page_wider_than_the_window_or_high(fake, page):
    for number, name in enumerate(NAMES):
        # Errors are shown in full, so that they can be read.
        fake.jobs["a"] = odd(name) | {"error": None, "steps": {"1": step(1, name, "failed"), "2": step(2, "b")}}
        fake.archive = [[odd(name, "b")]]
        for address in ("", "#/jobs/a", f"#/entities/{quote(name[:200], safe='')}"):
            await page.goto(f"{fake.url}/?{number}{address}")
            await expect(page.locator(".row, .job-head, .runs").first).to_be_visible()
            for width in (390, 1024, 1280):
                await page.set_viewport_size({"width": width, "height": 800})
                await keeps_its_shape(page, width)


async def keeps_its_shape(page, width: int) -> None:
    at = (page.url[:80], width)
    size = await page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert size[0] <= width, at
    assert size[1] < 4500, at
    high = await page.locator("h1:not(.unseen), .family li, .step-name, .job-what, .row").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().height).filter((height) => height > 150)"
    )
    assert high == [], at
    # What stands out of a line of text is clipped, and covers nothing.
    clipped = page.locator("h1:not(.unseen), .step-pick span, .family li, .row-subject b")
    visible = "all => all.filter((e) => getComputedStyle(e).overflowY === 'visible').map((e) => e.className)"
    assert await clipped.evaluate_all(visible) == [], at


async def test_characters_that_hide_or_reorder_texts_are_shown_as_in_a_terminal(fake, page):
    fake.jobs["a"] = odd(REORDERING)
    fake.events["a"] = [line(1, REORDERING, ago=1, step_id=3001, attrs={REORDERING: REORDERING})]
    fake.archive = [[odd(REORDERING)]]
    for address in ("", "#/jobs/a", f"#/jobs/{quote('nobody' + REORDERING)}", f"#/entities/{quote(REORDERING)}"):
        await page.goto(f"{fake.url}/{address}")
        await expect(page.locator(".row b, h1:not(.unseen), .waiting code").first).to_be_visible()
        await expect(page.locator("main")).to_contain_text(SHOWN)
        if address == "#/jobs/a":
            await expect(page.locator(".line")).to_contain_text(f"{SHOWN}={SHOWN}")
        written = await page.evaluate("document.body.innerText + document.title")
        assert set(written).isdisjoint("\u202e\u2066\x1b\ufeff")


async def test_a_name_from_right_to_left_reorders_nothing_and_one_that_is_invisible_is_blank(fake, page):
    name = "\u05d0\u05d1\u05d2"
    fake.jobs["a"] = document("a", "failed", operation=name, job_type="12", owner=name, metadata={"vm_name": "vm"})
    await page.goto(f"{fake.url}/#/jobs/a")
    parts = page.locator(".job-what bdi")
    await expect(parts).to_have_text([name, "12"])
    lefts = await parts.evaluate_all("all => all.map((each) => each.getBoundingClientRect().left)")
    assert lefts == sorted(lefts)
    await fake.put(document("a", "failed", metadata={"vm_name": name}))
    await expect(page).to_have_title(f"Failed – \u2068{name}\u2069 – correlator")
    await fake.put(document("a", operation=" \u3164", metadata={"vm_name": "  "}, steps=[step(1, "\u2800")]))
    await expect(heading(page)).to_have_text("(blank)")
    await expect(page.locator(".step-name").first).to_have_text("(blank)")
    await page.goto(fake.url)
    await expect(page.locator(".row-subject b")).to_have_text("(blank)")


async def test_any_external_id_can_be_opened_by_its_address(fake, page):
    names = ["\ufeffid", "..", "a/../b", "%2e%2e"]
    fake.jobs |= {name: document(f"job {n}", external_ids=[name]) for n, name in enumerate(names)}
    for n, name in enumerate(names):
        await page.goto(fake.url)
        await page.locator("#search").fill(name)
        await page.keyboard.press("Enter")
        await expect(heading(page)).to_have_text(f"vm-job {n}")
        await page.reload()
        await expect(heading(page)).to_have_text(f"vm-job {n}")
