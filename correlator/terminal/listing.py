"""`correlator jobs`: list jobs, once or continuously, as a table, as lines for scripts, or as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal, TextIO

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from correlator.client.client import Client, JobList
from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.client.replica import Update
from correlator.errors import BadRequest
from correlator.model.document import JobStatus
from correlator.model.messages import Wanted
from correlator.tasks import set_within
from correlator.terminal import formats, ids
from correlator.terminal.formats import Percents, ahead, note
from correlator.terminal.screen import CONDITION_STYLES, STYLES, Screen, Theme, console_on, print_error, theme_for

Output = Literal["table", "plain", "json"]

REDRAW_EVERY = 1.0
RECENT = 3600.0
"""Seconds for which a failed job is listed above the running ones."""

MAX_JOBS = 100_000


class Form(Struct, frozen=True):
    """The output format. `header`: print the column names above plain lines."""

    output: Output
    header: bool = True


class Query(Struct, frozen=True):
    """A filter of jobs; an empty member does not filter.

    `since`, `until`: RFC 3339. `text`: part of any ID or of the machine's name. `words`: each also in the operation, in
    an error or in the name of a step. `state`: of `formats.conditions`, which only running jobs have. `limit`: None for
    all jobs.
    """

    status: tuple[JobStatus, ...] = ()
    job_type: tuple[str, ...] = ()
    operation: tuple[str, ...] = ()
    context_id: tuple[str, ...] = ()
    instance: tuple[str, ...] = ()
    text: str = ""
    words: str = ""
    since: str | None = None
    until: str | None = None
    state: tuple[str, ...] = ()
    limit: int | None = None

    def parameters(self) -> dict[str, str | tuple[str, ...]]:
        """The query parameters of ``GET /api/v1/jobs``."""
        given: dict[str, str | tuple[str, ...] | None] = {
            "status": self._status,
            "job_type": self.job_type,
            "operation": self.operation,
            "context_id": self.context_id,
            "instance": self.instance,
            "q": self.text,
            "text": self.words,
            "since": self.since,
            "until": self.until,
        }
        return {name: value for name, value in given.items() if value}

    def on_page(self) -> dict[str, str]:
        """The same filter for the list of the page, by whole days of its zone; see web/page/route.js.

        Raises:
            BadRequest: the page has no such filter.
        """
        lacks = {"--operation": self.operation, "--context": self.context_id, "a second --type": self.job_type[1:]}
        if lacking := [option for option, value in lacks.items() if value]:
            raise BadRequest(f"--web: the page has no filter for {' and '.join(lacking)}")
        days = {"from": moment(self.since), "to": moment(self.until)}
        given = {
            "q": f"{self.text} {self.words}".strip(),
            "status": ",".join(self._status),
            "forecast": ",".join(state for state in self.state if state != "stalled"),
            "stalled": "1" if "stalled" in self.state else "",
            "type": "".join(self.job_type),
            "instance": ",".join(self.instance),
            **{name: f"{at.astimezone():%Y-%m-%d}" if at is not None else "" for name, at in days.items()},
        }
        return {name: value for name, value in given.items() if value}

    def wanted(self) -> Wanted:
        """The subscription for this filter. It has fewer members; `admits` applies the others."""
        return Wanted(
            status=self._status or None,
            job_type=self.job_type or None,
            context_id=self.context_id or None,
            instance=self.instance or None,
        )

    def filters(self) -> str:
        """The command-line options that only `admits` applies."""
        given = {
            "--state": self.state,
            "--operation": self.operation,
            "--since": self.since,
            "--until": self.until,
            "-q": self.text,
            "--text": self.words,
        }
        return " and ".join(option for option, value in given.items() if value)

    def admits(self, job: Document) -> bool:
        if not self.filters():
            return True
        since, until, began = moment(self.since), moment(self.until), moment(job.get("started_at"))
        names = (*formats.names(job), formats.vm_name(job))
        return (
            self.has_state(job)
            and (not self.operation or job.get("operation") in self.operation)
            and (since is None or (began is not None and began >= since))
            and (until is None or began is None or began < until)
            and (not self.text or _mention(names, self.text))
            and (not self.words or all(_mention((*names, *_texts(job)), word) for word in self.words.split()))
        )

    def has_state(self, job: Document) -> bool:
        return not self.state or any(state in self.state for state in formats.conditions(job))

    @property
    def _status(self) -> tuple[JobStatus, ...]:
        return self.status or (("running",) if self.state else ())


def _mention(texts: Iterable[str], part: str) -> bool:
    return any(part.lower() in text.lower() for text in texts)


def _texts(job: Document) -> Iterator[str]:
    """What a word of the search may be in, besides the names."""
    for thing in (job, *(job.get("steps") or {}).values()):
        yield from (str(thing[member]) for member in ("operation", "name", "error") if thing.get(member))


async def jobs(client: Client, query: Query, form: Form, stdout: TextIO, stderr: TextIO) -> None:
    """Print the jobs once. A note on jobs that are missing goes to `stderr`."""
    # The daemon has no filter for `state`, so that all running jobs are fetched.
    listed = await client.jobs(query.parameters(), (not query.state and query.limit) or MAX_JOBS)
    matching = [job for job in listed.found if query.has_state(job)]
    found = matching[: query.limit]
    theme = theme_for(stdout, os.environ)
    match form.output:
        case "json":
            stdout.write(formats.as_json(found, indent=2) + "\n")
        case "plain":
            stdout.writelines(line + "\n" for line in plain_lines(found, form, theme, fleet=bool(query.instance)))
        case "table":
            console = console_on(stdout)
            console.print(table(found, console.width, time.time(), theme))
    stdout.flush()
    report_missing(listed, found, stderr, more=len(found) < len(matching))


def report_missing(listed: JobList, shown: Sequence[Document], stderr: TextIO, *, more: bool = False) -> None:
    """Say which jobs are not among those that are `shown`. `more`: of `listed` there are some."""
    if listed.incomplete is not None:
        print_error(stderr, f"the list is incomplete: {listed.incomplete}")
    elif listed.more or more:
        print_error(stderr, f"these are the newest {len(shown)}, and there are more: --limit asks for others")


async def follow_jobs(client: Client, query: Query, form: Form, stdout: TextIO, stderr: TextIO) -> None:
    """Print the jobs and every change of them until cancelled."""
    if form.output == "table":
        with Screen(console_on(stdout)) as screen:
            await _follow_table(client, query, screen, theme_for(stdout, os.environ))
        return
    lines, printed_note = FollowedLines(query, form, stdout), ""
    async with contextlib.aclosing(client.follow(query.wanted())) as updates:
        async for update in updates:
            lines.handle(update)
            if note(update) != printed_note:
                printed_note = note(update)
                print_error(stderr, printed_note or "connected again")


class FollowedLines:
    """Prints one line for each visible change, as JSON or columns. The work is proportional to the changed jobs."""

    def __init__(self, query: Query, form: Form, stdout: TextIO) -> None:
        self._query = query
        self._form = form
        self._stdout = stdout
        self._theme = theme_for(stdout, os.environ)
        self._changed: set[str] = set()
        self._fleet: bool | None = None
        """Whether the lines have the appliance; None until the first jobs are known, which decide it."""
        self._printed: dict[str, int] = {}
        """Job ID → hash of the line that was printed last."""

    def handle(self, update: Update) -> None:
        self._changed |= update.changed
        if update.synced and self._fleet is None:
            self._fleet = bool(self._query.instance) or is_fleet(update.jobs.values())
            if self._form.output == "plain" and self._form.header:
                self._stdout.write(header(fleet=self._fleet) + "\n")
        if update.synced and self._changed:
            jobs = update.jobs if self._query.limit is not None else self._of(update)
            for job in newest(jobs.values(), self._query):
                if job["job_id"] in self._changed:
                    self._print(job, time.time() + ahead(update))
            self._changed.clear()
        for job_id, reason in update.gone.items():
            self._changed.discard(job_id)
            if self._printed.pop(job_id, None) is not None and self._form.output == "json":
                self._stdout.write(formats.as_json({"job_id": job_id, "deleted": reason}) + "\n")
        self._stdout.flush()

    def _of(self, update: Update) -> dict[str, Document]:
        return {job_id: update.jobs[job_id] for job_id in self._changed if job_id in update.jobs}

    def _print(self, job: Document, now: float) -> None:
        if self._form.output == "json":
            line = key = formats.as_json(job)
        else:
            fleet = bool(self._fleet)
            line = plain(job, now, self._theme, fleet=fleet)
            key = plain(job, 0.0, self._theme, fleet=fleet)  # elapsed seconds alone are no change
        job_id = str(job["job_id"])
        if self._printed.get(job_id) != hash(key):
            self._printed[job_id] = hash(key)
            self._stdout.write(line + "\n")


async def _follow_table(client: Client, query: Query, screen: Screen, theme: Theme) -> None:
    news, latest, percents = asyncio.Event(), list[Update](), Percents()

    async def receive() -> None:
        async with contextlib.aclosing(client.follow(query.wanted())) as updates:
            async for update in updates:
                latest[:] = [update]
                news.set()

    receiving = asyncio.create_task(receive())
    receiving.add_done_callback(lambda _: news.set())
    try:
        while not receiving.done():
            began = time.monotonic()
            if latest:
                screen.paint(frame(latest[0], query, screen, theme, percents))
            took = time.monotonic() - began
            news.clear()
            await set_within(news, REDRAW_EVERY)
            if latest and latest[0].connection.state == "live":
                # A burst of changes becomes one frame, and painting uses at most a tenth of the time.
                await asyncio.sleep(max(0.1, 9 * took))
        receiving.result()
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


def frame(update: Update, query: Query, screen: Screen, theme: Theme, percents: Percents) -> Group:
    """The frame that fits the window: the most urgent jobs, a count of the hidden ones, and any problem."""
    now = time.time() + ahead(update)
    wanted = [job for job in update.jobs.values() if query.admits(job)]
    problem = note(update) or ("" if update.synced else "this is not all yet: the daemon still sends jobs")
    # One line for the column names, one for the problem, one for the cursor.
    room = max(1, screen.height - 2 - bool(problem))
    most = min(room, query.limit or room)
    if len(wanted) > most or len(wanted) < len(update.jobs):
        most = min(max(1, room - 1), query.limit or room)
    shown = most_urgent(wanted, now, most)
    below = []
    if rest := not_shown(wanted, shown, query, len(update.jobs), theme):
        below.append(theme.fit(Text(rest, style="dim"), screen.width))
    if problem:
        below.append(theme.fit(Text(theme.clean(problem), style="yellow"), screen.width))
    return Group(table(shown, screen.width, now, theme, percents), *below)


def most_urgent(jobs: Iterable[Document], now: float, most: int) -> list[Document]:
    """The `most` most urgent jobs, the newest first among equals.

    The order is stalled, overdue, failed within `RECENT`, late, running, pending, others.
    """

    def place(job: Document) -> tuple[int, str, str]:
        status = job.get("status")
        ended = moment(job.get("ended_at"))
        if conditions := formats.conditions(job):
            rank = {"stalled": 6, "overdue": 5, "late": 3}[conditions[0]]
        elif status == "failed" and ended is not None and now - ended.timestamp() < RECENT:
            rank = 4
        else:
            rank = {"running": 2, "pending": 1}.get(str(status), 0)
        return rank, *_place(job)

    return heapq.nlargest(most, jobs, key=place)


def not_shown(wanted: Sequence[Document], shown: Sequence[Document], query: Query, known: int, theme: Theme) -> str:
    """A summary of the jobs that are not shown, and the reason; "" if all are shown."""
    parts = []
    if hidden := len(wanted) - len(shown):
        counts = Counter(map(_word, wanted))
        counts.subtract(map(_word, shown))
        words = ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=_order) if counts[word])
        why = f"--limit {query.limit}" if len(shown) == query.limit else "the window is too low"
        parts.append(f"{hidden} more: {words} ({why})")
    if without := known - len(wanted):
        parts.append(f"{without} left out by {query.filters()}")
    return f"{theme.ellipsis} {'; '.join(parts)}" if parts else ""


def _word(job: Document) -> str:
    return next(iter(formats.conditions(job)), str(job.get("status")))


def _order(word: str) -> tuple[int, str]:
    known = ("stalled", "overdue", "failed", "late", "running", "pending")
    return known.index(word) if word in known else len(known), word


def newest(jobs: Iterable[Document], query: Query) -> list[Document]:
    """The jobs that match the query, the newest first, up to its limit."""
    found = [job for job in jobs if query.admits(job)]
    return sorted(found, key=_place, reverse=True)[: query.limit]


def _place(job: Document) -> tuple[str, str]:
    return job.get("started_at") or "", job.get("job_id") or ""


def plain_lines(found: Sequence[Document], form: Form, theme: Theme, *, fleet: bool = False) -> Iterator[str]:
    """The jobs as lines for scripts, below the column names. `fleet`: with the appliance even where none is named."""
    fleet = fleet or is_fleet(found)
    if form.header:
        yield header(fleet=fleet)
    for job in found:
        yield plain(job, time.time(), theme, fleet=fleet)


# Jobs as a table that fits the terminal, or as tab-separated lines for scripts. Pure.

PLAIN_COLUMNS = (
    "STARTED", "ID", "STATUS", "PERCENT", "VM", "OPERATION", "STEP", "SECONDS", "STALLED", "ERROR",
    "FORECAST", "P50", "P90",
)  # fmt: skip


INSTANCE_COLUMN = "INSTANCE"
"""The column after these, where jobs name their appliance."""

TIMED = 100
"""Cells from which on the table has the time at which a job may end, and the zone of its times."""


def header(*, fleet: bool = False) -> str:
    """The header line for the lines of `plain`."""
    return "\t".join((*PLAIN_COLUMNS, INSTANCE_COLUMN) if fleet else PLAIN_COLUMNS)


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
        f"{formats.document_percent(job):g}",
        formats.vm_name(job),
        job.get("operation"),
        job.get("current_step"),
        None if seconds is None else f"{seconds:.0f}",
        "stalled" if job.get("stalled") else None,
        job.get("error"),
        forecast.get("state"),
        *(formats.utc_clock(at) if (at := moment(ends.get(name))) is not None else None for name in ("p50", "p90")),
        *((formats.instance(job),) if fleet else ()),
    )
    return "\t".join(theme.clean(column) or "-" for column in columns)


_COLUMNS: Mapping[str, int] = {
    "status": 0, "vm": 0, "instance": 50, "operation": 60, "progress": 30, "left": 64, "step": 90,
    "elapsed": 36, "started": 112, "id": 70, "external": 150,
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

_SHORT_HEADERS = {"vm": "VM", "progress": "   %", "elapsed": "TIME"}
"""Headers of columns in a terminal narrower than 60 cells."""

_HEADERS = {"instance": "APPLIANCE", "step": "STEP / ERROR", "external": "EXTERNAL ID"}


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
    zoned = "left" if forecast else "started"
    headers = {name: _heading(name, width, now if name == zoned else None) for name in columns}
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
            overflow=theme.overflow,
            width=widths[name] if name in _FLEXIBLE else None,
        )
    for cells in rows:
        if "external" in columns:
            cells["external"] = _cut_at_beginning(cells["external"], widths["external"], theme)
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


def _heading(name: str, width: int, now: float | None) -> str:
    """The heading of a column; with the zone of its times at `now`, if there is room."""
    zone = f" ({datetime.fromtimestamp(now).astimezone():%Z})" if now is not None and width >= TIMED else ""
    return f"{_HEADERS.get(name, name.upper())}{zone}" if width >= 60 else _SHORT_HEADERS.get(name, "")


def _cells(job: Document, share: float, width: int, now: float, theme: Theme, *, full_ids: bool) -> dict[str, Text]:
    status = str(job.get("status"))
    style = STYLES.get(status, "")
    condition = next(iter(formats.conditions(job)), None)
    word = (condition, CONDITION_STYLES[condition]) if condition is not None else (theme.clean(status), style)
    words = Text.assemble(theme.mark(status), " ", word) if width >= 60 else theme.mark(status)
    if condition is not None and width < 60:
        words.append("!", CONDITION_STYLES[condition])
    clock = formats.local_clock(now, zone=False)
    bar = theme.bar(share, 8 if width < 100 else 12, style) if width >= 60 else Text()
    job_id = theme.clean(job.get("job_id"))
    return {
        "status": words,
        "vm": Text(theme.clean(formats.vm_name(job) or "-"), style="bold" if status == "running" else ""),
        "instance": Text(theme.clean(formats.instance(job))),
        "operation": Text(theme.clean(formats.operation(job))),
        "progress": Text.assemble(bar, f" {int(share):3d}%" if width >= 60 else f"{int(share):3d}%"),
        "left": Text(formats.short_outlook(job, now, clock if width >= TIMED else None), style="dim"),
        "step": _step_cell(job, theme),
        "elapsed": Text(formats.duration(formats.elapsed(job, now))),
        "started": Text(_began(job, now)),
        "id": Text(job_id if full_ids else theme.clean(ids.short(str(job.get("job_id")), theme)), style="dim"),
        "external": _external_cell(job, theme),
    }


def _began(job: Document, now: float) -> str:
    """When the job began, in local time and as short as other days and years allow."""
    began, today = moment(job.get("started_at")), datetime.fromtimestamp(now).astimezone()
    if began is None:
        return ""
    local = began.astimezone()
    if local.year != today.year:
        return f"{local:%Y-%m-%d}"
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%m-%d %H:%M}"


def _step_cell(job: Document, theme: Theme) -> Text:
    """The running step, or the first line of the error of a failed job."""
    if job.get("status") == "failed":
        lines = str(job.get("error") or "").strip().splitlines()
        return Text(theme.clean(lines[0] if lines else ""), style="red")
    return Text(theme.clean(formats.current_step(job)))


def _external_cell(job: Document, theme: Theme) -> Text:
    """The first external ID, and the number of others."""
    first, *others = job.get("external_ids") or [""]
    return Text(theme.clean(first) + (f" +{len(others)}" if others else ""), style="dim")


def _cut_at_beginning(text: Text, cells: int, theme: Theme) -> Text:
    """Cut a text at its beginning: an external ID often ends with the time that distinguishes it."""
    if text.cell_len <= cells:
        return text
    plain, room = text.plain, cells - cell_len(theme.ellipsis)
    begin = len(plain)
    while begin and (room := room - cell_len(plain[begin - 1])) >= 0:
        begin -= 1
    return Text(theme.ellipsis + plain[begin:], style=text.style)
