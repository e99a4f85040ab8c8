"""Finding a job: the search beyond memory, the order of the list, failures, and the page of one VM or context."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from tests.support.browser import expect, heading, lines, misplaced_heads, names, rows
from tests.support.eventually import eventually
from tests.support.page_server import document, failed, forecasted, line

DAY = 86_400.0
GUI_ID = "unified-live-failover-pgtest2-1758553933"


async def test_a_search_goes_on_in_the_database_and_says_how_far_it_has_come(fake, page):
    await fake.put(document("live"))
    old = [
        document(f"old-{n}", "completed", ago=n * DAY, error=error) for n, error in ((3, "no such volume"), (9, None))
    ]
    fake.archive = [[old[0]], [], [old[1]]]
    await page.goto(fake.url)
    await page.locator("#search").fill("volume")
    await expect(rows(page)).to_have_count(2)
    assert await names(page) == ["vm-old-3", "vm-old-9"]
    await expect(page.locator(".beyond")).to_contain_text("All jobs are searched. 2 jobs from the database.")
    why = ["error: no such volume", "found in a step or an ID"]
    await expect(page.locator(".row-subject .soft")).to_contain_text(why)
    await page.set_viewport_size({"width": 360, "height": 740})  # too narrow for a column of starts
    await expect(page.locator(".row-day").first).to_be_visible()
    await page.get_by_role("button", name="Failed").click()
    await expect(rows(page)).to_have_count(0)
    await page.get_by_role("button", name="Failed").click()
    await page.locator("#search").fill("")
    await expect(rows(page)).to_have_count(1)
    await expect(page.locator(".beyond")).to_have_count(0)


async def test_enter_opens_an_exact_or_unknown_id_and_else_goes_to_the_first_row(fake, page):
    await fake.put(document("a", external_ids=[GUI_ID]), document("b", "failed", external_ids=[f"{GUI_ID}0"]))
    fake.archive = [[], [document("old", "failed", ago=40 * DAY)]]
    await page.goto(fake.url)
    box = page.locator("#search")
    await box.fill(GUI_ID)
    await expect(rows(page)).to_have_count(2)
    for width in (360, 1280):
        await page.set_viewport_size({"width": width, "height": 740})
        assert await box.evaluate("e => e.scrollWidth - e.clientWidth") <= 0, "it has room for an ID of the GUI"
    await box.press("Enter")
    await expect(heading(page)).to_have_text("vm-a")
    assert page.url == f"{fake.url}/#/jobs/{GUI_ID}"
    await page.goto(fake.url)
    await box.fill("vm-")
    await box.press("Enter")
    await expect(page.locator("a:focus")).to_contain_text("vm-b")
    await box.fill("vm-old")
    await box.press("Enter")
    await expect(page).to_have_url(f"{fake.url}/#/jobs/old")
    await page.goto(fake.url)
    constructed = GUI_ID.replace("pgtest2", "pgtest3")  # which is followed also if lines have it
    fake.archive, fake.found_lines = [], [[found_line(1, "web", f"begins {constructed}")]]
    for unknown, number in ((constructed, 1), ("rollback-SVR 2019/Prod", 0)):
        await box.fill(unknown)
        await expect(lines(page).get_by_role("link")).to_have_count(number)
        await box.press("Enter")
        await expect(page.get_by_role("heading", name="Waiting for this ID")).to_be_visible()
        assert page.url == f"{fake.url}/#/jobs/{quote(unknown, safe='')}"
        await page.goto(fake.url)
        fake.found_lines = []
    await box.fill("rollback-SVR 2019/Prod")
    await page.get_by_role("link", name="Follow").click()
    await expect(page.get_by_role("heading", name="Waiting for this ID")).to_be_visible()


def found_line(event_id: int, job_id: str | None, message: str, *, ago: float = 60.0, **more: Any) -> dict[str, Any]:
    return line(event_id, message, ago=ago, job_id=job_id) | {"vm_name": None, "operation": None} | more


async def test_a_text_of_the_log_leads_to_the_line_and_not_to_an_id_that_has_it_by_chance(fake, page):
    await fake.put(document("a503", metadata={"vm_name": "web"}), document("b"))
    fake.events["b"] = [line(n) for n in range(1, 1_000)]
    fake.events["b"][400] |= {"message": "HTTP 503 from the hypervisor", "level": "DEBUG"}
    old = found_line(9, "old", "HTTP/503", ago=9 * DAY, vm_name="vm-old", operation="migrate", level="ERROR")
    nobody = found_line(10, None, "m", ago=8 * DAY, attrs={"code": "HTTP-503"})
    fake.found_lines = [[], [fake.events["b"][400] | {"job_id": "b"}], [nobody, old]]
    await page.goto(fake.url)
    box = page.locator("#search")
    await box.fill("503")
    found = lines(page)
    await expect(found).to_have_count(3)
    await expect(page.locator(".beyond-logs")).to_have_text("All logs are searched: 3 lines.")
    assert await found.locator("mark").all_inner_texts() == ["503"] * 3
    await expect(found.nth(1)).to_contain_text("of no job")
    await expect(found.nth(1).get_by_role("link")).to_have_count(0)
    await expect(found.nth(2)).to_contain_text("vm-old migrate")
    await page.get_by_role("button", name="Only log lines 3").click()
    await expect(rows(page)).to_have_count(0)
    await expect(page).to_have_url(f"{fake.url}/#/?q=503&in=log")
    await page.get_by_role("button", name="Only log lines 3").click()
    await expect(rows(page)).to_have_count(1)
    await box.press("Enter")
    await expect(page).to_have_url(f"{fake.url}/#/jobs/b/log/401?level=DEBUG")
    await expect(page.locator(".line.is-target")).to_contain_text("HTTP 503 from the hypervisor")
    await expect(page.locator(".line.is-target")).to_be_in_viewport()


async def test_a_search_of_the_logs_ends_with_another_text_and_rests_after_a_page_of_lines(fake, page):
    fake.found_lines = [[], *([found_line(1_000 - 60 * n - i, "b", "x") for i in range(60)] for n in range(4))]
    await page.goto(fake.url)
    box = page.locator("#search")
    await box.fill("timeout")
    of_logs = page.locator(".beyond-logs")
    await expect(of_logs).to_contain_text("60 % of the logs are searched: 120 lines so far. Searched back to")
    assert [query.get("cursor") for query in fake.sought] == [None, "1", "2"]
    await page.get_by_role("button", name="Search the logs on").click()
    await expect(of_logs).to_contain_text("All logs are searched: 240 lines.")
    fake.found_lines = [[], []]
    fake.pause_lines = True
    await box.fill("other")
    await eventually(lambda: fake.sought[-1]["text"] == "other")
    await box.fill("others")
    await eventually(lambda: fake.given_up == ["other"])
    fake.pause_lines = False
    await expect(of_logs).to_have_text("All logs are searched: no line.")
    assert [query["text"] for query in fake.sought[-2:]] == ["others"] * 2


async def test_a_search_of_the_logs_stops_where_only_an_appliance_that_is_away_is_left(fake, page):
    fake.found_lines, fake.away = [[], [found_line(9, "b", "timeout")]], "dc2: no collector is connected"
    await page.goto(fake.url)
    await page.locator("#search").fill("timeout")
    await expect(page.locator("p.tone-warn")).to_have_text("Lines may be missing: dc2: no collector is connected.")
    search_on = page.get_by_role("button", name="Search the logs on")
    await expect(search_on).to_be_visible()
    assert [query.get("cursor") for query in fake.sought] == [None, "1"]
    fake.found_lines, fake.away = [[], []], None
    await search_on.click()
    await expect(page.locator(".beyond-logs")).to_have_text("All logs are searched: 1 line.")


async def test_a_text_is_completed_by_names_of_vms(fake, page):
    await fake.put(*(document(f"pg{n}") for n in range(12)), document("web"))
    await page.goto(fake.url)
    box, options = page.locator("#search"), page.locator("#names option")
    await box.fill("VM-W")
    assert await options.evaluate_all("all => all.map(one => one.value)") == ["vm-web"]
    await box.fill("vm-")
    await expect(options).to_have_count(10)
    await box.fill("vm-web")
    await expect(options).to_have_count(0)


async def test_a_period_from_a_day_to_a_day_is_searched_and_kept_in_the_address(fake, page):
    await fake.put(document("now"))
    at = datetime(2026, 10, 31, 12, tzinfo=UTC)
    fake.archive = [[document("old", "completed", started_at=f"{at:%Y-%m-%dT%H:%M:%S.%fZ}")]]
    await page.goto(fake.url)
    await page.get_by_label("Period").select_option("From … to …")
    await page.get_by_label("From", exact=True).fill("2026-10-30")
    await page.get_by_label("to", exact=True).fill("2026-10-31")
    await expect(rows(page)).to_have_count(1)
    assert await names(page) == ["vm-old"]
    assert page.url == f"{fake.url}/#/?from=2026-10-30&to=2026-10-31"
    period = {"since": "2026-10-30T00:00:00.000Z", "until": "2026-11-01T00:00:00.000Z"}
    assert fake.searched[-1] == {**period, "limit": "100"}
    await page.locator("#search").fill("vm-o")
    await expect(rows(page)).to_have_count(1)
    await eventually(lambda: fake.searched[-1] == {**period, "limit": "100", "text": "vm-o"})
    await page.get_by_label("Period").select_option("All")
    await eventually(lambda: fake.searched[-1] == {"limit": "100", "text": "vm-o"})


async def test_the_heads_of_the_columns_choose_an_order_that_the_address_keeps(fake, page):
    await fake.put(
        document("long", "completed", ago=500, took=400),
        document("short", "failed", ago=100, took=5),
        forecasted(document("late-end", ago=50), 40.0, left=900, most=1000),
        forecasted(document("early-end", ago=60), 40.0, left=60, most=70),
    )
    await page.goto(fake.url)
    await expect(rows(page)).to_have_count(4)
    for width in (1024, 1280):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await misplaced_heads(page) == []
    heads = page.get_by_role("group", name="Sort by")
    await heads.get_by_role("button", name="Started").click()
    assert await names(page) == ["vm-late-end", "vm-early-end", "vm-short", "vm-long"]
    await expect(heads.get_by_role("button", name="Started, newest first")).to_have_attribute("aria-pressed", "true")
    await heads.get_by_role("button", name="Forecast end").click()
    assert (await names(page))[:2] == ["vm-early-end", "vm-late-end"]
    assert page.url == f"{fake.url}/#/?sort=end"
    await heads.get_by_role("button", name="Urgency").click()
    assert (await names(page))[0] == "vm-short"
    assert page.url == f"{fake.url}/#/"


async def test_an_id_that_was_pasted_with_what_stood_around_it_opens_its_job(fake, page):
    job_id = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"
    fake.jobs[job_id] = document(job_id)
    for pasted in (f'"{job_id}",', f"job_id={job_id}", f"{fake.url}/api/v1/jobs/{job_id}/events"):
        await page.goto(f"{fake.url}/#/")
        await page.locator("#search").fill(pasted)
        await expect(page.locator("#search")).to_have_value(job_id)
        await page.locator("#search").press("Enter")
        await expect(page).to_have_url(f"{fake.url}/#/jobs/{job_id}")


async def test_a_number_that_is_in_an_id_by_chance_opens_no_job(fake, page):
    fake.jobs["a-4711-b"] = document("a-4711-b", external_ids=[], metadata={"vm_name": "web"})
    await page.goto(f"{fake.url}/#/")
    await page.locator("#search").fill("4711")
    await page.locator("#search").press("Enter")
    await expect(page.get_by_text("All logs are searched: no line.")).to_be_visible()
    await expect(page).to_have_url(f"{fake.url}/#/?q=4711")


async def test_equal_failures_are_one_row_and_seen_ones_are_last_also_after_a_reload(fake, page):
    """As many failures are stored as a daemon has jobs."""
    marked = [f"{number:036}" for number in range(19_989)]
    storage = f"localStorage['correlator.seen'] ??= JSON.stringify({json.dumps(marked)})"
    await page.add_init_script(storage)
    alike = [failed(f"f{n}", f"write /data/{n}: no space left on device", ago=100 + n) for n in range(9)]
    await fake.put(*alike, document("run", ago=500), failed("g", "connection refused", ago=300))
    await fake.put(failed(marked[0], "seen before", ago=200))
    await page.goto(fake.url)
    await expect(rows(page)).to_have_count(4)
    await expect(page).to_have_title("10 failed, 1 running – correlator")
    await expect(rows(page).first).to_contain_text("+ 8 equal failures")
    await page.get_by_role("button", name="Mark 10 failures as seen").click()
    for _ in range(2):
        await expect(rows(page)).to_have_count(12)
        assert (await names(page))[0] == "vm-run"
        await expect(page).to_have_title("1 running – correlator")
        await page.reload()
    await fake.put(failed("new", "write /data/1: no space left on device", ago=5, took=1))
    await expect(rows(page).first).to_contain_text("vm-new")
    await page.get_by_role("button", name="Mark 1 failure as seen").click()
    await page.get_by_role("button", name="12 failures seen: show first again").click()
    await expect(rows(page).first).to_contain_text("+ 9 equal failures")


async def test_a_vm_has_a_page_with_its_outcomes_durations_and_trend(fake, page):
    vm: dict[str, Any] = {"metadata": {"vm_name": "pgtest2"}, "context_id": "ctx-1"}
    fake.archive = [
        [document("c1", "completed", ago=2 * DAY, took=90, **vm)],
        [document("f1", "failed", ago=3 * DAY, took=5, error="no such volume", **vm)],
        [document("c2", "completed", ago=4 * DAY, took=60, **vm)],
    ]
    await fake.put(document("run", ago=30, **vm), document("other"))
    await page.goto(f"{fake.url}/#/jobs/run")
    await page.get_by_role("link", name="All jobs of pgtest2").click()
    assert page.url == f"{fake.url}/#/entities/pgtest2"
    await expect(heading(page)).to_have_text("pgtest2")
    jobs = page.get_by_role("table").get_by_role("row")
    await expect(jobs).to_have_count(5)
    await expect(page.locator(".strip-job")).to_have_count(4)
    await expect(page.locator(".trends")).to_contain_text("2 of 4 runs completed, 1 failed")
    await expect(page.locator(".trends span b")).to_have_css("display", "inline")
    await expect(page.locator(".trends")).to_contain_text(
        "the newest took 1 min 30 s, usually 1 min 00 s: 50 % longer than usual"
    )
    await expect(page.get_by_role("link", name="ctx-1")).to_have_attribute("href", "#/entities/ctx-1")
    await expect(page.get_by_text("These are all its jobs.")).to_be_visible()
    await fake.put(document("run", "completed", ago=60, took=60, **vm))
    await expect(jobs.nth(1)).to_contain_text("Completed")
    await jobs.nth(3).get_by_role("link").click()
    assert page.url == f"{fake.url}/#/jobs/f1"
