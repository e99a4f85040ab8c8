"""Playwright, for the tests in tests/browser. A file that imports it is skipped on Python 3.11."""

from __future__ import annotations

import itertools
import sys
from typing import Any

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
from tests.support.paths import REPOSITORY

AXE = REPOSITORY / "tests/browser/vendor/axe.min.js"

COLUMNS = {
    ".column-job": (".row-subject", "left"),
    ".column-appliance": (".row-appliance", "left"),
    ".column-what": (".row-progress", "left"),
    ".column-start": (".row-started", "right"),
    ".column-duration": (".row-elapsed", "right"),
}
HEADS = [*COLUMNS, ".column-end"]
"""One stands beside another one, above the same column."""

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


async def findings(page: Any, *rules: str) -> list[tuple[str, str, Any]]:
    """The serious findings about accessibility by these rules of axe, else by all.

    The page was given `AXE` as an init script, and has no content security policy.
    """
    only = {"runOnly": list(rules)} if rules else {}
    result = await page.evaluate("options => axe.run(document, options)", {"resultTypes": ["violations"], **only})
    return [
        (each["impact"], each["id"], [node["html"][:160] for node in each["nodes"][:3]])
        for each in result["violations"]
        if each["impact"] in ("serious", "critical")
    ]


async def misplaced_heads(page: Page) -> list[str]:
    """The heads that do not begin, or end, with their column, if that is visible; and those that cover another one."""
    places: dict[str, dict[str, float]] = await page.evaluate(
        """(names) => Object.fromEntries(names.flatMap((name) => {
            const { left, right, width } = document.querySelector(name)?.getBoundingClientRect() ?? { width: 0 };
            return width === 0 ? [] : [[name, { left, right }]];
        }))""",
        [*HEADS, *(column for column, _ in COLUMNS.values())],
    )
    heads = sorted((name for name in HEADS if name in places), key=lambda name: places[name]["left"])
    beside = [
        head
        for head, (column, side) in COLUMNS.items()
        if head in places and column in places and abs(places[head][side] - places[column][side]) >= 1
    ]
    covering = [after for before, after in itertools.pairwise(heads) if places[before]["right"] > places[after]["left"]]
    return beside + covering
