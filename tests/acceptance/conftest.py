"""The tables of what was measured, at the end of a run that had faults or storms."""

from __future__ import annotations

import pytest

from tests.support.verdicts import TABLES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each fault cost, and what each storm did."""
    for table in TABLES:
        if lines := table.lines():
            terminalreporter.section(table.title)
            for line in lines:
                terminalreporter.write_line(line)
