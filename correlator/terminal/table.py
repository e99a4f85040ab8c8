"""Jobs as a table that fits the terminal, or as tab-separated lines for scripts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.terminal import forecasts, formats, ids
from correlator.terminal.theme import CONDITION_STYLES, STYLES, Theme

PLAIN = (
    "STARTED", "ID", "STATUS", "PERCENT", "VM", "OPERATION", "STEP", "SECONDS", "STALLED", "ERROR",
    "FORECAST", "P50", "P90",
)  # fmt: skip


def header() -> str:
    """The header line for the lines of `plain`."""
    return "\t".join(PLAIN)


def plain(job: Document, now: float, theme: Theme) -> str:
    """One job as the tab-separated columns of `PLAIN`; a dash for an unknown value.

    `now`: seconds since 1970 by the daemon's clock; the elapsed time of a running job ends there.
    """
    seconds, forecast = formats.elapsed(job, now), job.get("forecast") or {}
    ends = forecast.get("ends_at") or {}
    columns = (
        formats.stamp(job["started_at"]) if job.get("started_at") else None,
        job.get("job_id"),
        job.get("status"),
        f"{formats.percent(job):g}",
        formats.vm_name(job),
        job.get("operation"),
        job.get("current_step"),
        None if seconds is None else f"{seconds:.0f}",
        "stalled" if job.get("stalled") else None,
        job.get("error"),
        forecast.get("state"),
        *(forecasts.utc_clock(at) if (at := moment(ends.get(name))) is not None else None for name in ("p50", "p90")),
    )
    return "\t".join(theme.clean(column) or "-" for column in columns)


_COLUMNS: Mapping[str, tuple[int, bool]] = {
    "status": (0, False), "vm": (0, True), "operation": (60, True), "progress": (30, False), "left": (64, False),
    "step": (90, True), "elapsed": (36, False), "age": (100, False), "id": (70, False),
}  # fmt: skip
"""Column name → the least terminal width at which it is shown, and whether it may be cut."""


_SHORT = {"vm": "VM", "progress": "   %", "elapsed": "TIME"}
"""Headers of columns in a terminal narrower than 60 cells."""


def table(found: Iterable[Document], width: int, now: float, theme: Theme) -> Table:
    """The jobs as a table of at most `width` cells; a wider terminal shows more columns."""
    jobs = list(found)
    forecast = any(job.get("forecast") for job in jobs)
    columns = [name for name, (least, _) in _COLUMNS.items() if width >= least and (forecast or name != "left")]
    full_ids = width >= (140 if forecast else 120)
    drawn = Table(
        box=None, padding=(0, 1, 0, 0), header_style="dim", width=width, pad_edge=False, caption_justify="left"
    )
    for name in columns:
        gives_way = _COLUMNS[name][1]
        drawn.add_column(
            name.upper() if width >= 60 else _SHORT.get(name, ""),
            no_wrap=True,
            overflow="ellipsis" if theme.unicode else "crop",
            ratio=1 if gives_way else None,
        )
    for job in jobs:
        cells = _cells(job, width, now, theme, full_ids=full_ids)
        drawn.add_row(*(cells[name] for name in columns))
    return drawn


def _cells(job: Document, width: int, now: float, theme: Theme, *, full_ids: bool) -> dict[str, Text]:
    status = str(job.get("status"))
    style = STYLES.get(status, "")
    condition = next(iter(forecasts.conditions(job)), None)
    word = (condition, CONDITION_STYLES[condition]) if condition is not None else (theme.clean(status), style)
    words = Text.assemble(theme.mark(status), " ", word) if width >= 60 else theme.mark(status)
    if condition is not None and width < 60:
        words.append("!", CONDITION_STYLES[condition])
    share, clock = forecasts.percent(job, now), forecasts.local_clock(now)
    bar = theme.bar(share, 8 if width < 100 else 12, style) if width >= 60 else Text()
    began = moment(job.get("started_at"))
    age = formats.duration(max(0.0, now - began.timestamp())).split(" ")[0] if began is not None else ""
    job_id = theme.clean(job.get("job_id"))
    return {
        "status": words,
        "vm": Text(theme.clean(formats.vm_name(job) or "-"), style="bold" if status == "running" else ""),
        "operation": Text(theme.clean(job.get("operation"))),
        "progress": Text.assemble(bar, f" {int(share):3d}%" if width >= 60 else f"{int(share):3d}%"),
        "left": Text(forecasts.short_outlook(job, now, clock if width >= 100 else None), style="dim"),
        "step": _step(job, theme),
        "elapsed": Text(formats.duration(formats.elapsed(job, now))),
        "age": Text(age),
        "id": Text(job_id if full_ids else theme.clean(ids.short(str(job.get("job_id")), theme)), style="dim"),
    }


def _step(job: Document, theme: Theme) -> Text:
    """The running step, or the error of a failed job."""
    if job.get("status") == "failed":
        return Text(theme.clean(job.get("error")), style="red")
    return Text(theme.clean(job.get("current_step")))
