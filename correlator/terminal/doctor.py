"""`correlator doctor`: the report as text, aligned, with a symbol for each status, and failures at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from correlator.doctor.report import Check, CheckReport, Status
from correlator.ops.logs import escape
from correlator.terminal.screen import console_on, theme_for

_PRINTED_ORDER: tuple[Status, ...] = ("ok", "warning", "failure")
_STYLE: dict[Status, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}
_SYMBOLS: dict[Status, str] = {"ok": "✓", "warning": "!", "failure": "✗"}
_ASCII_SYMBOLS: dict[Status, str] = {"ok": "+", "warning": "!", "failure": "x"}
_WIDE = 100_000
"""Columns if the output is not a terminal: nothing is wrapped."""


def print_report(report: CheckReport, stream: TextIO, environ: Mapping[str, str]) -> None:
    """Print `report`. On a terminal sentences are wrapped; commands are never wrapped, so that they can be copied."""
    console = console_on(stream, width=None if stream.isatty() else _WIDE)
    symbols = _SYMBOLS if theme_for(stream, environ).unicode else _ASCII_SYMBOLS
    names = max((len(check.name) for check in report.checks), default=0)
    for status in _PRINTED_ORDER:
        for check in report.checks:
            if check.status == status:
                _print_check(console, check, names, symbols)
    console.print(_counts(report), soft_wrap=True)


def _print_check(console: Console, check: Check, names: int, symbols: Mapping[Status, str]) -> None:
    style = _STYLE[check.status]
    room = names + 6
    head = f"  {symbols[check.status]} {check.name.ljust(names)}  "
    lines = Text(escape(check.summary)).wrap(console, max(20, console.width - room))
    for number, line in enumerate(lines):
        line.rstrip()
        before = Text(head, style=style) if number == 0 else Text(" " * room)
        console.print(Text.assemble(before, line), soft_wrap=True)
    for words in check.detail:
        console.print(Padding(Text(escape(words), style="dim"), (0, 0, 0, room), expand=False))
    for command in check.fix:
        console.print(Text.assemble(" " * room, ("> ", style), escape(command)), soft_wrap=True)
    for command in check.see:
        console.print(Text.assemble(" " * room, ("$ ", "dim"), escape(command)), soft_wrap=True)


def _counts(report: CheckReport) -> Text:
    counts = {status: sum(check.status == status for check in report.checks) for status in _PRINTED_ORDER}
    words = [
        (f"{counts['ok']} ok", ""),
        (_many(counts["warning"], "warning"), _STYLE["warning"] if counts["warning"] else ""),
        (_many(counts["failure"], "failure"), _STYLE["failure"] if counts["failure"] else ""),
    ]
    text = Text(f"correlator {report.version}: ")
    for number, (word, style) in enumerate(words):
        text.append(", " if number else "").append(word, style)
    failed = [check for check in report.checks if check.status != "ok"]
    notes = {
        "Run the commands marked > to fix it.": any(check.fix for check in failed),
        "Commands marked $ change nothing and show more of the cause.": any(check.see for check in failed),
    }
    if marked := " ".join(note for note, is_due in notes.items() if is_due):
        text.append(f". {marked}")
    return text


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
