"""The page of a real gateway, which reads a real NATS server."""

from __future__ import annotations

import asyncio
import time

from tests.support.browser import expect, rows
from tests.support.cluster import connected
from tests.support.gateways import running
from tests.support.stream_writer import StreamWriter, job

GUI_ID = "unified-live-failover-pgtest2-1758553933"


def chip(page, name):
    return page.get_by_role("group", name="Appliance").get_by_role("button", name=name)


async def renewed(*writers: StreamWriter) -> None:
    while True:
        for writer in writers:
            await writer.alive()
        await asyncio.sleep(0.5)


async def test_the_page_of_a_gateway_shows_a_fleet_and_a_job_of_either_appliance(nats, context):
    page, errors = await context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))  # no collector answers for log lines: 503
    now = time.time_ns() // 1000
    async with connected(nats.url) as connection:
        dc1, dc2 = StreamWriter(connection, "dc1"), StreamWriter(connection, "dc2")
        await dc1.begin()
        beating = asyncio.create_task(renewed(dc1, dc2))
        try:
            async with running(nats.url) as gateway:
                await page.goto(gateway.url)
                await expect(chip(page, "dc2")).to_be_visible()  # before there is a job
                await dc1.put(job("a", started_at=now - 60_000_000, ids=[GUI_ID]))
                await dc2.put(job("b", started_at=now - 9_000_000, ids=[GUI_ID]))
                await expect(rows(page)).to_have_count(2)
                assert await page.locator(".row-appliance").all_inner_texts() == ["dc2", "dc1"]
                await chip(page, "dc1").click()
                await expect(rows(page)).to_have_count(1)
                await rows(page).get_by_role("link").click()
                await expect(page.locator(".job-what")).to_contain_text("on dc1")
                assert page.url == f"{gateway.url}/#/i/dc1/jobs/a"
                await page.goto(f"{gateway.url}/#/i/dc1/jobs/{GUI_ID}")
                await expect(page.locator(".job-what")).to_contain_text("on dc1")
                await page.goto(f"{gateway.url}/#/jobs/{GUI_ID}")
                await expect(page.locator(".job-what")).to_contain_text("on dc2")  # the newest of all
                await page.goto(f"{gateway.url}/i/dc2")
                await expect(rows(page)).to_have_count(1)
                assert page.url == f"{gateway.url}/i/dc2/"
                await dc2.put(job("c", started_at=now))
                await expect(rows(page)).to_have_count(2)
                await page.get_by_role("link", name="All appliances").click()
                await expect(rows(page)).to_have_count(3)
                beating.cancel()
                await expect(page.locator(".silent-banner")).to_contain_text(
                    "The collectors of 2 appliances are silent"
                )
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
