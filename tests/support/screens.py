"""What a terminal shows after what was written to it, which moves the cursor only as our commands do."""

from __future__ import annotations

import io
import re

PARTS = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+")


class Screen:
    """The lines of a terminal that is never wider or higher than needed."""

    def __init__(self) -> None:
        self._lines = [""]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self._lines if line.strip()]

    def feed(self, written: str) -> None:
        for part in PARTS.findall(written):
            self._apply(part)

    def _apply(self, part: str) -> None:
        lines, row = self._lines, self._row
        match re.fullmatch(r"\x1b\[([?\d;]*)([A-Za-z])", part):
            case None if part == "\r":
                self._column = 0
            case None if part == "\n":
                self._row += 1
                lines += [""] * (self._row + 1 - len(lines))
            case None:
                end = self._column + len(part)
                lines[row] = lines[row][: self._column].ljust(self._column) + part + lines[row][end:]
                self._column = end
            case sequence:
                match sequence[2]:
                    case "A":
                        self._row = max(0, row - int(sequence[1] or 1))
                    case "J":
                        lines[row:] = [lines[row][: self._column]]
                    case "K":
                        lines[row] = ""
                    case "m" | "h" | "l":
                        pass
                    case other:
                        raise AssertionError(f"the screen does not know {other}")


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after what was `written`."""
    found = Screen()
    found.feed(written)
    return found.lines


class Output(io.StringIO):
    """A terminal to write to, or a pipe."""

    def __init__(self, encoding: str = "utf-8", *, tty: bool = True) -> None:
        super().__init__()
        self._encoding, self._tty = encoding, tty

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._tty
