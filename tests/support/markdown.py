"""The documents of the repository taken apart: blocks of code, commands, headings, links, names in backticks.

Each part knows where it stands, so that a test can say which line is wrong.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.paths import REPOSITORY

_FENCE = re.compile(r"^ *```(?P<language>\S*)")
_HEADING = re.compile(r"^(?P<marks>#{1,6}) +(?P<title>.+?) *#*$")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+(?:\([^()\s]*\))?)\)")
_LINKED = re.compile(r"\[(?P<text>[^\]]*)\]\([^)]*\)")
_BACKTICKS = re.compile(r"(?<!`)`(?P<text>[^`]+)`(?!`)")
PROGRAMS = frozenset(
    {"apt-get", "curl", "df", "docker", "journalctl", "man", "mariadb", "mosquitto_pub", "mosquitto_sub"}
    | {"openssl", "pipx", "promtool", "sudo", "systemctl", "uv"}
)
"""Words that begin a command, where it stands in a line of text."""

_ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*(\s+#.*)?$")


class Block(NamedTuple):
    """A fenced block. `line`: of its first line of text; `section`: the heading of the second level above it."""

    document: str
    section: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


class Command(NamedTuple):
    """A command of a block of shell, with the lines that it goes on in."""

    document: str
    section: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_assignment(self) -> bool:
        """Whether it gives a variable that the commands after it use."""
        return bool(_ASSIGNMENT.match(self.text))


class Line(NamedTuple):
    """A line of prose, outside of blocks."""

    document: str
    number: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.number}"


def documents() -> list[str]:
    """Every document in the repository, by its path there."""
    folders = [
        REPOSITORY,
        *(REPOSITORY / name for name in ("docs", "docs/decisions", "tests/data", "deploy", "benchmarks")),
    ]
    return sorted(str(file.relative_to(REPOSITORY)) for folder in folders for file in folder.glob("*.md"))


def guides() -> list[str]:
    """The documents with commands to type: all but the decision records and the changelog."""
    return [name for name in documents() if not name.startswith("docs/decisions/") and name != "CHANGELOG.md"]


def read(document: str) -> str:
    return (REPOSITORY / document).read_text()


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks. Raises ValueError for one that nothing ends."""
    section, inside, start, found = "", "", 0, list[str]()
    fenced = False
    for number, line in enumerate(read(document).splitlines(), 1):
        if fence := _FENCE.match(line):
            if fenced:
                yield Block(document, section, start, inside, textwrap.dedent("\n".join(found) + "\n"))
            fenced, inside, start, found = not fenced, fence["language"], number + 1, []
        elif fenced:
            found.append(line)
        elif line.startswith("## "):
            section = line[3:].strip()
    if fenced:
        raise ValueError(f"{document}:{start}: a block without an end")


def sections(document: str) -> list[str]:
    """The headings of the second level, in their order."""
    return [line.text[3:].strip() for line in prose(document) if line.text.startswith("## ")]


def shell_blocks(document: str, section: str) -> list[str]:
    """The texts of the blocks of shell under a heading of the second level, in their order."""
    assert section in sections(document), f"{document} has no section {section}"
    return [b.text for b in blocks(document) if b.language == "sh" and b.section == section]


def commands(document: str) -> Iterator[Command]:
    """The commands of its blocks of shell; lines with nothing but a comment are none."""
    for block in blocks(document):
        if block.language != "sh":
            continue
        start, parts = 0, list[str]()
        for number, line in enumerate(block.text.splitlines(), block.line):
            if not parts and (not line.strip() or line.lstrip().startswith("#")):
                continue
            start = start if parts else number
            parts.append(line)
            if not line.endswith("\\"):
                yield Command(document, block.section, start, "\n".join(parts))
                parts = []


def commands_in_text(document: str) -> Iterator[Command]:
    """What stands in backticks between words and can be typed: it begins with a program, and nothing is left open."""
    for line, text in backticks(document):
        program, _, rest = text.partition(" ")
        if program in PROGRAMS and rest and "…" not in text:
            yield Command(document, "", line.number, text)


def prose(document: str) -> Iterator[Line]:
    """The lines outside of blocks."""
    fenced = False
    for number, line in enumerate(read(document).splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield Line(document, number, line)


def links(document: str) -> Iterator[tuple[Line, str]]:
    """Where its links and pictures lead, those to other hosts aside."""
    for line in prose(document):
        for link in _LINK.finditer(_BACKTICKS.sub("", line.text)):
            if not re.match(r"[a-z]+:", link["target"]):
                yield line, link["target"]


def backticks(document: str) -> Iterator[tuple[Line, str]]:
    """What stands in backticks, in its prose."""
    for line in prose(document):
        for quoted in _BACKTICKS.finditer(line.text):
            yield line, quoted["text"]


def anchors(document: str) -> set[str]:
    """The names that links may give to its headings, made as GitHub makes them."""
    found: set[str] = set()
    for line in prose(document):
        if heading := _HEADING.match(line.text):
            title = _LINKED.sub(lambda link: link["text"], heading["title"]).replace("`", "")
            name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            later = (f"{name}-{count}" for count in range(1, 1000))
            found.add(name if name not in found else next(other for other in later if other not in found))
    return found
