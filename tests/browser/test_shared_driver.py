"""The tests of this folder share a driver and an event loop: what one of them breaks or leaves stays its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import tests.support.browser  # noqa: F401  # skips this file where Playwright cannot run
from tests.support.paths import REPOSITORY

TESTS = """
import asyncio
import os
import signal
from pathlib import Path


async def test_that_leaves_a_context_a_page_and_a_task(browser, context):
    await browser.new_context()
    await context.new_page()
    browser.left = asyncio.create_task(asyncio.sleep(3600))


async def test_in_the_same_connection(browser, context):
    assert browser.left.cancelled()
    assert browser.contexts[1:] == [context]
    assert context.pages == []


async def test_with_an_error_of_its_page(page):
    async with page.expect_event("pageerror"):
        await page.evaluate("setTimeout(() => { throw new Error('of the page') })")


async def test_whose_driver_ends(browser, page):
    assert not hasattr(browser, "left")  # after a failure
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    (driver,) = (pid for pid in children if "run-driver" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(int(driver), signal.SIGKILL)
    await page.title()


async def test_with_another_driver(page):
    assert await page.evaluate("1 + 1") == 2
"""


def test_what_a_test_breaks_or_leaves_is_its_own(tmp_path: Path):
    (tmp_path / "test_made_up.py").write_text(TESTS)
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=60", "-rA"]
    done = subprocess.run(
        [*command, f"--rootdir={REPOSITORY}", f"--config-file={REPOSITORY / 'pyproject.toml'}", str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    summary = [line.split() for line in done.stdout.splitlines() if "test_made_up.py::" in line]
    results = {(line[1].rpartition("::")[2], line[0]) for line in summary if line[0] in {"PASSED", "FAILED", "ERROR"}}
    assert {name for name, result in results if result != "PASSED"} == {
        "test_with_an_error_of_its_page",
        "test_whose_driver_ends",
    }, done.stdout
    assert len({name for name, _ in results}) == TESTS.count("async def test_"), done.stdout
    assert "of the page" in done.stdout
