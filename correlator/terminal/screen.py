"""Lines at the bottom of a terminal that are repainted in place.

Invariants: earlier output stays above them. The cursor is visible again at the end. When the window becomes narrower
and the terminal wraps the painted lines, the next paint erases all of them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments


class Screen:
    """A context manager; the cursor is hidden inside it. `console` must be a terminal."""

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
