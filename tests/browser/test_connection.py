"""The page shows the state of its connection, and since when it may be out of date."""

from __future__ import annotations

import re

from correlator.web import files
from tests.support.browser import expect
from tests.support.page_server import document, serving
from tests.support.slow_link import SlowLink

UUID = "e8f15a6d-c5f4-4d69-af72-194b96a0c7fb"


def status(page):
    return page.locator(".connection-state")


def banner(page):
    return page.locator(".banner")


async def test_the_header_shows_the_transport_and_the_lag_of_the_database(fake, page):
    fake.jobs[UUID] = document(UUID)
    await page.goto(fake.url)
    await expect(status(page)).to_have_text(re.compile("Live.*websocket · database up to date"))
    await expect(banner(page)).to_have_count(0)
    await fake.send(type="status", source="live", lag_seconds=2.34)
    await expect(status(page)).to_contain_text("database 2.3 s behind")


async def test_a_first_visit_takes_five_round_trips_and_two_files_and_the_next_four_and_one(fake, page):
    fake.jobs[UUID] = document(UUID)
    script = next(path for path, file in files().items() if file.is_hashed)
    async with SlowLink(fake.port).running() as link:
        await page.goto(f"http://127.0.0.1:{link.port}/")
        await expect(page.locator(".row")).to_be_visible()
        # A handshake, the page, its script, another handshake, the jobs.
        assert link.round_trips <= 5
        assert fake.served == [(200, "/"), (200, script)]
        await page.reload()
        await expect(page.locator(".row")).to_be_visible()
        assert fake.served[2:] == [(304, "/")]
        await page.goto("about:blank")
    # Its connections have ended meanwhile, so the page takes a handshake again.
    async with SlowLink(fake.port, port=link.port).running() as link:
        await page.goto(f"http://127.0.0.1:{link.port}/")
        await expect(page.locator(".row")).to_be_visible()
        assert link.round_trips <= 4
        assert fake.served[3:] == [(304, "/")]


async def test_an_outage_shows_its_time_stops_the_clocks_and_ends_without_a_reload(fake, page):
    fake.jobs[UUID] = document(UUID, ago=30)
    await page.goto(f"{fake.url}/#/jobs/{UUID}")
    await expect(status(page)).to_contain_text("Live")
    await page.evaluate("window.same = true")
    await fake.stop()
    await expect(status(page)).to_contain_text("Offline")
    await expect(banner(page)).to_contain_text(re.compile(r"Not connected.*as of \d\d:\d\d:\d\d.*Trying again"))
    await page.set_viewport_size({"width": 390, "height": 844})
    left = "e => e.getBoundingClientRect().left"
    assert await banner(page).locator(".icon").evaluate(left) < await banner(page).locator("b").first.evaluate(left)
    elapsed = await page.locator(".elapsed").inner_text()
    # The changed countdown shows that the page has rendered again.
    before = await banner(page).inner_text()
    await expect(banner(page)).not_to_have_text(before)
    assert await page.locator(".elapsed").inner_text() == elapsed

    fake.jobs[UUID] = document(UUID, "failed", error="during the outage")
    await fake.start()
    await expect(status(page)).to_contain_text("Live", timeout=15_000)
    await expect(banner(page)).to_have_count(0)
    await expect(page.locator(".failure")).to_contain_text("during the outage")
    assert await page.evaluate("window.same")


async def test_why_the_database_is_not_read_is_said_as_the_daemon_says_it_and_the_jobs_stay(fake, page):
    fake.jobs[UUID] = document(UUID)
    await page.goto(fake.url)
    await expect(status(page)).to_contain_text("Live")
    for source, error in (
        ("down", "the database cannot be reached"),
        ("stale", "log_events.attrs cannot be read: gone, or SELECT is not granted; correlator doctor shows the GRANT"),
    ):
        await fake.send(type="status", source=source, lag_seconds=12.0, error=error)
        await expect(status(page)).to_contain_text("Stale")
        await expect(banner(page)).to_contain_text(re.compile(f"Database: {error}\\. The page shows .* as of"))
    await expect(page.get_by_role("list", name="Jobs").get_by_role("listitem")).to_have_count(1)
    await fake.send(type="status", source="live", lag_seconds=0.0, error=None)
    await expect(banner(page)).to_have_count(0)


async def test_a_token_is_requested_stored_for_the_tab_and_sent_to_rest_too(page):
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
        await expect(page.get_by_text("The daemon answered")).to_be_visible()
        await field.fill("open sesame")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"vm-{UUID}")
        await expect(page.get_by_role("region", name="Log lines")).to_contain_text("secret")
        await expect(field).to_have_count(0)
        await page.reload()
        await expect(page.get_by_role("heading", level=1)).to_have_text(f"vm-{UUID}")
        assert await page.evaluate("Object.keys(localStorage).length") == 0


async def test_a_part_of_the_daemon_that_has_a_problem_is_named_until_it_has_none(fake, page):
    why = "the broker is too slow: 50,000 events and 12 states wait, the oldest for 1053 s"
    fake.parts = {
        "database": {"ok": False, "state": "stale", "error": "which the connection shows"},
        "tables": {"ok": False, "error": "which the connection shows"},
        "mqtt": {"ok": False, "error": why},
        "otlp": {"ok": True, "error": "an old one"},
    }
    fake.jobs[UUID] = document(UUID)
    await page.goto(fake.url)
    await expect(banner(page)).to_have_text(f"MQTT: {why}.")
    await expect(status(page)).to_contain_text("Live")
    behind = "log and tables have been read only up to 2026-01-01T00:00:00.000000Z"
    fake.parts = {"database": {"ok": False, "state": "live", "error": behind}, "mqtt": {"ok": True, "error": None}}
    await expect(banner(page)).to_have_text(f"Database: {behind}.")
    fake.parts["database"] = {"ok": True, "state": "live", "error": None}
    await expect(banner(page)).to_have_count(0)
