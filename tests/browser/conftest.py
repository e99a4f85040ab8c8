"""A real Chromium, one for all tests, and for each a page of its own that may not say anything on its console.

What always holds: a page error, a console error or a violation of the content security policy fails the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.fake import FakeCorrelator, serving

if TYPE_CHECKING:
    from tests.browser.driver import Browser, BrowserContext, Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the one Chromium of all tests is driven from. It is ended by its process group, its children with it."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "chromium is not installed: make test says which packages bring the servers"
    folder = tmp_path_factory.mktemp("chromium")
    told = folder / "DevToolsActivePort"
    command = [program, *ARGUMENTS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not (told.exists() and "\n" in told.read_text()):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "chromium does not say its port"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """That Chromium, with nothing left in it of the test before: contexts end with the test."""
    from tests.browser.driver import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium)
        yield browser
        for context in browser.contexts[1:]:  # the first is the browser's own
            await context.close()


@pytest.fixture
async def fake() -> AsyncIterator[FakeCorrelator]:
    async with serving() as correlator:
        yield correlator


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id="UTC", locale="en-GB")
    context.set_default_timeout(5000)
    yield context
    await context.close()


@pytest.fixture
async def page(context: BrowserContext) -> AsyncIterator[Page]:
    """What it says on its console is an error, but for what a lost connection makes the browser say."""
    page = await context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    yield page
    expected = (
        "ERR_CONNECTION_REFUSED",
        "WebSocket connection to",
        "401 (Unauthorized)",
        "ERR_INCOMPLETE",
        "ERR_EMPTY_RESPONSE",
    )
    assert [text for text in said if not any(part in text for part in expected)] == []
