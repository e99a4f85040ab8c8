"""The signs, words and measures that everything printed has in common, for terminals with and without Unicode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from msgspec import Struct
from rich.console import Console
from rich.text import Text

from correlator.logs import escape
from correlator.replica.messages import Document

STYLES = {
    "pending": "dim",
    "running": "cyan",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "skipped": "dim",
}
LEVEL_STYLES = {"DEBUG": "dim", "INFO": "", "WARN": "yellow", "ERROR": "red"}
ENDED = ("completed", "failed", "cancelled", "skipped")

_UNICODE = {"pending": "○", "running": "●", "completed": "✓", "failed": "✗", "cancelled": "⊘", "skipped": "–"}
_ASCII = {"pending": ".", "running": ">", "completed": "+", "failed": "x", "cancelled": "-", "skipped": "~"}


class Signs(Struct, frozen=True):
    """What a stream of an `encoding` can show."""

    encoding: str = "utf-8"
    unicode: bool = True

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "..."

    def mark(self, status: object) -> Text:
        """One cell for a status."""
        marks = _UNICODE if self.unicode else _ASCII
        return Text(marks.get(str(status), "?"), style=STYLES.get(str(status), ""))

    def bar(self, percent: float, cells: int, style: str = "cyan") -> Text:
        """A bar of `cells` cells; full only at 100."""
        filled = min(cells, int(cells * max(0.0, percent) / 100))
        full, empty = ("█", "░") if self.unicode else ("#", "-")
        return Text.assemble((full * filled, style), (empty * (cells - filled), "dim"))

    def clean(self, value: object) -> str:
        """Somebody else's text on one line, without control characters, as far as the stream can show it."""
        text = escape("" if value is None else str(value))
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def fit(self, text: Text, cells: int) -> Text:
        """`text` in at most `cells` cells, with an ellipsis where something is missing."""
        if text.cell_len <= cells:
            return text
        short = text.copy()
        short.truncate(max(0, cells - len(self.ellipsis)))
        short.append(self.ellipsis[: max(0, cells)])
        return short

    def row(self, left: Text, right: Text, cells: int) -> Text:
        """`left`, and `right` at the other end; of the two, `left` gives way."""
        right = self.fit(right, max(0, cells - 4))
        room = cells - right.cell_len - (1 if right.cell_len else 0)
        left = self.fit(left, room)
        gap = cells - right.cell_len - left.cell_len if right.cell_len else 0
        return Text.assemble(left, " " * gap, right)


def signs_for(stream: TextIO, environ: Mapping[str, str]) -> Signs:
    """Unicode where the stream encodes it, and the locale does not ask for plain ASCII."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    locale = next((environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(name)), "")
    try:
        "█░●○✓✗⊘…".encode(encoding)
    except UnicodeError:
        return Signs(encoding, unicode=False)
    return Signs(encoding, unicode=locale not in ("C", "POSIX"))


def console_on(stream: TextIO, *, width: int | None = None) -> Console:
    """A console that reads nothing into text: no markup, no emoji codes, no highlighting."""
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def moment(stamp: object) -> datetime | None:
    """The time of a document's member; None where there is none."""
    try:
        return datetime.fromisoformat(stamp) if isinstance(stamp, str) else None
    except ValueError:
        return None


def stamp(text: object) -> str:
    """``2025-09-22T10:00:00Z``: to the second, as a person reads it."""
    when = moment(text) or datetime.now(UTC)
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def elapsed(thing: Document, now: float) -> float | None:
    """Seconds from the start of a job or step to its end, or until `now` (seconds since 1970) while it runs."""
    if thing.get("status") in ENDED:
        seconds = thing.get("duration_seconds")
        return float(seconds) if seconds is not None else None
    began = moment(thing.get("started_at"))
    return max(0.0, now - began.timestamp()) if began is not None else None


def duration(seconds: float | None, *, fine: bool = False) -> str:
    """``12s``, ``4m 02s``, ``3h 05m``, ``2d 04h``; with `fine`, ``3.1s`` below ten seconds."""
    if seconds is None:
        return ""
    if fine and seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def vm_name(job: Document) -> str:
    """The name of the machine that a job is about; "" where it tells none."""
    metadata = job.get("metadata") or {}
    found = metadata.get("vm_name") or metadata.get("vm_name_or_id")
    return found if isinstance(found, str) else ""


def percent(job: Document) -> float:
    return float((job.get("progress") or {}).get("percent") or 0.0)


def steps_of(job: Document) -> list[tuple[str, Document]]:
    """(id, step), in their order."""
    steps: Mapping[str, Document] = job.get("steps") or {}
    return sorted(steps.items(), key=lambda item: (item[1].get("seq") or 0, item[0].zfill(20)))


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON in ASCII: whatever a text holds, no terminal takes it for a command."""
    return json.dumps(value, indent=indent)


def grumble(stream: TextIO, text: str) -> None:
    """Say what is the matter, on standard error."""
    stream.write(f"correlator: {signs_for(stream, {}).clean(text)}\n")
    stream.flush()
