"""What all output shares: colours and symbols, with and without Unicode, and lines that are repainted in place."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Self, TextIO

from msgspec import Struct
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
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
"""The styles of `formats.conditions`."""

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

    @property
    def overflow(self) -> Literal["ellipsis", "crop"]:
        """What a table does with a text that is too long: its ellipsis is not ASCII."""
        return "ellipsis" if self.unicode else "crop"

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


class Screen:
    """Lines at the bottom of a terminal that are repainted in place. `console` must be a terminal.

    Invariants: earlier output stays above them. The cursor is hidden inside the context and visible again at its end.
    When the window becomes narrower and the terminal wraps the painted lines, the next paint erases all of them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._painted: list[str] = []
        self._widths: list[int] = []
        self._at_width = 0

    def __enter__(self) -> Self:
        self._write("\x1b[?25l")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Also erase what the terminal echoed below, for example ^C.
        self._write("\r\x1b[J\x1b[?25h")

    @property
    def width(self) -> int:
        return self._console.width

    @property
    def height(self) -> int:
        return self._console.height

    def paint(self, what: RenderableType) -> None:
        """Replace the painted lines by `what`, which must not be higher than the window."""
        lines, widths = self._render(what)
        width = self._console.width
        if lines == self._painted and width == self._at_width:
            return
        # Only lines that changed are erased and written again, so that the screen does not flicker.
        before = self._painted if width == self._at_width else []
        stays = [index < len(before) and line == before[index] for index, line in enumerate(lines)]
        written = ("\r\n" if same else f"\x1b[2K{line}\r\n" for line, same in zip(lines, stays, strict=True))
        self._write(self._home(width) + "".join(written) + "\x1b[J")
        self._painted, self._widths, self._at_width = lines, widths, width

    def finish(self, what: RenderableType) -> None:
        """Replace the painted lines by `what` for good; it may be higher than the window."""
        lines, _ = self._render(what)
        self._write(self._home(self._console.width) + "\x1b[J" + "".join(f"{line}\r\n" for line in lines))
        self._painted, self._widths = [], []

    def _home(self, width: int) -> str:
        """The control sequence that moves to the first painted line, also if the terminal has wrapped the lines."""
        if not self._painted:
            return "\r"
        if width >= self._at_width:
            rows = len(self._painted)
            clear = ""
        else:
            rows = sum(max(1, -(-cells // width)) for cells in self._widths)
            clear = "\x1b[J"
        return f"\r\x1b[{rows}A{clear}"

    def _render(self, what: RenderableType) -> tuple[list[str], list[int]]:
        console = self._console
        rows = [list(row) for row in console.render_lines(what, console.options, pad=False)]
        texts = []
        for row in rows:
            with console.capture() as captured:
                console.print(Segments(row), end="", soft_wrap=True)
            texts.append(captured.get().rstrip("\n"))
        return texts, [Segment.get_line_length(row) for row in rows]

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
