"""Colours and symbols of everything that is printed, for terminals with and without Unicode."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TextIO

from msgspec import Struct
from rich.console import Console
from rich.text import Text

from correlator.ops.logs import escape

STYLES = {
    "pending": "dim",
    "running": "cyan",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "skipped": "dim",
}
CONDITION_STYLES = {"stalled": "bold yellow", "overdue": "bold yellow", "late": "yellow"}
"""The styles of `forecasts.conditions`."""

LEVEL_STYLES = {"DEBUG": "dim", "INFO": "", "WARN": "yellow", "ERROR": "red"}

_UNICODE = {"pending": "○", "running": "●", "completed": "✓", "failed": "✗", "cancelled": "⊘", "skipped": "–"}
_ASCII = {"pending": ".", "running": ">", "completed": "+", "failed": "x", "cancelled": "-", "skipped": "~"}


MAX_MARKS = 4
"""The most characters without a width, such as accents, that are printed after one that has a width."""

_NO_WIDTH = ("Mn", "Me", "Cf")
_EMPTY = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and a symbol that are drawn as nothing."""


class Theme(Struct, frozen=True):
    """Symbols that a stream with this `encoding` can print; ASCII only if `unicode` is false."""

    encoding: str = "utf-8"
    unicode: bool = True

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "..."

    def mark(self, status: object) -> Text:
        """The symbol of a status, one cell wide."""
        marks = _UNICODE if self.unicode else _ASCII
        return Text(marks.get(str(status), "?"), style=STYLES.get(str(status), ""))

    def bar(self, percent: float, cells: int, style: str = "cyan") -> Text:
        """A progress bar of `cells` cells, which is full only at 100 percent."""
        filled = min(cells, int(cells * max(0.0, percent) / 100))
        full, empty = ("█", "░") if self.unicode else ("#", "-")
        return Text.assemble((full * filled, style), (empty * (cells - filled), "dim"))

    def clean(self, value: object) -> str:
        """Untrusted text on one line, with control characters and characters that the stream lacks escaped.

        A blank text is quoted. Accents are limited, because they would be drawn over the lines above and below.
        """
        text = escape("" if value is None else str(value))
        if text and not any(map(_is_visible, text)):
            text = f'"{ascii(text)[1:-1]}"'
        elif not text.isascii():
            text = _with_few_marks(text)
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def fit(self, text: Text, cells: int) -> Text:
        """Cut `text` to at most `cells` cells, with an ellipsis at the end if it was longer."""
        if text.cell_len <= cells:
            return text
        short = text.copy()
        short.truncate(max(0, cells - len(self.ellipsis)))
        short.append(self.ellipsis[: max(0, cells)])
        return short

    def row(self, left: Text, right: Text, cells: int) -> Text:
        """One line of `cells` cells with `left` and `right` aligned; `left` is cut first."""
        right = self.fit(right, max(0, cells - 4))
        room = cells - right.cell_len - (1 if right.cell_len else 0)
        left = self.fit(left, room)
        gap = cells - right.cell_len - left.cell_len if right.cell_len else 0
        return Text.assemble(left, " " * gap, right)


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return not character.isspace() and category not in _NO_WIDTH and character not in _EMPTY


def _with_few_marks(text: str) -> str:
    """Return `text` with at most `MAX_MARKS` characters without a width in a row."""
    kept, marks = list[str](), 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in _NO_WIDTH else 0
        if marks <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def theme_for(stream: TextIO, environ: Mapping[str, str]) -> Theme:
    """The theme for a stream: Unicode if it can encode the symbols and the locale is not C or POSIX."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    locale = next((environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(name)), "")
    try:
        "█░●○✓✗⊘…".encode(encoding)
    except UnicodeError:
        return Theme(encoding, unicode=False)
    return Theme(encoding, unicode=locale not in ("C", "POSIX"))


def console_on(stream: TextIO, *, width: int | None = None) -> Console:
    """A console that prints text unchanged: no markup, no emoji codes, no highlighting."""
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def print_error(stream: TextIO, text: str) -> None:
    """Print a message on standard error, with the program's name before it."""
    stream.write(f"correlator: {theme_for(stream, {}).clean(text)}\n")
    stream.flush()
