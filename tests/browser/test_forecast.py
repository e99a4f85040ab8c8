"""What the page shows of a forecast: how much time is left, the steps ahead, late and overdue jobs."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

import pytest

from tests.support.browser import expect, rows
from tests.support.page_server import document, forecasted, step

AHEAD = [("copy", 1.0, 90.0), ("verify", 0.4, 30.0), ("boot", 0.97, 20.0)]
CLOCK = r"\d\d:\d\d"
LEFT = "about [23] min left"
"""Of three minutes, also on a busy machine."""


def job(job_id: str, percent: float = 40.0, *, ago: float = 60.0, **more: Any) -> dict[str, Any]:
    steps = [step(1, "validation", ago=ago, took=ago / 2), step(2, "sync", "running", ago=ago / 2)]
    return forecasted(document(job_id, ago=ago, steps=steps), percent, **more)


def row(page, name: str):
    return rows(page).filter(has_text=f"vm-{name}")


async def share(bar) -> float:
    """The share of a bar that is done, as it is drawn at this moment, in percent."""
    return float(
        await bar.evaluate(
            """e => {
                const [whole, done] = [e.parentElement, e].map((each) => each.getBoundingClientRect());
                return (100 * (done.right - whole.left)) / whole.width;
            }"""
        )
    )


async def test_a_row_says_how_much_time_is_left_what_that_rests_on_and_whether_it_is_late(fake, page):
    await fake.put(
        job("a"), job("rough", state="rough", runs=4, left=5.0, most=9.0), document("none"),
        job("late", state="late"), job("overdue", state="overdue"), document("failed", "failed"),
    )  # fmt: skip
    await page.goto(fake.url)
    left = row(page, "a").locator(".row-left")
    await expect(left).to_have_text(re.compile(rf"^\s*{LEFT} \(by {CLOCK}\)\s*$"))
    await expect(left).to_have_attribute("title", re.compile(rf"^From 37 earlier runs; 9 of 10 ended by {CLOCK}\.$"))
    await expect(row(page, "a")).to_contain_text("sync")
    rough = row(page, "rough").locator(".row-left")
    await expect(rough).to_contain_text("perhaps a few seconds left")
    assert await rough.evaluate("e => e.scrollWidth <= e.clientWidth"), "its end is cut off"
    await expect(row(page, "none").locator(".row-left")).to_have_count(0)
    await expect(row(page, "late")).to_contain_text(re.compile(f"Late: {LEFT}"))
    chips = page.get_by_role("group", name="Forecast").get_by_role("button")
    assert [" ".join(text.split()) for text in await chips.all_inner_texts()] == ["Late 1", "Overdue 1"]
    await chips.nth(1).click()
    await expect(rows(page)).to_have_count(1)
    await expect(rows(page)).to_contain_text("Overdue: longer than 37 earlier runs")
    await chips.nth(0).click()
    assert page.url == f"{fake.url}/#/?forecast=late%2Coverdue"
    await fake.put(job("a", state="late"))
    await expect(rows(page)).to_have_count(3)


async def test_a_row_on_a_phone_has_its_status_again_once_its_job_has_failed(fake, page):
    await fake.put(job("a"), job("b"), job("c"))  # so that its row moves
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.goto(fake.url)
    await expect(row(page, "b").locator(".row-left")).to_be_visible()  # which takes the place of the status
    status = row(page, "b").locator(".row-status")
    await expect(status).to_have_css("position", "absolute")
    await fake.put(document("b", "failed", error="no space left"))
    await expect(status).to_contain_text("Failed")
    await expect(status).to_have_css("position", "static")


async def test_a_bar_moves_between_documents_and_never_goes_back_and_that_of_an_overdue_job_stands(fake, page):
    await page.emulate_media(reduced_motion="no-preference")
    quick = {"ago": 10.0, "left": 10.0, "most": 14.0}
    await fake.put(job("a", 40.0, **quick), job("o", 70.0, state="overdue", left=10.0, most=20.0))
    await page.goto(fake.url)
    bar, standing = (row(page, name).locator(".bar-done") for name in "ao")
    await expect(bar).to_be_visible()
    shown = [await share(bar)]
    for number in range(24):
        if number == 20:  # the new document says less than the bar shows
            await fake.put(job("a", 42.0, **quick))
        await asyncio.sleep(0.1)
        shown.append(await share(bar))
    assert all(after >= before - 0.2 for before, after in itertools.pairwise(shown)), shown
    assert shown[20] > shown[0] + 3, shown
    assert await share(standing) == pytest.approx(70, abs=0.5)
    # It moves smoothly, not once a second. How many of the places between are painted is up to the machine.
    await expect(bar).to_have_css("transition", re.compile(r"^transform 1s linear"))


async def test_the_page_of_a_job_shows_the_steps_ahead_and_a_band_for_its_end_until_it_has_ended(fake, page):
    await fake.put(job("a", ahead=AHEAD))
    await page.goto(f"{fake.url}/#/jobs/a")
    ahead = page.locator(".steps .is-ahead")
    await expect(ahead).to_have_count(4)
    assert await ahead.locator(".step-name").all_inner_texts() == ["copy", "verify", "boot", "Probable end"]
    assert (await ahead.locator(".step-word").all_inner_texts())[:3] == ["99 % likely", "40 % likely", "97 % likely"]
    assert (await ahead.locator(".step-took").all_inner_texts())[:3] == ["about 2 min", "about 30 s", "about 20 s"]
    await expect(ahead.last).to_contain_text(re.compile(rf"Probable end\s*{CLOCK}\s*to {CLOCK}"))
    await expect(page.locator(".steps h2")).to_contain_text("2 of about 4 steps")

    boxes = [await bar.bounding_box() for bar in await page.locator(".steps .span").all()]
    running, copy, verify, boot, end = [(box["x"], box["x"] + box["width"]) for box in boxes[1:]]
    assert running[1] <= copy[0] + 1
    assert copy[0] < verify[0] < boot[0]
    assert boot[1] == pytest.approx(end[0], abs=6)
    assert end[0] < end[1]
    opacities = await page.locator(".span-ahead").evaluate_all("all => all.map((e) => Number(e.style.opacity))")
    assert opacities[1] < opacities[2] < opacities[0] == 1

    words = rf"about \d+ %, 1 of about 4 steps done, sync, {LEFT} \(by {CLOCK}\), From 37 earlier runs; .*\."
    await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuetext", re.compile(f"^{words}$"))
    await fake.put(job("a", state="late", ahead=AHEAD))
    await expect(page.get_by_role("status").last).to_have_text("vm-a: Late")
    await expect(page.locator(".job-state")).to_contain_text("Late: longer at this point than 9 of 10 earlier runs")
    await expect(page).to_have_title(re.compile(r"^late, \d+ % – vm-a – correlator$"))

    compared = {"typical_seconds": 80.0, "runs": 37, "percentile": 88.0}
    await fake.put(document("a", "completed", ago=96, took=96, compared_with=compared))
    said = "Took 1 min 36 s, typical 1 min 20 s; slower than 88 % of 37 earlier runs."
    await expect(page.locator(".outlook")).to_have_text(said)
    await expect(ahead).to_have_count(0)


async def test_a_job_without_a_step_or_a_forecast_shows_what_is_known(fake, page):
    await fake.put(forecasted(document("a"), 3.0, ahead=[*AHEAD, ("status", 0.9, 1.0)]))
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(page.locator(".steps .is-ahead")).to_have_count(5)
    await expect(page.locator(".percent-words")).to_contain_text("0 of about 3 steps done")
    await expect(page.locator(".step-took").nth(3)).to_have_text("a few seconds")  # beside its bar, not on it
    box = "e.querySelector('.%s').getBoundingClientRect()"
    gap = f"e => {box % 'step-took'}.left - {box % 'lane'}.right"
    assert await page.locator(".is-ahead").nth(3).evaluate(gap) > 3
    await fake.put(forecasted(document("a"), 30.0, ahead=()))
    await expect(page.locator(".percent-words")).to_have_text(re.compile(r"^about \d+ %\s*$"))
    await expect(page.locator(".steps")).to_have_count(0)
    await fake.put(document("b", steps=[step(1, "sync", "running")]))
    await page.goto(f"{fake.url}/#/jobs/b")
    await expect(page.locator(".percent-words")).to_have_text("40 % 0 of 1 step done so far · sync")
    await expect(page.locator(".outlook, .is-ahead")).to_have_count(0)
