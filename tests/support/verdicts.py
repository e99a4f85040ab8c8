"""What faults and storms cost: tables that a run of pytest prints at its end, by `tests/acceptance/conftest.py`."""

from __future__ import annotations

TABLES: list[Table] = []
"""All that a module of this run has made."""


class Table:
    """A table in Markdown. `columns`: the first one names the row, the others are figures."""

    def __init__(self, title: str, *columns: str) -> None:
        self.title = title
        self._lines = [_row(columns), "|---" + "|--:" * (len(columns) - 1) + "|"]
        TABLES.append(self)

    def add(self, *cells: object) -> None:
        """Add a row."""
        self._lines.append(_row([f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells]))

    def lines(self) -> list[str]:
        """Empty as long as there is no row."""
        return self._lines if len(self._lines) > 2 else []


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
