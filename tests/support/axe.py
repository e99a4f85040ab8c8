"""Accessibility of a page by axe."""

from __future__ import annotations

from typing import Any

from tests.support.paths import REPOSITORY

AXE = REPOSITORY / "tests/browser/vendor/axe.min.js"


async def findings(page: Any, *rules: str) -> list[tuple[str, str, Any]]:
    """The serious findings of these rules, else of all.

    The page was given `AXE` as an init script, and has no content security policy.
    """
    only = {"runOnly": list(rules)} if rules else {}
    result = await page.evaluate("options => axe.run(document, options)", {"resultTypes": ["violations"], **only})
    return [
        (each["impact"], each["id"], [node["html"][:160] for node in each["nodes"][:3]])
        for each in result["violations"]
        if each["impact"] in ("serious", "critical")
    ]
