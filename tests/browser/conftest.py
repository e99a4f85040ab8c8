"""One Playwright and one or two Chromiums for all tests, and a page for each test.

It is Chromium without windows, whose page costs a quarter of the processor time. `IN_A_WINDOW` names the files whose
tests run in the program that users have; $CHROMIUM names one program for all of them.

Playwright's driver is a process of Node: its start and end cost as much processor time as half of a page. It therefore
lives in an event loop that all tests of this folder share, until a test fails: the next one has a loop, a driver
and a connection of its own.

Invariants: a page error, an error or a warning on the console, or a violation of the content security policy fails the
test. A test leaves neither a context nor a task behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.eventually import PATIENCE
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


IN_A_WINDOW = ("test_gateway.py", "test_gui_guide.py")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The URL of the DevTools of a program, which the first call starts."""
    with contextlib.ExitStack() as running:
        yield functools.cache(lambda program: running.enter_context(started(program, tmp_path_factory.mktemp(program))))


@contextlib.contextmanager
def started(name: str, folder: Path) -> Iterator[str]:
    """The URL of the DevTools of one Chromium. Its process group is killed at the end."""
    program = os.environ.get("CHROMIUM") or shutil.which(name)
    assert program is not None, f"{name} is not installed: make test names the packages"
    port_file = folder / "DevToolsActivePort"
    command = [program, *ARGUMENTS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
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
        process.wait(10)


class SharedLoop:
    """The event loop of the tests, with the objects of Playwright, which belong to one loop."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self._driver = contextlib.AsyncExitStack()
        self._browser: Browser | None = None
        self._url = ""
        self._kept: set[asyncio.Task[Any]] = set()

    async def browser(self, url: str) -> Browser:
        """The connection to Chromium. A new one if it is another one's, or if the driver or Chromium has gone."""
        from tests.support.browser import async_playwright

        if self._browser is None or not self._browser.is_connected() or self._url != url:
            await self._driver.aclose()
            earlier = asyncio.all_tasks()
            playwright = await self._driver.enter_async_context(async_playwright())
            self._browser = await playwright.chromium.connect_over_cdp(url)
            self._url = url
            self._kept = asyncio.all_tasks() - earlier
        return self._browser

    async def cancel_tasks(self) -> None:
        """Cancel the tasks that a test left, as the end of a loop does."""
        left = asyncio.all_tasks() - self._kept - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def close(self) -> None:
        try:
            self.runner.run(asyncio.wait_for(self._driver.aclose(), 10))
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
def shared_loop(loops: list[SharedLoop], request: pytest.FixtureRequest) -> SharedLoop:
    """The loop of the test before, unless that failed: what a failure left is closed, whatever state it is in."""
    failed = request.session.stash.get(FAILED, False)
    if failed and loops:
        with contextlib.suppress(Exception):
            loops.pop().close()
    request.session.stash[FAILED] = False
    if not loops:
        loops.append(SharedLoop())
    return loops[0]


@pytest.fixture
def _function_scoped_runner(shared_loop: SharedLoop) -> Iterator[asyncio.Runner]:
    """Overrides what pytest-asyncio runs tests and fixtures with: its `loop_scope` would split them from `database`."""
    yield shared_loop.runner
    shared_loop.runner.run(shared_loop.cancel_tasks())


@pytest.fixture
async def browser(
    shared_loop: SharedLoop, chromium: Callable[[str], str], request: pytest.FixtureRequest
) -> AsyncIterator[Browser]:
    """A Chromium without the contexts of earlier tests."""
    program = "chromium" if request.path.name in IN_A_WINDOW else "chromium-headless-shell"
    browser = await shared_loop.browser(chromium(program))
    yield browser
    for context in browser.contexts[1:]:  # the first is the browser's own
        await context.close()


@pytest.fixture
async def fake() -> AsyncIterator[PageServer]:
    async with serving() as correlator:
        yield correlator


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Its pages do not move, which takes most of their processor time: tests of motion ask for it."""
    from tests.support.browser import MILLISECONDS

    context = await browser.new_context(
        viewport={"width": 1280, "height": 800}, timezone_id="UTC", locale="en-GB", reduced_motion="reduce"
    )
    context.set_default_timeout(MILLISECONDS)
    yield context
    await context.close()


@pytest.fixture
async def page(context: BrowserContext) -> AsyncIterator[Page]:
    """Any error or warning on its console fails the test, except those of a lost connection."""
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    wrong = ("error", "warning")
    page.on("console", lambda m: errors.append(f"{m.text} {m.location['url']}") if m.type in wrong else None)
    yield page
    expected = (
        "ERR_CONNECTION_REFUSED",
        "ERR_CONNECTION_RESET",
        "WebSocket connection to",
        "401 (Unauthorized)",
        "ERR_INCOMPLETE",
        "ERR_EMPTY_RESPONSE",
        "/favicon.ico",  # which a browser asks for where it shows a download as text, without a page that names its own
    )
    assert [text for text in errors if not any(part in text for part in expected)] == []
