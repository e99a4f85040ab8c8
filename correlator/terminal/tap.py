"""`correlator tap`: a log row as a line: whole for a pipe, cut to the window on a terminal, or as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Literal, TextIO

from rich.text import Text

from correlator.jobs import encoding
from correlator.model.facts import Attribution
from correlator.ops.logs import escape
from correlator.sinks.tap import Dropped, TapRow
from correlator.terminal import ids
from correlator.terminal.screen import LEVEL_STYLES, Theme, console_on, theme_for

Output = Literal["text", "json"]

REASONS: dict[Attribution, str] = {
    "column": "by its job_id column",
    "attrs": "by its attrs",
    "step": "by its step",
    "external_id": "by an external ID",
    "none": "no job",
}

_RIGHT_SHARE = 0.45
"""The greatest share of a line for the job; the message has the rest."""


def printer(output: Output, stdout: TextIO) -> Callable[[TapRow | Dropped], None]:
    """Return what prints rows on `stdout`. On a terminal, each is one line that fits the window."""
    if output == "text" and stdout.isatty():
        console, theme = console_on(stdout), theme_for(stdout, os.environ)

        def draw(one: TapRow | Dropped) -> None:
            console.print(line(one, console.width, theme), soft_wrap=True)

        return draw
    written = as_json if output == "json" else plain

    def write(one: TapRow | Dropped) -> None:
        stdout.write(written(one) + "\n")
        stdout.flush()

    return write


def as_json(one: TapRow | Dropped) -> str:
    """A row as JSON in ASCII, so that no terminal interprets a text as a control sequence."""
    if isinstance(one, Dropped):
        return json.dumps({"dropped": one.count})
    attributes = {"job_id": one.row.job_id, "by": one.row.by, "step_name": one.step_name}
    return json.dumps({**encoding.log_line(one.row.entry), **attributes}, default=str)


def plain(one: TapRow | Dropped) -> str:
    """A row as one line, nothing cut."""
    if isinstance(one, Dropped):
        return _dropped(one)
    entry, job_id = one.row.entry, one.row.job_id
    step = _step(one)
    if job_id is not None:
        operation = f" ({escape(one.operation)})" if one.operation else ""
        attribution = f"{escape(job_id)}{operation}{step}, {REASONS[one.row.by]}"
    elif entry.job_id is not None:
        attribution = f"no job: {escape(entry.job_id)} is not known{step}"
    else:
        attribution = f"no job{step}"
    at, message = encoding.rfc3339(entry.at), escape(entry.message)
    return f"{at} {entry.event_id} {entry.level:5} {message}  <- {attribution}"


def line(one: TapRow | Dropped, cells: int, theme: Theme) -> Text:
    """A row as one line of at most `cells` cells, with the job on the right. The message is cut first."""
    if isinstance(one, Dropped):
        return theme.fit(Text(_dropped(one), style="yellow"), cells)
    entry = one.row.entry
    at = encoding.rfc3339(entry.at)[11:23]  # hours to milliseconds, in UTC
    left = Text.assemble(
        (f"{at} " if cells >= 80 else "", "dim"),
        (f"{entry.level:5} ", LEVEL_STYLES.get(entry.level, "")),
        theme.clean(entry.message),
    )
    return theme.row(left, theme.fit(_job(one, cells, theme), int(cells * _RIGHT_SHARE)), cells)


def _job(one: TapRow, cells: int, theme: Theme) -> Text:
    """The job of a row, in more words on a wider terminal."""
    row = one.row
    if row.job_id is None:
        unknown = f": {ids.short(row.entry.job_id, theme)} is not known" if row.entry.job_id and cells >= 80 else ""
        return Text(theme.clean(f"no job{unknown}"), style="dim yellow")
    words = Text(theme.clean(ids.short(row.job_id, theme)), style="cyan")
    if cells >= 120 and one.operation:
        words.append(f" {theme.clean(one.operation)}", "dim")
    if cells >= 80 and (step := one.step_name or (row.entry.step_id and f"step {row.entry.step_id}")):
        words.append(f" {theme.clean(step)}", "dim")
    if cells >= 100:
        words.append(f", {REASONS[row.by]}", "dim")
    return words


def _step(one: TapRow) -> str:
    step = f" step {one.row.entry.step_id}" if one.row.entry.step_id is not None else ""
    return f"{step} {escape(one.step_name)}" if one.step_name else step


def _dropped(one: Dropped) -> str:
    return f"({one.count} lines came faster than they could be written, and are not shown)"
