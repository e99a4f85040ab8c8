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
    Locator,
    Page,
    async_playwright,
    expect,
)

from tests.support.eventually import PATIENCE

MILLISECONDS = PATIENCE * 1000
"""How long to wait for a page and for what it should show."""

expect.set_options(timeout=MILLISECONDS)

__all__ = ["MILLISECONDS", "Browser", "BrowserContext", "Locator", "Page", "async_playwright", "expect"]
