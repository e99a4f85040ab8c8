"""Jobs as a table that fits the terminal, or as tab-separated lines for scripts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.terminal import forecasts, formats, ids
from correlator.terminal.percents import Percents
from correlator.terminal.theme import CONDITION_STYLES, STYLES, Theme

PLAIN = (
    "STARTED", "ID", "STATUS", "PERCENT", "VM", "OPERATION", "STEP", "SECONDS", "STALLED", "ERROR",
    "FORECAST", "P50", "P90",
)  # fmt: skip


INSTANCE = "INSTANCE"
"""The column after these, where jobs name their appliance."""

TIMED = 100
"""Cells from which on the table has the time at which a job may end."""


def header(*, fleet: bool = False) -> str:
    """The header line for the lines of `plain`."""
    return "\t".join((*PLAIN, INSTANCE) if fleet else PLAIN)


def is_fleet(found: Iterable[Document]) -> bool:
    """True if one of the jobs names its appliance."""
    return any(map(formats.instance, found))


def plain(job: Document, now: float, theme: Theme, *, fleet: bool = False) -> str:
    """One job as the tab-separated columns of `PLAIN`; a dash for an unknown value. `fleet`: with its appliance.

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
        *((formats.instance(job),) if fleet else ()),
    )
    return "\t".join(theme.clean(column) or "-" for column in columns)


_COLUMNS: Mapping[str, int] = {
    "status": 0, "vm": 0, "instance": 50, "operation": 60, "progress": 30, "left": 64, "step": 90,
    "elapsed": 36, "age": 100, "id": 70, "external": 150,
}  # fmt: skip
"""Column name → the least terminal width at which it is shown."""

_FORECAST_CELLS = 20
"""Cells that the column "left" takes from others. A wide terminal must be wider by that to show all of an ID."""

_FLEXIBLE = ("vm", "instance", "operation", "external", "step")
"""The columns that share what the others leave. Each is as wide as its longest text, or as the others allow."""

_STEP_SHARE = 0.35
"""The least share of that for the column "step", whose text changes: the columns beside it must not move with it."""

_GAP = 1
"""Cells between two columns."""

_SHORT = {"vm": "VM", "progress": "   %", "elapsed": "TIME"}
"""Headers of columns in a terminal narrower than 60 cells."""

_NAMES = {"instance": "APPLIANCE", "step": "STEP / ERROR", "external": "EXTERNAL ID"}


def table(found: Iterable[Document], width: int, now: float, theme: Theme, percents: Percents | None = None) -> Table:
    """The jobs as a table of at most `width` cells; a wider terminal shows more columns.

    `percents`: those of the frame before, if the table is painted in place.
    """
    jobs = list(found)
    shares = (percents or Percents()).of(jobs, now)
    forecast = any(job.get("forecast") for job in jobs)
    absent = {name for name, shown in (("left", forecast), ("instance", is_fleet(jobs))) if not shown}
    wide = width - (_FORECAST_CELLS if forecast else 0)
    columns = [
        name
        for name, least in _COLUMNS.items()
        if (wide if name == "external" else width) >= least and name not in absent
    ]
    headers = {name: _heading(name, width, now) for name in columns}
    rows = [_cells(job, shares[str(job.get("job_id"))], width, now, theme, full_ids=wide >= 120) for job in jobs]
    natural = {
        name: max([len(headers[name]), *(cells[name].cell_len for cells in rows)], default=0) for name in columns
    }
    widths = natural | _fitted(natural, width - _GAP * len(columns))
    drawn = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False, caption_justify="left")
    for name in columns:
        drawn.add_column(
            headers[name],
            no_wrap=True,
            overflow="ellipsis" if theme.unicode else "crop",
            width=widths[name] if name in _FLEXIBLE else None,
        )
    for cells in rows:
        if "external" in columns:
            cells["external"] = _end(cells["external"], widths["external"], theme)
        drawn.add_row(*(cells[name] for name in columns))
    return drawn


def _fitted(natural: Mapping[str, int], room: int) -> dict[str, int]:
    """The widths of the flexible columns, given the natural width of each column. The column "step" gets the rest."""
    left = max(0, room - sum(cells for name, cells in natural.items() if name not in _FLEXIBLE))
    others = [name for name in _FLEXIBLE if name in natural and name != "step"]
    widths: dict[str, int] = {}
    for_step = int(left * _STEP_SHARE) if "step" in natural else 0
    for count, name in enumerate(sorted(others, key=natural.__getitem__)):  # What a short column leaves, others share.
        share = (left - for_step - sum(widths.values())) // (len(others) - count)
        widths[name] = max(1, min(natural[name], share))
    if "step" in natural:
        widths["step"] = max(1, left - sum(widths.values()))
    return widths


def _heading(name: str, width: int, now: float) -> str:
    """The heading of a column; where times are shown, with their zone."""
    zone = f" ({datetime.fromtimestamp(now).astimezone():%Z})" if name == "left" and width >= TIMED else ""
    return f"{_NAMES.get(name, name.upper())}{zone}" if width >= 60 else _SHORT.get(name, "")


def _cells(job: Document, share: float, width: int, now: float, theme: Theme, *, full_ids: bool) -> dict[str, Text]:
    status = str(job.get("status"))
    style = STYLES.get(status, "")
    condition = next(iter(forecasts.conditions(job)), None)
    word = (condition, CONDITION_STYLES[condition]) if condition is not None else (theme.clean(status), style)
    words = Text.assemble(theme.mark(status), " ", word) if width >= 60 else theme.mark(status)
    if condition is not None and width < 60:
        words.append("!", CONDITION_STYLES[condition])
    clock = forecasts.local_clock(now, zone=False)
    bar = theme.bar(share, 8 if width < 100 else 12, style) if width >= 60 else Text()
    began = moment(job.get("started_at"))
    age = formats.duration(max(0.0, now - began.timestamp())).split(" ")[0] if began is not None else ""
    job_id = theme.clean(job.get("job_id"))
    return {
        "status": words,
        "vm": Text(theme.clean(formats.vm_name(job) or "-"), style="bold" if status == "running" else ""),
        "instance": Text(theme.clean(formats.instance(job))),
        "operation": Text(theme.clean(formats.operation(job))),
        "progress": Text.assemble(bar, f" {int(share):3d}%" if width >= 60 else f"{int(share):3d}%"),
        "left": Text(forecasts.short_outlook(job, now, clock if width >= TIMED else None), style="dim"),
        "step": _step(job, theme),
        "elapsed": Text(formats.duration(formats.elapsed(job, now))),
        "age": Text(age),
        "id": Text(job_id if full_ids else theme.clean(ids.short(str(job.get("job_id")), theme)), style="dim"),
        "external": _external(job, theme),
    }


def _step(job: Document, theme: Theme) -> Text:
    """The running step, or the first line of the error of a failed job."""
    if job.get("status") == "failed":
        lines = str(job.get("error") or "").strip().splitlines()
        return Text(theme.clean(lines[0] if lines else ""), style="red")
    return Text(theme.clean(formats.current_step(job)))


def _external(job: Document, theme: Theme) -> Text:
    """The first external ID, and the number of others."""
    first, *others = job.get("external_ids") or [""]
    return Text(theme.clean(first) + (f" +{len(others)}" if others else ""), style="dim")


def _end(text: Text, cells: int, theme: Theme) -> Text:
    """Cut a text at its beginning: an external ID often ends with the time that distinguishes it."""
    if text.cell_len <= cells:
        return text
    plain, room = text.plain, cells - cell_len(theme.ellipsis)
    begin = len(plain)
    while begin and (room := room - cell_len(plain[begin - 1])) >= 0:
        begin -= 1
    return Text(theme.ellipsis + plain[begin:], style=text.style)
