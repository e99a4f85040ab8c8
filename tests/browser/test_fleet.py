"""The page of a gateway: the appliances of a fleet, their health, and the jobs of each."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from tests.support.browser import AXE, expect, findings, heading, misplaced_heads, names, rows
from tests.support.eventually import eventually
from tests.support.page_server import appliance, document, serving_fleet, stamp, step

STATUSES = ("failed", "running", "pending", "completed", "cancelled")


def chip(page, name):
    return page.get_by_role("group", name="Appliance").get_by_role("button", name=name)


@pytest.fixture
async def fleet():
    async with serving_fleet(appliance("dc1"), appliance("dc2"), appliance("dc3")) as gateway:
        yield gateway


async def test_jobs_name_their_appliance_which_chips_filter_and_a_head_groups(fleet, page):
    await fleet.put(
        document("a", ago=10, instance="dc2"),
        document("b", "failed", ago=20, instance="dc1", error="full"),
        document("c", ago=30, instance="dc1"),
        document("d", "failed", ago=40, instance="dc2", error="full"),
    )
    await page.goto(fleet.url)
    await expect(chip(page, "dc3")).to_be_visible()  # which has no job
    await expect(rows(page)).to_have_count(4)
    assert await names(page) == ["vm-b", "vm-d", "vm-a", "vm-c"]  # equal failures of two appliances are two rows
    assert await page.locator(".row-appliance").all_inner_texts() == ["dc1", "dc2", "dc2", "dc1"]
    for width in (1024, 1280):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await misplaced_heads(page) == []
    await page.get_by_role("button", name="Appliance", exact=True).click()
    await expect(page.locator(".is-first-of-group")).to_have_count(2)
    assert await names(page) == ["vm-b", "vm-c", "vm-d", "vm-a"]
    await chip(page, "dc2").click()
    await expect(rows(page)).to_have_count(2)
    await expect(page.get_by_role("button", name="Failed")).to_contain_text("1")
    await expect(chip(page, "dc1")).to_contain_text("2")  # not filtered by the choice itself
    assert page.url.endswith("#/?instance=dc2&sort=appliance")
    await page.set_viewport_size({"width": 360, "height": 740})
    await expect(rows(page).first.locator(".row-where")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_silent_appliance_has_a_banner_and_the_time_of_its_jobs_stands(fleet, page):
    await fleet.put(document("a", ago=600, instance="dc1"), document("b", ago=600, instance="dc2"))
    fleet.instances[0] = appliance("dc1", online=False, last_seen=stamp(300))
    fleet.instances[1] = appliance("dc2", database="down", error="connection refused")
    fleet.instances[2] = appliance("dc3", database="stale", lag_seconds=42.0, error="job_steps cannot be read")
    await page.goto(fleet.url)
    await expect(chip(page, "dc1")).to_contain_text("silent for 5 min")
    await expect(chip(page, "dc2")).to_contain_text("database not read")
    await expect(chip(page, "dc3")).to_contain_text("database not read in full")
    await expect(chip(page, "dc3")).to_have_attribute("title", re.compile("for 42 s.*job_steps cannot be read"))
    await expect(page.locator(".silent-banner")).to_contain_text("The collector of dc1 is silent for 5 min")
    await expect(rows(page).filter(has_text="vm-a").locator(".row-elapsed")).to_have_text("5 min 00 s")
    await expect(rows(page).filter(has_text="vm-b").locator(".row-elapsed")).to_have_text(re.compile("^10 min"))
    await page.goto(f"{fleet.url}/#/jobs/a")
    await expect(page.locator(".elapsed")).to_have_text("5 min 00 s")
    await page.goto(f"{fleet.url}/#/i/dc2/jobs/b")
    await expect(heading(page)).to_have_text("vm-b")
    await expect(page.locator(".silent-banner")).to_have_count(0)  # it is about another appliance
    await page.goto(fleet.url)
    await page.get_by_role("button", name="Health").click()
    table = page.get_by_role("table", name="Health of the appliances")
    await expect(table.get_by_role("row", name="dc2")).to_contain_text("connection refused")
    await expect(table.get_by_role("row", name="dc3")).to_contain_text("1.2.3")
    # The jobs of the others are not old because of it.
    await page.goto(fleet.url)
    await fleet.send(type="status", source="stale", lag_seconds=30.0)
    await expect(page.locator(".connection-state")).to_contain_text("Live")
    await expect(page.locator(".banner")).to_have_count(1)
    elapsed = rows(page).filter(has_text="vm-b").locator(".row-elapsed")
    before = await elapsed.inner_text()
    await expect(elapsed).not_to_have_text(before)  # its time goes on
    fleet.instances[0] = appliance("dc1")
    await expect(page.locator(".silent-banner")).to_have_count(0)
    fleet.instances[:] = [one | {"online": False} for one in fleet.instances]
    why = "dc1: the collector is offline, and 2 more"
    await fleet.send(type="status", source="down", lag_seconds=31.0, error=why)
    await expect(page.locator(".connection-state")).to_contain_text("Stale")
    await expect(page.get_by_text(f"Cluster: {why}.")).to_be_visible()


async def test_the_address_of_a_job_names_its_appliance_and_opens_the_one_there(fleet, page, context):
    """Two appliances have a job with the same external ID."""
    ids = ["unified-live-failover-pgtest2-1758553933"]
    steps = [step(1, "snapshot")]
    await fleet.put(
        document("here", "completed", external_ids=ids, instance="dc1", metadata={"vm_name": "one"}, steps=steps),
        document("there", external_ids=ids, instance="dc2", metadata={"vm_name": "two"}),
    )
    line = {"event_id": 7, "level": "INFO", "message": "done", "step_id": None, "attrs": {}, "at": stamp(40)}
    fleet.events["here"] = [line]
    await page.goto(fleet.url)
    await rows(page).filter(has_text="one").get_by_role("link").click()
    await expect(heading(page)).to_have_text("one")
    assert page.url == f"{fleet.url}/#/i/dc1/jobs/here"
    await expect(page.locator(".job-what")).to_contain_text("on dc1")
    await expect(page.locator(".log")).to_contain_text("done")
    assert fleet.paths == ["/ws", "/i/dc1/ws"]
    await page.get_by_role("button", name="Copy link", exact=True).click()
    await expect(page.locator(".job-tools .copied")).to_be_visible()
    link = await page.evaluate("navigator.clipboard.readText()")
    assert link == f"{fleet.url}/#/i/dc1/jobs/{ids[0]}"
    await page.get_by_role("link", name="All jobs", exact=True).click()
    await expect(rows(page)).to_have_count(2)
    await eventually(lambda: fleet.connections == 1)  # that of the appliance ends

    other = await context.new_page()
    sockets: set[str] = set()
    other.on("websocket", lambda socket: sockets.add(urlsplit(socket.url).path))
    await other.goto(link)
    await expect(heading(other)).to_have_text("one")
    assert sockets == {"/i/dc1/ws"}
    await other.goto(f"{fleet.url}/#/jobs/{ids[0]}")
    await expect(heading(other)).to_have_text("two")  # of all appliances, the newest
    await other.goto(f"{fleet.url}/#/i/dc2/jobs/nobody")
    await expect(other.get_by_text("No job of dc2 has this ID yet")).to_be_visible()


async def test_an_address_of_an_appliance_that_is_not_known_says_so_until_it_comes(fleet, page):
    await fleet.put(document("x", instance="dc9"))
    await page.goto(f"{fleet.url}/#/i/dc9/jobs/x")
    await expect(heading(page)).to_have_text("No appliance is named dc9")
    assert await page.get_by_role("link", name="Search on all appliances").get_attribute("href") == "#/jobs/x"
    await expect(page.locator(".connection-state, .banner")).to_have_count(0)  # the server is there
    fleet.instances.append(appliance("dc9"))
    await expect(heading(page)).to_have_text("vm-x")


async def test_the_search_asks_the_chosen_appliances_and_enter_opens_the_job_on_its_own(fleet, page):
    old = [document(f"old-{n}", "completed", ago=9e5, instance=n, error="no volume") for n in ("dc1", "dc2")]
    fleet.archive = [old]
    await page.goto(f"{fleet.url}/#/?instance=dc2")
    box = page.locator("#search")
    await box.fill("volume")
    await expect(rows(page)).to_have_count(1)
    assert [search.split("?")[1] for search in fleet.searches] == ["text=volume&limit=100&instance=dc2"]
    await box.press("Enter")
    await expect(
        page.get_by_role("heading", name="Searching for this ID").or_(
            page.get_by_role("heading", name="Waiting for this ID")
        )
    ).to_be_visible()
    assert page.url == f"{fleet.url}/#/i/dc2/jobs/old-dc2"


async def test_a_vm_has_a_page_on_its_appliance_and_one_on_all(fleet, page):
    jobs = [document(f"on-{n}", instance=n, metadata={"vm_name": "pgtest2"}) for n in ("dc1", "dc2")]
    await fleet.put(*jobs)
    fleet.archive = [jobs]
    await page.goto(f"{fleet.url}/#/i/dc1/jobs/on-dc1")
    await page.get_by_role("link", name="All jobs of pgtest2").click()
    assert page.url == f"{fleet.url}/#/i/dc1/entities/pgtest2"
    runs = page.locator(".entity .runs tbody tr")
    await expect(runs).to_have_count(1)
    await page.get_by_role("link", name="pgtest2 on all appliances").click()
    await expect(runs).to_have_count(2)
    assert sorted(await page.locator(".run-where").all_inner_texts()) == ["dc1", "dc2"]


async def test_axe_finds_nothing_serious_in_a_fleet_with_its_health_open(fleet, browser):
    jobs = [document(f"{n}-{status}", status, error="full", instance=n) for n in ("dc1", "dc2") for status in STATUSES]
    await fleet.put(*jobs)
    fleet.instances[0] = appliance("dc1", online=False, last_seen=stamp(300))
    fleet.instances[1] = appliance("dc2", database="down", error="connection refused")
    fleet.instances.extend(appliance(f"dc{n}") for n in range(4, 20))
    context = await browser.new_context(color_scheme="light", bypass_csp=True)
    page = await context.new_page()
    await page.add_init_script(path=AXE)
    await page.goto(f"{fleet.url}/#/?sort=appliance&instance=dc1,dc2")
    await expect(page.locator(".silent-banner")).to_be_visible()
    await expect(page.get_by_role("group", name="Appliance").get_by_role("button")).to_have_count(2)
    await page.get_by_role("button", name="and 17 more appliances").click()
    await expect(page.get_by_role("table", name="Health of the appliances").get_by_role("row")).to_have_count(20)
    assert await findings(page) == []
    await page.emulate_media(color_scheme="dark")
    assert await findings(page, "color-contrast") == []
