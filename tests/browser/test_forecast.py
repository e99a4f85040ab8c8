"""What the page shows of a forecast: how much time is left, the steps ahead, late and overdue jobs."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

import pytest

from tests.support.browser import expect
from tests.support.eventually import eventually
from tests.support.page_server import document, forecasted, step

AHEAD = [("copy", 1.0, 90.0), ("verify", 0.4, 30.0), ("boot", 0.97, 20.0)]
DAY = 86_400.0
CLOCK = r"\d\d:\d\d"


def job(job_id: str, percent: float = 40.0, *, ago: float = 60.0, **more: Any) -> dict[str, Any]:
    steps = [step(1, "validation", ago=ago, took=ago / 2), step(2, "sync", "running", ago=ago / 2)]
    return forecasted(document(job_id, ago=ago, steps=steps), percent, **more)


def known(fake, *jobs) -> None:
    fake.jobs.update({job["job_id"]: job for job in jobs})


def row(page, name: str):
    return page.get_by_role("list", name="Jobs").get_by_role("listitem").filter(has_text=f"vm-{name}")


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


async def test_a_row_says_how_much_time_is_left_and_what_that_rests_on(fake, page):
    known(fake, job("a"), job("rough", state="rough", runs=4), document("none"))
    await page.goto(fake.url)
    left = row(page, "a").locator(".row-left")
    await expect(left).to_have_text(re.compile(rf"^\s*about 3 min left \(by {CLOCK}\)\s*$"))
    await expect(left).to_have_attribute("title", re.compile(rf"^From 37 earlier runs; 9 of 10 ended by {CLOCK}\.$"))
    await expect(row(page, "a")).to_contain_text("sync")
    await expect(row(page, "rough")).to_contain_text("perhaps 3 min left")
    await expect(row(page, "none").locator(".row-left")).to_have_count(0)


async def test_a_row_has_room_for_the_words_of_a_rough_estimate(fake, page):
    known(fake, job("rough", state="rough", runs=4, left=5.0, most=9.0))
    await page.goto(fake.url)
    left = row(page, "rough").locator(".row-left")
    await expect(left).to_contain_text("perhaps a few seconds left")
    assert await left.evaluate("e => e.scrollWidth <= e.clientWidth"), "its end is cut off"


async def test_a_row_on_a_phone_has_its_status_again_once_its_job_has_failed(fake, page):
    known(fake, job("a"), job("b"), job("c"))  # so that its row moves
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.goto(fake.url)
    await expect(row(page, "b").locator(".row-left")).to_be_visible()  # which takes the place of the status
    status = row(page, "b").locator(".row-status")
    await expect(status).to_have_css("position", "absolute")
    await fake.put(document("b", "failed", error="no space left"))
    await expect(status).to_contain_text("Failed")
    await expect(status).to_have_css("position", "static")


async def test_an_end_on_another_day_has_its_date(fake, page):
    known(fake, job("a", left=2 * DAY, most=4 * DAY))
    await page.goto(fake.url)
    await expect(row(page, "a").locator(".row-left")).to_contain_text(
        re.compile(rf"about 2 d left \(by \d+ \w+, {CLOCK}\)")
    )


@pytest.mark.parametrize("view", ["list", "job"])
async def test_a_bar_moves_between_documents_and_never_goes_back(fake, page, view):
    await page.emulate_media(reduced_motion="no-preference")
    known(fake, job("a", 40.0, ago=10.0, left=10.0, most=14.0))
    await page.goto(fake.url if view == "list" else f"{fake.url}/#/jobs/a")
    bar = page.locator(".bar-done")
    await expect(bar).to_be_visible()
    shown = [await share(bar)]
    for number in range(50):
        if number in (25, 40):  # the new document says less than the bar shows
            await fake.put(job("a", 42.0, ago=10.0, left=10.0, most=14.0))
        await asyncio.sleep(0.1)
        shown.append(await share(bar))
    assert all(after >= before - 0.2 for before, after in itertools.pairwise(shown)), shown
    assert shown[20] > shown[0] + 3, shown
    # It moves smoothly, not once a second. How many of the places between are painted is up to the machine.
    await expect(bar).to_have_css("transition", re.compile(r"^transform 1s linear"))


async def test_the_bar_of_an_overdue_job_stands_still(fake, page):
    await page.emulate_media(reduced_motion="no-preference")
    known(fake, job("a", 70.0, state="overdue", left=10.0, most=20.0))
    await page.goto(fake.url)
    await expect(row(page, "a")).to_contain_text("Overdue: longer than 37 earlier runs")
    before = await share(page.locator(".bar-done"))
    await asyncio.sleep(1.5)
    assert await share(page.locator(".bar-done")) == before == pytest.approx(70, abs=0.5)
    await expect(row(page, "a")).to_contain_text("70 %")


async def test_with_reduced_motion_a_bar_jumps_to_its_place(fake, page):
    known(fake, job("a", 20.0))
    await page.goto(fake.url)
    bar = page.locator(".bar-done")
    await expect(bar).to_be_visible()
    await fake.put(job("a", 80.0))
    await expect(row(page, "a")).to_contain_text("80 %")
    assert await share(bar) > 79


async def test_late_and_overdue_jobs_are_marked_and_can_be_filtered(fake, page, context):
    known(fake, job("usual"), job("late", state="late"), job("overdue", state="overdue"), document("failed", "failed"))
    await page.goto(fake.url)
    rows = page.get_by_role("list", name="Jobs").get_by_role("listitem")
    await expect(rows).to_have_count(4)
    await expect(row(page, "late")).to_contain_text("Late: about 3 min left")
    chips = page.get_by_role("group", name="Forecast").get_by_role("button")
    assert [" ".join(text.split()) for text in await chips.all_inner_texts()] == ["Late 1", "Overdue 1"]
    await chips.nth(1).click()
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("vm-overdue")
    await chips.nth(0).click()
    await expect(rows).to_have_count(2)
    assert page.url == f"{fake.url}/#/?forecast=late%2Coverdue"

    other = await context.new_page()
    await other.goto(page.url)
    await expect(other.get_by_role("button", name="Late")).to_have_attribute("aria-pressed", "true")
    await expect(other.get_by_role("list", name="Jobs").get_by_role("listitem")).to_have_count(2)
    await fake.put(job("usual", state="late"))
    await expect(rows).to_have_count(3)


async def test_the_page_of_a_job_shows_the_steps_ahead_and_a_band_for_its_end(fake, page):
    known(fake, job("a", ahead=AHEAD))
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


async def test_the_progress_bar_says_the_same_to_a_screen_reader(fake, page):
    known(fake, job("a", ahead=AHEAD))
    await page.goto(f"{fake.url}/#/jobs/a")
    words = rf"about \d+ %, 1 of about 4 steps done, sync, about 3 min left \(by {CLOCK}\), From 37 earlier runs; .*\."
    await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuetext", re.compile(f"^{words}$"))
    await fake.put(job("a", state="late", ahead=AHEAD))
    await expect(page.get_by_role("status").last).to_have_text("vm-a: Late")
    await expect(page.locator(".job-state")).to_contain_text("Late: longer at this point than 9 of 10 earlier runs")
    await expect(page).to_have_title(re.compile(r"^late, \d+ % – vm-a – correlator$"))


async def test_a_job_without_a_step_shows_those_ahead(fake, page):
    known(fake, forecasted(document("a"), 3.0, ahead=[*AHEAD, ("status", 0.9, 1.0)]))
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(page.locator(".steps .is-ahead")).to_have_count(5)
    await expect(page.locator(".percent-words")).to_contain_text("0 of about 3 steps done")
    await expect(page.locator(".step-took").nth(3)).to_have_text("a few seconds")  # beside its bar, not on it
    box = "e.querySelector('.%s').getBoundingClientRect()"
    gap = f"e => {box % 'step-took'}.left - {box % 'lane'}.right"
    assert await page.locator(".is-ahead").nth(3).evaluate(gap) > 3


async def test_nothing_is_said_of_steps_of_a_job_whose_earlier_runs_had_none(fake, page):
    known(fake, forecasted(document("a"), 30.0, ahead=()))
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(page.locator(".percent-words")).to_have_text(re.compile(r"^about \d+ %\s*$"))
    await expect(page.locator(".steps")).to_have_count(0)


async def test_an_ended_job_is_compared_with_earlier_runs(fake, page):
    compared = {"typical_seconds": 80.0, "runs": 37, "percentile": 88.0}
    known(fake, job("a", 90.0, ahead=AHEAD))
    await page.goto(f"{fake.url}/#/jobs/a")
    await expect(page.locator(".is-ahead")).to_have_count(4)
    await fake.put(document("a", "completed", ago=96, took=96, compared_with=compared))
    said = "Took 1 min 36 s, typical 1 min 20 s; slower than 88 % of 37 earlier runs."
    await expect(page.locator(".outlook")).to_have_text(said)
    await expect(page.locator(".is-ahead")).to_have_count(0)
    await page.goto(f"{fake.url}/#/")
    await expect(row(page, "a").locator(".row-elapsed")).to_have_attribute("title", said)


async def test_the_bar_of_a_job_that_fails_stays_where_it_was(fake, page):
    known(fake, job("a", 40.0, ago=10.0, left=10.0, most=14.0))
    await page.goto(f"{fake.url}/#/jobs/a")
    bar = page.locator(".bar-done")

    async def moved() -> bool:
        return await share(bar) > 50

    await eventually(moved)
    failed = document("a", "failed", error="no space left")
    await fake.put(failed | {"progress": failed["progress"] | {"percent": 40.0, "basis": "history"}})
    await expect(page.locator(".failure")).to_be_visible()
    assert await share(bar) > 50


async def test_without_a_forecast_the_page_is_as_before(fake, page):
    steps = [step(1, "sync", "running")]
    known(fake, document("a", steps=steps), document("done", "completed"))
    await page.goto(fake.url)
    await expect(row(page, "a")).to_contain_text("40 %")
    await expect(page.get_by_role("group", name="Forecast")).to_have_count(0)
    await row(page, "a").get_by_role("link").click()
    await expect(page.locator(".percent-words")).to_have_text("40 % 0 of 1 step done so far · sync")
    for part in (".outlook", ".is-ahead", ".row-left"):
        await expect(page.locator(part)).to_have_count(0)


async def test_what_the_page_says_of_time_follows_the_daemons_clock(fake, page):
    await page.add_init_script("const real = Date.now.bind(Date); Date.now = () => real() - 3_600_000;")
    known(fake, job("a"))
    await page.goto(fake.url)
    await expect(row(page, "a").locator(".row-left")).to_contain_text("about 3 min left")
