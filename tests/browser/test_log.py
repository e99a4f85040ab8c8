"""The log of a job on its page: a million lines, a search, one step, the link to one line, times in UTC, the keys."""

from __future__ import annotations

import asyncio
import datetime
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support import page_server
from tests.support.browser import expect, lines
from tests.support.eventually import eventually
from tests.support.page_server import document, step

UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
BEGAN = datetime.datetime(2026, 11, 25, 22, 30, tzinfo=datetime.UTC)


def line(event_id: int, message: str | None = None, level: str = "INFO", **more: Any) -> dict[str, Any]:
    at = BEGAN + datetime.timedelta(milliseconds=event_id)
    return page_server.line(event_id, message, level, at=at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), **more)


def pane(page):
    return page.get_by_role("region", name="Log lines")


def text(page, what: str):
    return lines(page).filter(has_text=re.compile(rf"{what}(?!\d)"))


@pytest.fixture
def long_log(fake):
    """A running job with 20,000 lines, of which every 1,000th is a warning of the second step."""
    fake.jobs[UUID] = document(UUID, steps=[step(1, "copy", "running"), step(2, "attach", "running")])
    fake.events[UUID] = [line(n, step_id=3002, level="WARN") if n % 1000 == 0 else line(n) for n in range(1, 20_001)]
    return fake


async def test_a_million_lines_cost_a_few_pages_and_as_many_nodes_as_are_in_sight(fake, page):
    """The history answers as the daemon does, at once or later; lines are made when they are asked for."""
    last, asked = 1_000_000, list[dict[str, str]]()
    fake.jobs[UUID] = document(UUID)

    async def history(route):
        query = {name: values[0] for name, values in parse_qs(urlsplit(route.request.url).query).items()}
        asked.append(query)
        if "before" in query:
            end = min(int(query["before"]), last + 1)
            first = max(1, end - int(query["limit"]))
            more: dict[str, Any] = {"next_after": None, "next_before": first if first > 1 else None, "more": first > 1}
        else:
            first = int(query.get("from") or query.get("after") or 0) or 1
            end = min(first + int(query["limit"]), last + 1)
            more = {"next_after": str(end), "more": end <= last}
        await asyncio.sleep(0.1 * (len(asked) % 2))
        await route.fulfill(json={"events": [line(n) for n in range(first, end)], **more})

    await page.route("**/events?*", history)
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    nodes = 0
    for key, expected in (("End", 1_000_000), ("Home", 1), ("", 500_000), ("End", 1_000_000)):
        if key:
            await pane(page).focus()
            await page.keyboard.press(key)
        else:
            await page.evaluate("address => { location.hash = address }", f"#/jobs/{UUID}/log/{expected}")
        await expect(text(page, f"line {expected}")).to_be_in_viewport()
        nodes = max(nodes, await pane(page).locator("*").count())
    assert nodes < 1_000
    assert len(asked) < 16, asked
    await fake.log(UUID, line(last + 1))
    await expect(text(page, f"line {last + 1}")).to_be_visible()


async def test_what_is_in_sight_stays_there_while_earlier_lines_come(long_log, page):
    await page.goto(f"{long_log.url}/#/jobs/{UUID}")
    await expect(text(page, "line 20000")).to_be_visible()
    await pane(page).evaluate("e => { e.scrollTop = 900 }")
    top = """e => {
        const edge = e.getBoundingClientRect().top + 1;
        const first = [...e.querySelectorAll('li')].find((li) => li.getBoundingClientRect().bottom > edge);
        return first.getBoundingClientRect().top <= edge ? Number(first.dataset.id) : 0;
    }"""  # 0 while the lines that have come into sight are not drawn yet
    before = await eventually(lambda: pane(page).evaluate(top))
    await pane(page).evaluate("e => { e.scrollTop = 700 }")  # within the distance at which the page before is read

    await eventually(lambda: has_grown(page))
    assert 0 <= before - await eventually(lambda: pane(page).evaluate(top)) <= 12


async def shift_after(page, drawn: str) -> float:
    """
    Pixels by which what the user has scrolled to, 300 pixels up, is moved by lines that are drawn before the event of
    that scroll, which comes with the next frame. `drawn`: JavaScript that calls `scroll()` and draws in the same task.
    """
    script = """e => new Promise((resolve) => {
        const top = (of) => of.getBoundingClientRect().top;
        const y = (id) => top(e.querySelector(`[data-id="${id}"]`)) - top(e);
        const scroll = () => {
            e.scrollTop -= 300;
            const seen = [...e.querySelectorAll("li")].map((li) => li.dataset.id).find((id) => y(id) >= 0);
            const before = y(seen);
            requestAnimationFrame(() => requestAnimationFrame(() => resolve(y(seen) - before)));
        };
        DRAWN
    })"""
    return float(await pane(page).evaluate(script.replace("DRAWN", drawn)))


async def test_a_scroll_stays_although_something_is_drawn_before_its_event(long_log, page):
    """The choice of how lines wrap, while the end is followed and while not; and earlier lines."""
    await page.goto(f"{long_log.url}/#/jobs/{UUID}")
    await expect(text(page, "line 20000")).to_be_visible()
    for _ in ("followed", "not followed"):
        assert abs(await shift_after(page, "scroll(); document.querySelector('.log-tools button').click()")) < 2
        await expect(page.get_by_role("button", name="Paused")).to_be_visible()
    shift = await shift_after(
        page,
        """const read = Response.prototype.json;
        Response.prototype.json = async function () {
            const body = await read.call(this);
            if (new URL(this.url).searchParams.has("before")) {
                Response.prototype.json = read;
                scroll();
            }
            return body;
        };
        e.scrollTop = 700;""",  # within the distance at which the page before is read
    )
    assert abs(shift) < 2
    assert await has_grown(page)


async def has_grown(page) -> bool:
    """True once the lines before those in sight have come: what is in sight is then far from the begin."""
    return bool(await pane(page).evaluate("e => e.scrollTop > 3000"))


async def test_earlier_lines_come_although_somebody_scrolled_there_during_another_request(long_log, page):
    over = asyncio.Event()

    async def history(route):
        if "before" not in parse_qs(urlsplit(route.request.url).query):
            await over.wait()
        await route.continue_()

    await page.route("**/events?*", history)
    await page.goto(f"{long_log.url}/#/jobs/{UUID}")
    await expect(text(page, "line 20000")).to_be_visible()
    await pane(page).evaluate("e => { e.scrollTop = 700 }")
    await expect(page.get_by_role("button", name="Paused")).to_be_visible()
    over.set()
    await eventually(lambda: has_grown(page))


async def test_a_link_to_a_line_shows_it_marked_among_its_neighbours(long_log, page):
    await page.goto(f"{long_log.url}/#/jobs/{UUID}/log/7000")
    target = page.locator(".line.is-target")
    await expect(target).to_contain_text("line 7000")
    await expect(target).to_be_in_viewport()
    await expect(text(page, "line 7001")).to_be_visible()
    await pane(page).focus()
    await page.keyboard.press("j")
    await expect(target).to_contain_text("line 7001")
    await expect(page).to_have_url(f"{long_log.url}/#/jobs/{UUID}/log/7001")
    await page.get_by_role("button", name="Copy link to line", exact=True).click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == f"{long_log.url}/#/jobs/{UUID}/log/7001"
    await expect(page.get_by_role("button", name="Copy link", exact=True)).to_have_count(1)


async def test_a_link_to_a_line_of_a_lower_level_shows_all_levels_and_a_wrong_one_says_so(fake, page):
    fake.jobs[UUID] = document(UUID)
    fake.events[UUID] = [line(1), line(2, level="DEBUG"), line(3)]
    await page.goto(f"{fake.url}/#/jobs/{UUID}/log/2")
    await expect(page.locator(".line.is-target")).to_contain_text("line 2")
    await expect(page.get_by_label("From level")).to_have_value("DEBUG")
    await page.goto(f"{fake.url}/#/jobs/{UUID}/log/99")
    await expect(page.locator(".log-notes")).to_have_text("Line 99 is not among these lines")


async def test_a_search_marks_its_lines_and_their_link_shows_them_among_the_others(long_log, page):
    long_log.events[UUID][11_000]["attrs"] = {"volume": "Vol-<7>"}
    await page.goto(f"{long_log.url}/#/jobs/{UUID}")
    await page.get_by_role("searchbox", name="Search the log").fill("vol-<7")
    await expect(lines(page)).to_have_count(1)
    await expect(page.locator("mark")).to_have_text("Vol-<7")
    await long_log.log(UUID, line(20_001), line(20_002, "another VOL-<7>"))
    await expect(lines(page)).to_have_count(2)
    await lines(page).first.locator(".line-at").click()
    await expect(page.locator(".line.is-target")).to_contain_text("line 11001")
    await expect(text(page, "line 11000")).to_be_visible()
    await expect(page.get_by_role("searchbox", name="Search the log")).to_have_value("")


async def test_what_is_chosen_of_a_log_is_in_the_address_and_restored_from_it(long_log, page, context):
    await page.goto(f"{long_log.url}/#/jobs/{UUID}")
    await page.get_by_role("button", name="attach").click()
    await expect(lines(page)).to_have_count(20)
    await long_log.log(UUID, line(20_001), line(20_002, step_id=3002))
    await expect(lines(page)).to_have_count(21)
    assert "step=3002" in str(await page.get_by_role("link", name="Download").get_attribute("href"))
    await page.get_by_label("From level").select_option("WARN")
    await page.get_by_role("searchbox", name="Search the log").fill("line 1")
    address = f"{long_log.url}/#/jobs/{UUID}/log?level=WARN&step=3002&q=line+1"
    await expect(page).to_have_url(address)

    other = await context.new_page()
    await other.goto(address)
    await expect(other.get_by_role("searchbox", name="Search the log")).to_have_value("line 1")
    await expect(other.get_by_label("From level")).to_have_value("WARN")
    await expect(other.get_by_role("combobox", name="Step")).to_have_value("3002")
    await expect(other.get_by_role("button", name="attach")).to_have_attribute("aria-pressed", "true")
    await other.get_by_role("searchbox", name="Search the log").fill("")
    await expect(other).to_have_url(address.replace("&q=line+1", ""))
    await other.get_by_role("button", name="attach").click()
    await expect(other.get_by_role("combobox", name="Step")).to_have_value("")


async def test_lines_that_go_while_they_scroll_are_no_error(long_log, page):
    """The scroll event of an element comes with the next frame, also if the element has gone before."""
    await page.goto(f"{long_log.url}/#/jobs/{UUID}")
    await expect(text(page, "line 20000")).to_be_visible()
    scrolled_and_gone = """e => new Promise((resolve) => {
        e.addEventListener("scroll", () => setTimeout(() => resolve(!e.isConnected)));
        e.scrollTop -= 100;
        const level = document.querySelector(".log select");
        level.value = "WARN";
        level.dispatchEvent(new Event("change", { bubbles: true }));
    })"""
    assert await pane(page).evaluate(scrolled_and_gone)
    await expect(lines(page)).to_have_count(20)


async def test_lines_wrap_times_have_a_zone_as_the_user_chooses_and_keys_are_listed(fake, browser):
    context = await browser.new_context(timezone_id="Europe/Berlin", locale="en-GB")
    page = await context.new_page()
    fake.jobs[UUID] = document(UUID, started_at="2026-11-25T22:30:00.000000Z")
    fake.events[UUID] = [line(1, "word " * 400)]
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(page.locator(".line-at")).to_contain_text("23:30:00")
    started = page.get_by_title("2026-11-25 22:30:00.000000 UTC")
    await expect(started).to_contain_text("23:30:00")
    is_one_row = "e => e.querySelector('li').getBoundingClientRect().height < 40"
    assert not await pane(page).evaluate(is_one_row)
    await page.get_by_role("button", name="Wrap").click()
    await eventually(lambda: pane(page).evaluate(is_one_row))
    await page.get_by_role("button", name="CET").click()
    await expect(page.locator(".line-at")).to_contain_text("22:30:00")
    await expect(started).to_contain_text("22:30:00")
    await page.reload()
    await expect(page.get_by_role("button", name="Wrap")).to_have_attribute("aria-pressed", "false")
    await expect(page.get_by_role("button", name="UTC")).to_be_visible()
    await expect(page.locator(".line-at")).to_contain_text("22:30:00")
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    await expect(page).to_have_url(f"{fake.url}/#/jobs/{UUID}")
    await page.keyboard.press("l")
    await expect(pane(page)).to_be_focused()
