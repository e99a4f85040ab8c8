"""Playwright, for the tests in tests/browser. A file that imports it is skipped on Python 3.11."""

from __future__ import annotations

import sys

import pytest

# Not sys.version_info: mypy would consider the rest unreachable.
if sys.hexversion < 0x030C0000:
    pytest.skip(
        "a defect of CPython 3.11 makes tests with Playwright fail at random; 3.12 and later run them",
        allow_module_level=True,
    )

from playwright.async_api import (  # type: ignore[import-not-found, unused-ignore]  # installed from 3.12 on
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    WebError,
    async_playwright,
    expect,
)

from tests.support.eventually import PATIENCE

MILLISECONDS = PATIENCE * 1000
"""How long to wait for a page and for what it should show."""

expect.set_options(timeout=MILLISECONDS)

__all__ = [
    "MILLISECONDS",
    "Browser",
    "BrowserContext",
    "ConsoleMessage",
    "Locator",
    "Page",
    "WebError",
    "async_playwright",
    "expect",
]


def rows(page: Page) -> Locator:
    """The rows of the list."""
    return page.get_by_role("list", name="Jobs").get_by_role("listitem")


def lines(page: Page) -> Locator:
    """The lines of a log, or those that a search of all logs has found."""
    return page.get_by_role("region", name="Log lines").get_by_role("listitem")


def heading(page: Page) -> Locator:
    return page.get_by_role("heading", level=1)


async def names(page: Page) -> list[str]:
    """What the rows of the list begin with: the names of VMs, and the number of older failures."""
    return list(await rows(page).locator(":is(.row-subject, .row-older) b").all_inner_texts())
