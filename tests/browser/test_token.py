"""The page of a daemon or a gateway that requires tokens: each view waits for the right one, and then works."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.appliance import Appliance
from tests.support.browser import BrowserContext, Page, expect, rows
from tests.support.cluster import connected
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.gateways import gateway_process
from tests.support.stream_writer import StreamWriter, job

Shows = Callable[[Page], Any]
Views = Mapping[str, tuple[str, Shows]]
"""The address of each view, and what waits until it is shown."""


async def lists(page: Page) -> None:
    await expect(rows(page)).to_have_count(1)


async def heads(page: Page) -> None:
    await expect(page.locator(".job-state")).to_contain_text("Running")


async def logs(page: Page) -> None:
    await heads(page)
    await expect(page.locator(".line.is-target")).to_contain_text("a secret line")


async def runs(page: Page) -> None:
    await expect(page.locator(".runs tbody tr")).to_have_count(1)


VIEWS = {"list": ("#/?q=gui-1", lists), "line": ("#/jobs/gui-1/log/{line}", logs), "entity": ("#/entities/ctx-1", runs)}
FLEET_VIEWS = {
    "fleet": ("", lists),
    "job of an appliance": ("#/i/dc1/jobs/gui-1", heads),
    "page of an appliance": ("i/dc1/", lists),
}


class Tokens:
    """The file of the tokens of a process."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens"
        self.file.write_text("first\n")

    async def change(self, daemon: Daemon, token: str) -> None:
        """Replace the only token, and wait until the process applies it."""
        self.file.write_text(f"{token}\n")
        daemon.hang_up()
        headers = {"Authorization": f"Bearer {token}"}

        async def is_applied() -> bool:
            return (await daemon.get("/api/v1/jobs", headers=headers))[0] == 200

        await eventually(is_applied)


async def enter(page: Page, token: str) -> None:
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Connect").click()


async def refuse(page: Page, token: str) -> None:
    """Enter a token that is wrong: the form is there again, empty."""
    await page.evaluate("document.querySelector('form.token').dataset.before = 'yes'")
    await enter(page, token)
    await expect(page.locator("form.token:not([data-before])")).to_contain_text("The daemon answered")
    await expect(page.get_by_label("Token")).to_have_value("")
    for waiting in ("Loading the jobs", "Searching for this ID"):  # nothing is under way until a token is accepted
        await expect(page.get_by_text(waiting)).to_have_count(0)


async def is_live(page: Page, shows: Shows) -> None:
    await shows(page)
    await expect(page.locator("form.token")).to_have_count(0)
    await expect(page.locator(".connection-state")).to_contain_text(re.compile("Live.*websocket"))


async def check(context: BrowserContext, url: str, views: Views, daemon: Daemon, tokens: Tokens) -> None:
    """Each view in its tab: a wrong token, the right one, and another after it has been revoked, without a reload."""
    pages, errors = {view: await context.new_page() for view in views}, []
    for view, page in pages.items():
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{url}/{views[view][0]}")
    for view, page in pages.items():
        await expect(page.get_by_role("heading", name="A token is needed")).to_be_visible()
        await refuse(page, "wrong")
        await page.evaluate("window.same = true")
        await enter(page, "first")
        await is_live(page, views[view][1])

    await tokens.change(daemon, "second")
    for view, page in pages.items():
        await expect(page.get_by_role("heading", name="A token is needed")).to_be_visible()
        await refuse(page, "first")
        await enter(page, "second")
        await is_live(page, views[view][1])
        assert await page.evaluate("window.same")

        await page.reload()
        await is_live(page, views[view][1])
        assert await page.evaluate("localStorage.length") == 0
    assert errors == []


async def test_each_view_works_after_the_right_token_also_after_a_wrong_and_a_revoked_one(
    appliance: Appliance, database, context: BrowserContext, page, tmp_path: Path
):
    """One at which the right token is entered at once is followed by live changes."""
    job_id = await appliance.job("gui-1", context_id="ctx-1")
    line = await appliance.log("a secret line", job_id=job_id)
    tokens = Tokens(tmp_path)
    daemon = Daemon(tmp_path, database__url=database.url, http__tokens_file=tokens.file)
    try:
        await daemon.start()
        views = {view: (address.format(line=line), shows) for view, (address, shows) in VIEWS.items()}
        await check(context, daemon.url, views, daemon, tokens)
        pages = [page, await context.new_page()]
        for each, view in zip(pages, ("list", "line"), strict=True):
            await each.goto(f"{daemon.url}/{views[view][0]}")
            await enter(each, "second")
            await is_live(each, views[view][1])
        await appliance.end(job_id, "failed", "seen live")
        for each in pages:
            await expect(each.locator("main")).to_contain_text("seen live")
    finally:
        await daemon.close()


@contextlib.asynccontextmanager
async def alive(writer: StreamWriter) -> AsyncIterator[None]:
    async def renewed() -> None:
        while True:
            await writer.alive()
            await asyncio.sleep(0.5)

    task = asyncio.create_task(renewed())
    try:
        yield
    finally:
        task.cancel()


async def test_each_view_of_a_gateway_works_after_the_right_token_also_after_a_wrong_one(
    nats, context: BrowserContext, tmp_path: Path
):
    tokens = Tokens(tmp_path)
    async with connected(nats.url) as connection:
        writer = StreamWriter(connection, "dc1")
        await writer.begin()
        await writer.put(job("a", started_at=time.time_ns() // 1000 - 60_000_000, ids=["gui-1"]))
        started = gateway_process(tmp_path / "gateway", nats.url, CORRELATOR_HTTP__TOKENS_FILE=str(tokens.file))
        async with alive(writer), started as gateway:
            await check(context, gateway.url, FLEET_VIEWS, gateway, tokens)
