"""The spelling list: words that the project does not use, and the terms to write instead. `make lint` runs it.

Each word on the list once had a private meaning here, which a reader could neither guess nor search for.
Identifiers are checked as well as text: underscores and capitals inside a name separate its words.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from typing import NamedTuple

from tests.support.paths import REPOSITORY

CHECKED = ("correlator", "docs", "deploy", "tests", "benchmarks", ".ci", "Makefile", "pyproject.toml", "*.md")
"""The folders and files that are checked, as patterns of names in the repository."""

_SKIPPED_FOLDERS = {"__pycache__", "vendor", "data"}  # libraries of others; recordings of the appliance
_SKIPPED_SUFFIXES = {".gz", ".png", ".pyc", ".svg"}
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Term(NamedTuple):
    """A word of the list. `pattern` matches lower-case text whose identifiers are split into words."""

    pattern: str
    instead: str
    paths: str = "*"


class Allowed(NamedTuple):
    """Text that stays although it contains a word of the list. `pattern` matches the original text."""

    paths: str
    pattern: str
    reason: str


class Finding(NamedTuple):
    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: “{self.word}”: write {self.instead}"


TERMS = (
    Term(r"tells?|telling|told|untold", "send, publish, report, notify or print"),
    Term(r"hears?|hearing|heard", "receive"),
    Term(r"owes?|owing|owed", "pending"),
    Term(r"look(?:s|ed|ing)?(?! up\b)", "query, read, check or look up"),
    Term(r"(?<!people )(?<!operators )(?<!developers )whom?", "the client, the user"),
    Term(r"readers?", "client, connection or subscriber", "[!tb]*"),
    Term(r"mend(?:s|ed|ing)?", "fix"),
    Term(r"(?<!resume )ring(?! buffer)|rings|rung", "resume ring; wake-up"),
    Term(r"ways", "transports, methods"),
    Term(r"ticks?", "logical time, interval"),
    Term(r"stages?|deck|weather", "player, test bed; scenarios; commit delays"),
    Term(r"signs(?! of life)", "theme"),
    Term(r"doors?", "listener, access"),
    Term(r"census|landmarks?|tied", "job metrics; reset markers; attributed"),
    Term(r"(?:for|after|of|most) so (?:many|much)", "the number, with its unit"),
    Term(r"class (?:shown|kept|memory)", "PublishedJob, PersistedJob, IndexState"),
    Term(r"def +take|\.take", "pop_next, drain"),
)

ALLOWED = (
    Allowed("tests/docs/*words.py", r".*", "the list itself, and its test"),
    Allowed("tests/web/*", r"mock\.timers\.tick\b", "a function of Node"),
    Allowed("correlator/demo/*", r"-(deck|weather)\b", "seeds of random generators: other texts give another demo"),
    Allowed("*", r"(?<=[\"`/])readers\.svg", "the name of a picture that a program has written"),
    Allowed("correlator/*", r"(add|remove)_reader", "asyncio: functions of an event loop"),
    Allowed("*", r"(?i)max_readers(_per_address)?", "contract: keys of the configuration"),
    Allowed("*", r"correlator_(readers\w*|doorbell_rings\w*)", "contract: names of metrics"),
    Allowed("*", r"CorrelatorReaders\w*|#correlatorreaders\w*", "contract: the name of an alert"),
    Allowed("correlator/sinks/*", r'"readers"', "contract: the name of a heartbeat in /health/live"),
    Allowed("correlator/web/*", r'"ring"', "the shape of an icon"),
    Allowed("correlator/web/*", r"\b[Tt]icks?\b|\bticksOf\b", "the marks of a time axis"),
    Allowed("tests/web/outlook.test.mjs", r"\bticksOf\b", "the function of that name"),
    Allowed("docs/performance.md", r"^\|.*", "rows of a table that a program has written"),
)


def words(text: str) -> str:
    """The text in lower case, its identifiers split at underscores and at inner capitals."""
    return _INNER_CAPITAL.sub(" ", text).replace("_", " ").lower()


def findings(path: str, text: str, allowed: Sequence[Allowed] = ALLOWED) -> Iterator[Finding]:
    """The words of the list in a file: in its path (line 0), and in its text."""
    rest = f"{path}\n{text}"
    for each in allowed:
        if fnmatch(path, each.paths):
            rest = re.sub(each.pattern, "…", rest, flags=re.MULTILINE)
    split = words(rest)
    for term in TERMS:
        if fnmatch(path, term.paths):
            for found in re.finditer(rf"\b(?:{term.pattern})\b", split):
                yield Finding(path, split.count("\n", 0, found.start()), found[0], term.instead)


@cache
def files() -> list[tuple[str, str]]:
    """Every file that is checked: its path in the repository, and its text."""
    found = []
    for checked in CHECKED:
        for start in sorted(REPOSITORY.glob(checked)):
            for file in sorted(start.rglob("*")) if start.is_dir() else [start]:
                path = file.relative_to(REPOSITORY)
                if file.is_file() and file.suffix not in _SKIPPED_SUFFIXES and not _SKIPPED_FOLDERS & {*path.parts}:
                    found.append((str(path), file.read_text()))
    return found


def main() -> int:
    found = sorted({finding for path, text in files() for finding in findings(path, text)})
    sys.stderr.writelines(f"{finding}\n" for finding in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
