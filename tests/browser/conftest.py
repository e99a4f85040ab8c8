"""One Playwright, one Chromium without windows and one context for all tests, and a page for each test.

Playwright's driver is a process of Node: its start and end cost as much processor time as half of a page. It therefore
lives in an event loop that all tests of this folder share, until a test fails: the next one has a loop, a driver,
a connection and a context of its own. What pages of one context store differs by the port of their server.

Invariants: a page error, an error or a warning on the console, or a violation of the content security policy fails the
test. A test leaves neither a page nor a context nor a task behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.eventually import PATIENCE
from tests.support.page_server import PageServer, serving
from tests.support.servers import program

if TYPE_CHECKING:
    from tests.support.browser import Browser, BrowserContext, ConsoleMessage, Page, WebError

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
    """The URL of the DevTools of one Chromium. Its process group is killed at the end."""
    folder = tmp_path_factory.mktemp("chromium")
    port_file = folder / "DevToolsActivePort"
    command = [
        program("chromium-headless-shell"),
        *ARGUMENTS,
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (port_file.exists() and "\n" in port_file.read_text()):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "chromium does not write its port"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port_file.read_text().split()[0]}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


class SharedLoop:
    """The event loop of the tests, with the objects of Playwright, which belong to one loop.

    `folder`: for the temporary files of Playwright's driver, which may end before it has removed them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.runner = asyncio.Runner()
        self._driver = contextlib.AsyncExitStack()
        self._context: BrowserContext | None = None
        self._kept: set[asyncio.Task[Any]] = set()

    async def context(self, url: str) -> BrowserContext:
        """The context of all tests, in a connection to Chromium. Both are new if the driver or Chromium has gone."""
        from tests.support.browser import MILLISECONDS, async_playwright

        if self._context is None or self._context.browser is None or not self._context.browser.is_connected():
            await self._driver.aclose()
            earlier = asyncio.all_tasks()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TMPDIR", str(self._folder))
                playwright = await self._driver.enter_async_context(async_playwright())
            browser = await playwright.chromium.connect_over_cdp(url)
            self._driver.push_async_callback(browser.close)
            self._context = await browser.new_context(
                viewport={"width": 1280, "height": 800},
                timezone_id="UTC",
                locale="en-GB",
                reduced_motion="reduce",  # which takes most of a page's processor time: tests of motion ask for it
                permissions=["clipboard-read", "clipboard-write"],
            )
            self._context.set_default_timeout(MILLISECONDS)
            self._kept = asyncio.all_tasks() - earlier
        return self._context

    async def cancel_tasks(self) -> None:
        """Cancel the tasks that a test left, as the end of a loop does."""
        left = asyncio.all_tasks() - self._kept - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def close(self) -> None:
        try:
            self.runner.run(asyncio.wait_for(self._driver.aclose(), PATIENCE))
        finally:
            self.runner.close()


FAILED = pytest.StashKey[bool]()
"""True after a test that failed, be it in its set-up or at its end."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.session.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def loops() -> Iterator[list[SharedLoop]]:
    """The loop of the next test, or none."""
    loops: list[SharedLoop] = []
    yield loops
    for loop in loops:
        loop.close()


@pytest.fixture
def shared_loop(
    loops: list[SharedLoop], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SharedLoop:
    """The loop of the test before, unless that failed: what a failure left is closed, whatever state it is in."""
    failed = request.session.stash.get(FAILED, False)
    if failed and loops:
        with contextlib.suppress(Exception):
            loops.pop().close()
    request.session.stash[FAILED] = False
    if not loops:
        loops.append(SharedLoop(tmp_path_factory.mktemp("playwright")))
    return loops[0]


@pytest.fixture
def _function_scoped_runner(shared_loop: SharedLoop) -> Iterator[asyncio.Runner]:
    """Overrides what pytest-asyncio runs tests and fixtures with: its `loop_scope` would split them from `database`."""
    yield shared_loop.runner
    shared_loop.runner.run(shared_loop.cancel_tasks())


@pytest.fixture
async def context(shared_loop: SharedLoop, chromium: str) -> AsyncIterator[BrowserContext]:
    """That of all tests, without a page of an earlier one."""
    context = await shared_loop.context(chromium)
    yield context
    for page in context.pages:
        await page.close()


@pytest.fixture
async def browser(context: BrowserContext) -> AsyncIterator[Browser]:
    """For a test that needs a context of its own."""
    assert context.browser is not None
    earlier = [*context.browser.contexts]
    yield context.browser
    for left in set(context.browser.contexts) - set(earlier):
        await left.close()


@pytest.fixture
async def fake() -> AsyncIterator[PageServer]:
    async with serving() as correlator:
        yield correlator


@pytest.fixture
async def page(context: BrowserContext) -> AsyncIterator[Page]:
    """Any error or warning on the console of a page of this test fails it, except those of a lost connection."""
    errors: list[str] = []

    def note_error(error: WebError) -> None:
        errors.append(str(error.error))

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            errors.append(f"{message.text} {message.location['url']}")

    context.on("weberror", note_error)
    context.on("console", note_message)
    yield await context.new_page()
    context.remove_listener("weberror", note_error)
    context.remove_listener("console", note_message)
    expected = (
        "ERR_CONNECTION_REFUSED",
        "ERR_CONNECTION_RESET",
        "WebSocket connection to",
        "401 (Unauthorized)",
        "ERR_INCOMPLETE",
        "ERR_EMPTY_RESPONSE",
        f"/api/v1/failures/{'0' * 12}",  # 404: a failure that no job has
        "/favicon.ico",  # which a browser asks for where it shows a download as text, without a page that names its own
    )
    assert [text for text in errors if not any(part in text for part in expected)] == []
