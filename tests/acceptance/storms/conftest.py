"""The table of what was measured, at the end of a run that held storms."""

from __future__ import annotations

import pytest

from tests.support.storms import VERDICTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each storm did."""
    if VERDICTS:
        terminalreporter.section("storms")
        for line in VERDICTS:
            terminalreporter.write_line(line)
