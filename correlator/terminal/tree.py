"""A job as a tree of lines: a header with a progress bar, its steps, and the error of a failed step.

Pure: the time, the width and the height are arguments. No line is wider than the width. If all lines do not fit the
height, the steps ahead are left out first, then completed steps are folded, then jobs that have ended, then all jobs;
at last the lines are cut.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from msgspec import Struct
from rich.console import Console
from rich.text import Text

from correlator.client.messages import Document, Log
from correlator.terminal import forecasts, formats
from correlator.terminal.theme import LEVEL_STYLES, STYLES, Theme

LOG_LINES = 5
"""Log lines shown under a failed step or a failed job."""

ERROR_LINES = 4
"""Lines of an error in a live frame; the final output has all of them."""

MAX_ERROR = 4000
"""Characters of an error that are printed at most."""

_RULER = Console(file=io.StringIO(), width=1000)
"""Used to wrap text; nothing is printed on it."""

_AHEAD, _FULL, _FOLDED, _RUNNING_ONLY, _HEADERS = 4, 3, 2, 1, 0


class Branch(Struct, frozen=True):
    """One watched ID with its job and log lines. `job` is None while the daemon does not know the ID.

    `percent`: None for that of the document at the time of the frame.
    """

    name: str
    job: Document | None = None
    logs: tuple[Log, ...] = ()
    deleted: bool = False
    percent: float | None = None


class Frame(Struct, frozen=True):
    """The area to draw in, in cells. `now`: seconds since 1970 by the daemon's clock. `height` 0: unlimited."""

    width: int
    height: int
    now: float
    theme: Theme = Theme()


def lines(branches: Sequence[Branch], frame: Frame) -> list[Text]:
    """Draw all branches, one below the other, with less detail if they do not fit the frame."""
    drawn: list[Text] = []
    for detail in (_AHEAD, _FULL, _FOLDED, _RUNNING_ONLY, _HEADERS):
        drawn = [line for branch in branches for line in _branch(branch, frame, detail)]
        if not frame.height or len(drawn) <= frame.height:
            return drawn
    hidden = len(drawn) - frame.height + 1
    more = Text(f"{frame.theme.ellipsis} {hidden} more lines", style="dim")
    return [*drawn[: frame.height - 1], frame.theme.fit(more, frame.width)]


def _branch(branch: Branch, frame: Frame, detail: int) -> list[Text]:
    theme, job = frame.theme, branch.job
    name = theme.clean(branch.name)
    if job is None:
        waiting = Text.assemble(theme.mark("pending"), f" waiting for {name}")
        return [theme.fit(waiting, frame.width)]
    drawn = [_title(branch, job, frame)]
    if detail == _HEADERS or (detail == _RUNNING_ONLY and job.get("terminal")):
        return drawn
    drawn += [_progress(branch, job, frame), *_outlook(job, frame)]
    # The title may show the UUID. This line has the ID that the user gave, else the external IDs.
    ids = name if branch.name != job.get("job_id") else theme.clean(", ".join(job.get("external_ids") or ()))
    if ids:
        drawn.append(theme.fit(Text(f"  {ids}", style="dim"), frame.width))
    return [*drawn, *_steps(branch, job, frame, detail)]


def _title(branch: Branch, job: Document, frame: Frame) -> Text:
    theme, status = frame.theme, str(job.get("status"))
    subject = theme.clean(formats.vm_name(job) or job.get("job_id"))
    left = Text.assemble(theme.mark(status), " ", (subject, "bold"), "  ", theme.clean(formats.operation(job)))
    if where := theme.clean(formats.instance(job)):
        left.append(f"  on {where}", "dim")
    notes = [*forecasts.conditions(job), *(["deleted"] if branch.deleted else [])]
    words = ", ".join((theme.clean(status), *notes))
    return theme.row(left, Text(words, style=STYLES.get(status, "")), frame.width)


def _progress(branch: Branch, job: Document, frame: Frame) -> Text:
    theme = frame.theme
    share = branch.percent if branch.percent is not None else forecasts.percent(job, frame.now)
    progress = job.get("progress") or {}
    right = Text(formats.duration(formats.elapsed(job, frame.now)), style="dim")
    seen, expected = progress.get("steps_seen"), progress.get("steps_expected") or 0
    of = f"~{expected}" if expected > (seen or 0) else seen
    counts = f"{progress.get('steps_done') or 0}/{of} steps" if of else ""
    if failed := progress.get("steps_failed"):
        counts += f", {failed} failed"
    cells = max(8, min(40, frame.width - 2 - 5 - 1 - len(counts) - 9))
    bar = theme.bar(share, cells, STYLES.get(str(job.get("status")), "cyan"))
    return theme.row(Text.assemble("  ", bar, f" {int(share):3d}% ", (counts, "dim")), right, frame.width)


def _outlook(job: Document, frame: Frame) -> list[Text]:
    """When a running job may end, and why that is believed; or how long an ended one took beside others."""
    clock, short = forecasts.local_clock(frame.now), forecasts.local_clock(frame.now, zone=False)
    late = forecasts.reason(job)
    texts = (
        forecasts.took(job), forecasts.outlook(job, frame.now, clock), late, forecasts.basis(job, frame.now, short)
    )  # fmt: skip
    words = "; ".join(filter(None, texts))
    return [frame.theme.fit(Text(f"  {words}", style="yellow" if late else "dim"), frame.width)] if words else []


def _steps(branch: Branch, job: Document, frame: Frame, detail: int) -> list[Text]:
    theme, drawn = frame.theme, list[Text]()
    steps = formats.steps_of(job)
    if detail < _FULL:
        quiet = [step for _, step in steps if step.get("status") in ("completed", "skipped")]
        steps = [(number, step) for number, step in steps if step not in quiet]
        if quiet:
            done = Text.assemble("  ", theme.mark("completed"), f" {len(quiet)} steps done")
            drawn.append(theme.fit(done, frame.width))
    shown_errors: set[str] = set()
    under: set[int] = set()
    for number, step in steps:
        drawn.append(_step(step, frame))
        if step.get("status") == "failed":
            shown_errors.add(str(step.get("error")))
            under.add(int(number) if number.isdecimal() else 0)
            drawn += _error(step, frame, indent=6)
            drawn += _logs([log for log in branch.logs if str(log.step_id) == number], frame, indent=6)
    if job.get("status") == "failed":
        if str(job.get("error")) not in shown_errors:
            drawn += _error(job, frame, indent=2)
        drawn += _logs([log for log in branch.logs if log.step_id not in under], frame, indent=2)
    last = job.get("last_message") or {}
    if job.get("status") == "running" and last.get("text") and detail >= _FULL:
        drawn.append(theme.fit(Text(f"    {theme.clean(last['text'])}", style="dim"), frame.width))
    if detail == _AHEAD:
        for words in forecasts.steps_ahead(job):
            line = Text.assemble("  ", theme.mark("pending"), f" {theme.clean(words)}")
            line.stylize("dim")
            drawn.append(theme.fit(line, frame.width))
    return drawn


def _step(step: Document, frame: Frame) -> Text:
    theme, status = frame.theme, str(step.get("status"))
    took = formats.duration(formats.elapsed(step, frame.now), fine=status != "running")
    name = (theme.clean(formats.step_title(step)), "bold" if status == "running" else "")
    return theme.row(Text.assemble("  ", theme.mark(status), " ", name), Text(took, style="dim"), frame.width)


def _error(thing: Document, frame: Frame, indent: int) -> list[Text]:
    error, note = thing.get("error"), formats.cut_error(thing)
    if not error:
        return []
    theme, room = frame.theme, max(8, frame.width - indent)
    text = Text(theme.clean(str(error)[:MAX_ERROR]), style="red").append(f" ({note})" if note else "", "dim")
    found = list(text.wrap(_RULER, room, overflow="fold"))
    for line in found:
        line.rstrip()
    if frame.height and len(found) > ERROR_LINES:
        kept, cut = found[: ERROR_LINES - 1], found[ERROR_LINES - 1 :]
        found = [*kept, Text(" ", style="red").join(cut)]
    return [theme.fit(Text.assemble(" " * indent, theme.fit(line, room)), frame.width) for line in found]


def _logs(found: Sequence[Log], frame: Frame, indent: int) -> list[Text]:
    theme = frame.theme
    return [
        theme.fit(
            Text.assemble(
                " " * indent,
                (f"{theme.clean(log.level):5} ", LEVEL_STYLES.get(log.level, "")),
                (f"{formats.stamp(log.at)[11:19]} ", "dim"),
                theme.clean(log.message),
            ),
            frame.width,
        )
        for log in found[-LOG_LINES:]
    ]
