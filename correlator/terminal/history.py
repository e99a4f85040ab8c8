"""`correlator history`: the jobs of one VM or context over time, with outcomes, durations and the trend."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

import msgspec
from rich.table import Table
from rich.text import Text

from correlator.client.client import Client
from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.errors import NotFound
from correlator.forecast import trends
from correlator.forecast.trends import ComparedRun
from correlator.model.replies import OperationTrend
from correlator.terminal import formats, listing
from correlator.terminal.listing import Form, plain_lines
from correlator.terminal.screen import STYLES, Theme, console_on, theme_for

BAR = 12
"""Cells of the bar that compares durations within one operation."""


async def history(
    client: Client, name: str, since: str | None, limit: int, form: Form, stdout: TextIO, stderr: TextIO
) -> None:
    """Print the jobs of the VM or context `name`. A note on jobs that are missing goes to `stderr`.

    `since`: see `Client.history`.

    Raises:
        NotFound: There is no such job.
    """
    listed = await client.history(name, limit, since)
    jobs, now, theme = listed.found, time.time(), theme_for(stdout, os.environ)
    if not jobs:
        so_far = f" ({listed.incomplete})" if listed.incomplete is not None else ""
        later = f" that started since {since}" if since is not None else ""
        raise NotFound(
            f"no job{later} is known of a VM or context {name!r}{so_far}: `correlator jobs -q` searches for a part of a"
            " name"
        )
    found = trends.trends(run_of(job) for job in jobs)
    match form.output:
        case "json":
            whole = {"entity": name, "operations": msgspec.to_builtins(found), "jobs": jobs}
            stdout.write(formats.as_json(whole, indent=2) + "\n")
        case "plain":
            stdout.writelines(line + "\n" for line in plain_lines(jobs, form, theme))
        case "table":
            console = console_on(stdout)
            for line in above(name, jobs, found, theme):
                console.print(theme.fit(line, console.width))
            console.print(table(jobs, console.width, now, theme))
    stdout.flush()
    listing.report_missing(listed, jobs, stderr)


def above(name: str, jobs: Sequence[Document], found: Sequence[OperationTrend], theme: Theme) -> Iterator[Text]:
    """The lines above the table: the name, the outcomes from the oldest to the newest, a line for each operation."""
    yield Text(theme.clean(name), style="bold")
    yield Text.assemble(("outcomes ", "dim"), *(theme.mark(job.get("status")) for job in reversed(jobs)))
    for trend in found:
        yield Text(theme.clean(sentence(trend)), style="dim")


def sentence(trend: OperationTrend) -> str:
    """One operation in words: how its runs ended, and how the newest duration compares."""
    counts = f"{trend.operation or 'no operation'}: {trend.completed} of {trend.runs} completed"
    if trend.failed:
        counts += f", {trend.failed} failed"
    if trend.newest_seconds is None:
        return counts
    newest = f"{counts}; the newest took {formats.duration(trend.newest_seconds, fine=True)}"
    if trend.typical_seconds is None:
        return newest
    typical = f"{newest}, usually {formats.duration(trend.typical_seconds, fine=True)}"
    return typical if trend.ratio is None else f"{typical} ({100 * (trend.ratio - 1):+.0f} %)"


def table(jobs: Sequence[Document], width: int, now: float, theme: Theme) -> Table:
    """A row for each job. Bars compare durations with the longest one of the same operation."""
    longest: dict[object, float] = {}
    for job in jobs:
        seconds = formats.elapsed(job, now) or 0.0
        longest[job.get("operation")] = max(longest.get(job.get("operation"), 0.0), seconds)
    wide, fleet = width >= 80, listing.is_fleet(jobs)
    drawn = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", width=width, pad_edge=False)
    columns = (
        ("STARTED", None), ("STATUS", None), ("APPLIANCE", 1), ("OPERATION", 2), ("TIME", None), ("", None), ("ID", 3),
    )  # fmt: skip
    for column, ratio in columns:
        if (column or wide) and (column != "APPLIANCE" or (wide and fleet)):
            drawn.add_column(
                column if wide or column != "ID" else "", no_wrap=True, ratio=ratio, overflow=theme.overflow
            )
    for job in jobs:
        drawn.add_row(*_cells(job, longest, now, theme, wide=wide, fleet=fleet))
    return drawn


def _cells(
    job: Document, longest: dict[object, float], now: float, theme: Theme, *, wide: bool, fleet: bool
) -> Iterator[Text]:
    status, seconds = str(job.get("status")), formats.elapsed(job, now)
    began = moment(job.get("started_at"))
    yield Text(f"{began.astimezone():{'%Y-%m-%d %H:%M:%S' if wide else '%m-%d %H:%M'}}" if began is not None else "-")
    word = Text.assemble(theme.mark(status), " ", (theme.clean(status), STYLES.get(status, "")))
    yield word if wide else theme.mark(status)
    if wide and fleet:
        yield Text(theme.clean(formats.instance(job)))
    yield Text(theme.clean(formats.operation(job)))
    yield Text(formats.duration(seconds, fine=True))
    if wide:
        most = longest[job.get("operation")]
        yield theme.bar(100 * seconds / most if seconds and most else 0.0, BAR, STYLES.get(status, ""))
    error = theme.clean(job.get("error")) if status == "failed" else ""
    yield Text(error, style="red") if error else Text(theme.clean(job.get("job_id")), style="dim")


def run_of(job: Document) -> ComparedRun:
    """What the trend needs of a job."""
    seconds = job.get("duration_seconds") if job.get("terminal") else None
    operation = (str(job.get("job_type") or ""), str(job.get("operation") or ""))
    return ComparedRun(operation, str(job.get("status")), None if seconds is None else float(seconds))
