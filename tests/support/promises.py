"""`make promises`: promises without a test that is collected, and test files that no promise names.

A promise is a row of a table whose last column is headed *tests*, in docs/guarantees.md, or in docs/security.md, where
it is a protection against a threat. The column has paths below tests/ in backticks: a test (`file::test`), a file, a
pattern of files, or a folder.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple

from tests.support.markdown import Line, prose
from tests.support.paths import REPOSITORY

DOCUMENTS = ("docs/guarantees.md", "docs/security.md")
TESTS = REPOSITORY / "tests"


class Promise(NamedTuple):
    """A row of a table. `cells`: all but its last one, whose paths are `tests`."""

    place: str
    cells: tuple[str, ...]
    tests: tuple[str, ...]


@cache
def promises() -> tuple[Promise, ...]:
    return tuple(promise for document in DOCUMENTS for promise in read(prose(document)))


def read(lines: Iterable[Line]) -> Iterator[Promise]:
    """The rows of the tables that name tests; not those that only head others, in which all other cells are empty."""
    names_tests = False
    before = ""
    for line in lines:
        if line.text.startswith("|"):
            *cells, tests = [cell.strip() for cell in line.text.strip("|").split(" | ")]
            if not before.startswith("|"):
                names_tests = tests == "tests"
            elif names_tests and not line.text.startswith("|---") and any(cells[1:]):
                yield Promise(line.place, tuple(cells), tuple(re.findall(r"`([^`]+)`", tests)))
        before = line.text


@cache
def collected() -> dict[str, set[str]]:
    """The tests that pytest and Node run, by their file: of Node's there are no names."""
    parsed = {file: ast.parse(file.read_text()).body for file in TESTS.rglob("test_*.py")}
    found = {file: {name for node in body for name in _tests(node)} for file, body in parsed.items()}
    found |= {file: set() for file in TESTS.glob("web/*.test.mjs")}
    return {file.relative_to(TESTS).as_posix(): names for file, names in found.items()}


def _tests(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
            yield name
        case ast.ClassDef(name=name, body=body) if name.startswith("Test"):
            yield from (each for part in body for each in _tests(part))
        case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("Test"):  # a state machine of Hypothesis
            yield name


def files(test: str) -> set[str]:
    """The files of what a row names: if it names one test, the file that has it."""
    path, _, name = test.partition("::")
    pattern = path + "*" * path.endswith("/")
    return {file for file, names in collected().items() if fnmatchcase(file, pattern) and (not name or name in names)}


def untested(found: Iterable[Promise]) -> list[str]:
    """What is wrong with these promises, with its place: no test, or one that is not collected."""
    wrong = [f"{each.place}: no test: {each.cells[0]}" for each in found if not each.tests]
    return wrong + [f"{each.place}: not collected: {test}" for each in found for test in each.tests if not files(test)]


def without_promise(found: Iterable[Promise]) -> list[str]:
    """The test files that these promises do not name, nor a test in them."""
    return sorted(collected().keys() - {file for promise in found for test in promise.tests for file in files(test)})


def main() -> int:
    missing, others = untested(promises()), without_promise(promises())
    found = {"Promises without a test that is collected": missing, "Test files that no promise names": others}
    for title, lines in found.items():
        sys.stdout.writelines(f"{line}\n" for line in (f"{title}: {len(lines)}", *lines))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
