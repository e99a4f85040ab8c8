"""Playwright, for the tests of this folder. A file that imports it is skipped where it cannot be relied on."""

from __future__ import annotations

import sys

import pytest

# Not sys.version_info: mypy would take what follows for unreachable.
if sys.hexversion < 0x030C0000:
    pytest.skip(
        "a defect of CPython 3.11 makes tests fail at random where Playwright runs; 3.12 and later do them",
        allow_module_level=True,
    )

from playwright.async_api import (  # type: ignore[import-not-found, unused-ignore]  # only there from 3.12 on
    Browser,
    BrowserContext,
    Page,
    async_playwright,
    expect,
)

__all__ = ["Browser", "BrowserContext", "Page", "async_playwright", "expect"]
