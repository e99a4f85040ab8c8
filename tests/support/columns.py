"""The heads of the list's columns, beside the columns themselves."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.browser import Page

COLUMNS = {
    ".column-job": (".row-subject", "left"),
    ".column-appliance": (".row-appliance", "left"),
    ".column-what": (".row-progress", "left"),
    ".column-start": (".row-started", "right"),
    ".column-duration": (".row-elapsed", "right"),
}
HEADS = [*COLUMNS, ".column-end"]
"""One stands beside another one, above the same column."""


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
