"""One Chromium for all tests, and a page for each test.

Invariant: a page error, a console error or a violation of the content security policy fails the test.
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

from tests.support.page_server import PageServer, serving

if TYPE_CHECKING:
    from tests.support.browser import Browser, BrowserContext, Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",  # of several pages all but one would have little of a busy processor
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-features=LocalNetworkAccessChecks",  # pages that a test answers for a server have no address
]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the DevTools of the Chromium of all tests. Its process group is killed at the end."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program is not None, "chromium is not installed: make test names the packages"
    folder = tmp_path_factory.mktemp("chromium")
    port_file = folder / "DevToolsActivePort"
    command = [program, *ARGUMENTS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not (port_file.exists() and "\n" in port_file.read_text()):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "chromium does not write its port"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port_file.read_text().split()[0]}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """That Chromium without the contexts of earlier tests."""
    from tests.support.browser import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(chromium)
        yield browser
        for context in browser.contexts[1:]:  # the first is the browser's own
            await context.close()


@pytest.fixture
async def fake() -> AsyncIterator[PageServer]:
    async with serving() as correlator:
        yield correlator


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    from tests.support.browser import PATIENCE

    context = await browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id="UTC", locale="en-GB")
    context.set_default_timeout(PATIENCE)
    yield context
    await context.close()


@pytest.fixture
async def page(context: BrowserContext) -> AsyncIterator[Page]:
    """Any error on its console fails the test, except those of a lost connection."""
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(f"{m.text} {m.location['url']}") if m.type == "error" else None)
    yield page
    expected = (
        "ERR_CONNECTION_REFUSED",
        "WebSocket connection to",
        "401 (Unauthorized)",
        "ERR_INCOMPLETE",
        "ERR_EMPTY_RESPONSE",
        "/favicon.ico",  # which a browser asks for where it shows a download as text, without a page that names its own
    )
    assert [text for text in errors if not any(part in text for part in expected)] == []
