"""The list of threats names tests that there are: each line of it at least one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

_NAMED = re.compile(r"`(?P<file>[\w/.]+\.py)::(?P<test>test_\w+)`")


def lines(document: Path) -> list[list[str]]:
    """The cells of each line of its tables, headings aside."""
    rows = [line.strip().strip("|").split(" | ") for line in document.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


THREATS = [row for row in lines(REPOSITORY / "docs" / "security.md") if len(row) == 3 and "::" in row[2]]


def test_the_list_is_read_as_it_is_written():
    text = (REPOSITORY / "docs" / "security.md").read_text()
    section = text.partition("## Threats")[2].partition("\n## ")[0]
    written = [
        line for line in section.splitlines() if line.startswith("| ") and not line.startswith(("| **", "| threat"))
    ]
    assert len(THREATS) == len(written) > 40
    assert sum(len(_NAMED.findall(row[2])) for row in THREATS) == section.count("::")


@pytest.mark.parametrize("threat", THREATS, ids=lambda row: row[0][:60])
def test_each_threat_has_what_stops_it_and_the_tests_of_that(threat: list[str]):
    _, stops, tests = threat
    assert stops
    found = _NAMED.findall(tests)
    assert found
    for file, test in found:
        text = (REPOSITORY / "tests" / file).read_text()
        assert re.search(rf"(?m)^(async )?def {test}\(", text), f"{file}::{test}"


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/security.md"])
def test_what_the_documents_point_to_is_there(document: str):
    path = REPOSITORY / document
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target
