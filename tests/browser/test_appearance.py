"""Themes, narrow screens, reduced motion, and accessibility by axe."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browser import AXE, expect, findings, heading, lines, rows
from tests.support.page_server import document, forecasted, stamp, step

UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
LONG = "a-name-without-any-place-to-break-it-" * 8
AHEAD = [("copy", 1.0, 90.0), (LONG, 0.1, 30.0)]


@pytest.fixture
def busy(fake):
    """A job of each status and of each forecast; the running one has everything else that a page can show."""
    steps = [
        step(1, "validation", ago=300),
        step(2, "final-sync", "failed", ago=200, error="rpc error: " + LONG),
        step(3, "boot", "skipped", ago=190, took=0),
        step(4, LONG, "running", ago=180),
    ]
    jobs = [
        document(
            UUID,
            "running",
            ago=300,
            steps=steps,
            stalled=True,
            last_event_at=stamp(150),
            context_id="ctx-1",
            parent_job_id="failed",
            child_job_ids=["completed"],
            external_ids=[LONG],
            metadata={"vm_name": "pgtest2", "disks": [LONG], LONG: 1},
        ),
        document("failed", "failed", error=LONG),
        document("completed", "completed", steps=steps[:2]),
        document("pending", "pending", started_at=None),
        document("cancelled", "cancelled"),
        forecasted(
            document("late", steps=[steps[0], steps[3]]), 41.0, state="late", left=9000, most=99_000, ahead=AHEAD
        ),
        forecasted(document("overdue"), 41.0, state="overdue", ahead=AHEAD),
        forecasted(document("rough"), 41.0, state="rough", runs=3),
    ]
    fake.jobs.update({job["job_id"]: job for job in jobs})
    error = f"no space left: {LONG} {'word ' * 40}"
    old: dict[str, Any] = {"context_id": "ctx-1", "metadata": {"vm_name": "pgtest2"}, "error": error}
    fake.archive = [[document(f"old-{n}", "failed" if n % 3 else "completed", ago=9e5 + n, **old) for n in range(30)]]
    fake.events[UUID] = [
        {"event_id": n, "level": level, "message": LONG, "step_id": 3001, "attrs": {"key": LONG}, "at": stamp(60 - n)}
        for n, level in enumerate(["DEBUG", "INFO", "WARN", "ERROR"] * 5)
    ]
    return fake


VIEWS = {
    "list": "",
    "job": f"#/jobs/{UUID}",
    "late": "#/jobs/late",
    "failed": "#/jobs/failed",
    "waiting": "#/jobs/nobody",
    "entity": "#/entities/pgtest2",
    "search": f"#/?q={LONG}",
}


async def shown(page, fake, view: str) -> None:
    await page.goto(f"{fake.url}/{VIEWS[view]}")
    await expect(rows(page).first if view in ("list", "search") else heading(page)).to_be_visible()
    if view == "job":
        await expect(lines(page).last).to_be_visible()


async def test_no_view_is_wider_than_any_window_and_axe_finds_nothing_serious(busy, browser):
    """Also with a banner. Of the second theme axe examines the colours alone: all else is as in the first."""
    context = await browser.new_context(bypass_csp=True, color_scheme="light", reduced_motion="reduce")
    page = await context.new_page()
    await page.add_init_script(path=AXE)
    sticks_out = "e => e.getBoundingClientRect().right > innerWidth + 1"
    beyond = f"all => all.filter({sticks_out}).map((e) => e.outerHTML.slice(0, 120))"
    parts = page.locator("main :is(a, button, input, select, p, h1, h2, dt, dd, pre, li)")
    for view in VIEWS:
        await shown(page, busy, view)
        for width in (360, 768, 1280):
            await page.set_viewport_size({"width": width, "height": 740})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, view
            assert await parts.evaluate_all(beyond) == [], (view, width)
            words = "all => all.map((e) => e.offsetHeight).filter((height) => height > 40)"
            assert await page.locator(".choice").evaluate_all(words) == [], "a label has two lines"
        await is_accessible(page)
    await busy.stop()
    await expect(page.locator(".banner")).to_be_visible()
    await is_accessible(page)


async def is_accessible(page) -> None:
    assert await findings(page) == [], page.url
    await page.emulate_media(color_scheme="dark")
    assert await findings(page, "color-contrast") == [], page.url
    await page.emulate_media(color_scheme="light")


async def background(page) -> str:
    return str(await page.evaluate("getComputedStyle(document.body).backgroundColor"))


async def test_the_theme_follows_the_system_until_the_user_chooses(fake, page):
    await page.emulate_media(color_scheme="light")
    await page.goto(fake.url)
    light = await background(page)
    await page.emulate_media(color_scheme="dark")
    dark = await background(page)
    assert light != dark
    await page.get_by_role("button", name="Switch to light").click()
    assert await background(page) == light
    await page.reload()
    assert await background(page) == light
    await page.get_by_role("button", name="Switch to dark").click()
    await page.emulate_media(color_scheme="light")
    assert await background(page) == dark


async def test_without_storage_the_theme_can_be_chosen_for_the_page(fake, page):
    forbid = "Object.defineProperty(window, '%s', {get() { throw new DOMException('no', 'SecurityError') }});"
    await page.add_init_script(forbid % "localStorage" + forbid % "sessionStorage")
    fake.jobs[UUID] = document(UUID)
    await page.goto(fake.url)
    await expect(rows(page)).to_have_count(1)
    before = await background(page)
    await page.get_by_role("button", name="Switch to").click()
    assert await background(page) != before


async def test_reduced_motion_disables_all_animations(busy, page):
    still = """all => all.map((e) => getComputedStyle(e))
        .every((style) => style.transitionDuration === "0s" && style.animationName === "none")"""
    for wanted, moving in (("no-preference", True), ("reduce", False)):
        await page.emulate_media(reduced_motion=wanted)
        for view, what in (("job", ".span, .bar-done"), ("waiting", ".pulse")):
            await shown(page, busy, view)
            await expect(page.locator(what).first).to_be_visible()
            assert await page.locator(what).evaluate_all(still) is not moving


async def test_no_state_is_shown_by_colour_alone(busy, page):
    """There is a word beside each icon, and failed, skipped and silent bars have patterns."""
    await shown(page, busy, "job")
    patterns = await page.locator(".lane .span").evaluate_all(
        "all => all.map((e) => getComputedStyle(e).backgroundImage)"
    )
    completed, failed, skipped, running, silent = patterns
    assert completed == running == "none"
    assert len({failed, skipped, silent, "none"}) == 4
    assert await page.locator(".step-word").all_inner_texts() == ["Completed", "Failed", "Skipped", "Running"]
