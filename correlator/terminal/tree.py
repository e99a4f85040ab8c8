"""A job as a tree of lines: its header with a bar, its steps, and under a failed one why it failed.

Pure: the time, the width and the height are told. Every line fits the width, and all together fit the height as long
as that is possible at all: first the steps that went well are folded, then jobs that ended, then all of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from rich.console import Console
from rich.text import Text

from correlator.replica.messages import Document, Log
from correlator.terminal import signs
from correlator.terminal.signs import LEVEL_STYLES, STYLES, Signs

LOG_LINES = 5
"""Log lines that stay open under a failed step, or under a failed job."""

ERROR_LINES = 4
"""Lines of an error while there is more to come; all of it in the end."""

MAX_ERROR = 4000
"""Characters of an error that are looked at."""

_RULER = Console(file=io.StringIO(), width=1000)
"""Wraps text; nothing is printed on it."""

_FULL, _FOLDED, _RUNNING_ONLY, _HEADERS = 3, 2, 1, 0


class Branch(Struct, frozen=True):
    """What is shown of one ID. `job` None: nobody knows it yet."""

    name: str
    job: Document | None = None
    logs: tuple[Log, ...] = ()
    deleted: bool = False


class Frame(Struct, frozen=True):
    """Where it is drawn. `now`: seconds since 1970, by the daemon's clock. `height` 0: as high as it gets."""

    width: int
    height: int
    now: float
    signs: Signs = Signs()


def lines(branches: Sequence[Branch], frame: Frame) -> list[Text]:
    """All of them, one below the other."""
    drawn: list[Text] = []
    for detail in (_FULL, _FOLDED, _RUNNING_ONLY, _HEADERS):
        drawn = [line for branch in branches for line in _branch(branch, frame, detail)]
        if not frame.height or len(drawn) <= frame.height:
            return drawn
    hidden = len(drawn) - frame.height + 1
    more = Text(f"{frame.signs.ellipsis} {hidden} more lines", style="dim")
    return [*drawn[: frame.height - 1], frame.signs.fit(more, frame.width)]


def _branch(branch: Branch, frame: Frame, detail: int) -> list[Text]:
    look, job = frame.signs, branch.job
    name = look.clean(branch.name)
    if job is None:
        waiting = Text.assemble(look.mark("pending"), f" waiting for {name}")
        return [look.fit(waiting, frame.width)]
    drawn = [_title(branch, job, frame)]
    if detail == _HEADERS or (detail == _RUNNING_ONLY and job.get("terminal")):
        return drawn
    drawn.append(_progress(job, frame))
    # The title has the UUID where there is no better name; here stands what was asked for, or what else it is called.
    ids = name if branch.name != job.get("job_id") else look.clean(", ".join(job.get("external_ids") or ()))
    if ids:
        drawn.append(look.fit(Text(f"  {ids}", style="dim"), frame.width))
    return [*drawn, *_steps(branch, job, frame, detail)]


def _title(branch: Branch, job: Document, frame: Frame) -> Text:
    look, status = frame.signs, str(job.get("status"))
    subject = look.clean(signs.vm_name(job) or job.get("job_id"))
    left = Text.assemble(look.mark(status), " ", (subject, "bold"), "  ", look.clean(job.get("operation")))
    words = f"{look.clean(status)}{', stalled' if job.get('stalled') else ''}{', deleted' if branch.deleted else ''}"
    return look.row(left, Text(words, style=STYLES.get(status, "")), frame.width)


def _progress(job: Document, frame: Frame) -> Text:
    look, share = frame.signs, signs.percent(job)
    progress = job.get("progress") or {}
    right = Text(signs.duration(signs.elapsed(job, frame.now)), style="dim")
    seen = progress.get("steps_seen")
    counts = f"{progress.get('steps_done') or 0}/{seen} steps" if seen else ""
    if failed := progress.get("steps_failed"):
        counts += f", {failed} failed"
    cells = max(8, min(40, frame.width - 2 - 5 - 1 - len(counts) - 9))
    bar = look.bar(share, cells, STYLES.get(str(job.get("status")), "cyan"))
    return look.row(Text.assemble("  ", bar, f" {int(share):3d}% ", (counts, "dim")), right, frame.width)


def _steps(branch: Branch, job: Document, frame: Frame, detail: int) -> list[Text]:
    look, drawn = frame.signs, list[Text]()
    steps = signs.steps_of(job)
    if detail < _FULL:
        quiet = [step for _, step in steps if step.get("status") in ("completed", "skipped")]
        steps = [(number, step) for number, step in steps if step not in quiet]
        if quiet:
            done = Text.assemble("  ", look.mark("completed"), f" {len(quiet)} steps done")
            drawn.append(look.fit(done, frame.width))
    told: set[str] = set()
    under: set[int] = set()
    for number, step in steps:
        drawn.append(_step(step, frame))
        if step.get("status") == "failed":
            told.add(str(step.get("error")))
            under.add(int(number) if number.isdecimal() else 0)
            drawn += _error(step.get("error"), frame, indent=6)
            drawn += _logs([log for log in branch.logs if str(log.step_id) == number], frame, indent=6)
    if job.get("status") == "failed":
        if str(job.get("error")) not in told:
            drawn += _error(job.get("error"), frame, indent=2)
        drawn += _logs([log for log in branch.logs if log.step_id not in under], frame, indent=2)
    last = job.get("last_message") or {}
    if job.get("status") == "running" and last.get("text") and detail == _FULL:
        drawn.append(look.fit(Text(f"    {look.clean(last['text'])}", style="dim"), frame.width))
    return drawn


def _step(step: Document, frame: Frame) -> Text:
    look, status = frame.signs, str(step.get("status"))
    took = signs.duration(signs.elapsed(step, frame.now), fine=status != "running")
    name = (look.clean(step.get("name")), "bold" if status == "running" else "")
    return look.row(Text.assemble("  ", look.mark(status), " ", name), Text(took, style="dim"), frame.width)


def _error(error: Any, frame: Frame, indent: int) -> list[Text]:
    if not error:
        return []
    look, room = frame.signs, max(8, frame.width - indent)
    text = Text(look.clean(str(error)[:MAX_ERROR]), style="red")
    found = list(text.wrap(_RULER, room, overflow="fold"))
    for line in found:
        line.rstrip()
    if frame.height and len(found) > ERROR_LINES:
        kept, cut = found[: ERROR_LINES - 1], found[ERROR_LINES - 1 :]
        found = [*kept, Text(" ", style="red").join(cut)]
    return [look.fit(Text.assemble(" " * indent, look.fit(line, room)), frame.width) for line in found]


def _logs(found: Sequence[Log], frame: Frame, indent: int) -> list[Text]:
    look = frame.signs
    return [
        look.fit(
            Text.assemble(
                " " * indent,
                (f"{look.clean(log.level):5} ", LEVEL_STYLES.get(log.level, "")),
                (f"{signs.stamp(log.at)[11:19]} ", "dim"),
                look.clean(log.message),
            ),
            frame.width,
        )
        for log in found[-LOG_LINES:]
    ]
