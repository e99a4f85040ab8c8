"""Log lines as text or as JSON, one line each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, TextIO

from msgspec import to_builtins
from rich.text import Text

from correlator.client.documents import moment
from correlator.client.messages import Document, Log
from correlator.terminal import formats
from correlator.terminal.theme import LEVEL_STYLES, Theme, console_on, theme_for

Output = Literal["plain", "json"]

_IDENTITY = ("job_id", "step_id", "external_job_id", "step_name")
"""Attributes that name the job and the step of a line, which the output shows already."""


class Printer:
    """Writes log lines to a stream. A terminal gets local times and colours, a pipe times in UTC."""

    def __init__(self, stdout: TextIO, output: Output) -> None:
        self._stdout = stdout
        self._output = output
        self._theme = theme_for(stdout, os.environ)
        self._console = console_on(stdout)
        self._coloured = stdout.isatty() and output == "plain"

    def write(self, lines: Sequence[Log], job: Document) -> None:
        """Write lines of `job`, and flush."""
        if self._coloured:
            for line in lines:
                self._console.print(text(line, job, self._theme, local=True), soft_wrap=True)
        elif self._output == "json":
            self._stdout.writelines(formats.as_json(document(line)) + "\n" for line in lines)
        else:
            self._stdout.writelines(text(line, job, self._theme).plain + "\n" for line in lines)
        self._stdout.flush()


def document(line: Log) -> dict[str, Any]:
    """The members of a line that docs/protocol.md describes."""
    members: dict[str, Any] = to_builtins(line)
    return {name: value for name, value in members.items() if name not in ("type", "dropped")}


def text(line: Log, job: Document, theme: Theme, *, local: bool = False) -> Text:
    """``2025-09-22T10:00:00.123456Z WARN  step-name: message  name=value``; `local`: the zone of this host."""
    step = (job.get("steps") or {}).get(str(line.step_id)) or {}
    level = theme.clean(line.level)
    return Text.assemble(
        (f"{_stamp(line.at, local=local)} ", "dim" if local else ""),
        (f"{level:5} ", LEVEL_STYLES.get(line.level, "")),
        (f"{theme.clean(step['name'])}: " if step.get("name") else "", "dim"),
        theme.clean(line.message),
        (f"  {attributes}" if (attributes := theme.clean(_attributes(line.attrs))) else "", "dim"),
    )


def _stamp(at: str | None, *, local: bool) -> str:
    """The time with its zone, in UTC with the microseconds of the log, else with milliseconds and the offset."""
    when = moment(at)
    if when is None:
        return "-"
    return when.astimezone().isoformat(" ", "milliseconds") if local else str(at)


def _attributes(attrs: Any) -> str:
    if not isinstance(attrs, dict):
        return "" if attrs is None else _value(attrs)
    return "  ".join(
        f"{name}={_value(value)}" for name, value in attrs.items() if name not in _IDENTITY and value != ""
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) else formats.as_json(value)
