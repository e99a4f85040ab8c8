"""The table of what was measured, at the end of a run that had faults of a cluster."""

from __future__ import annotations

import pytest

from tests.support.faults.cluster_run import VERDICTS, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each fault cost."""
    if VERDICTS:
        terminalreporter.section("faults of a cluster")
        terminalreporter.write_line(table(VERDICTS))
