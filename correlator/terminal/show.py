"""`correlator show`: one job in full."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from correlator.client.client import Client
from correlator.client.messages import Document
from correlator.errors import NotFound
from correlator.terminal import formats, ids
from correlator.terminal.screen import LEVEL_STYLES, STYLES, Theme, console_on, theme_for

Field = tuple[str, Text]


async def show(client: Client, name: str, output: str, stdout: TextIO) -> None:
    """Print one job as text or JSON.

    Raises:
        NotFound: no job has this ID.
        BadRequest: several jobs have this short form.
    """
    job = await ids.find(client, name)
    if job is None:
        raise NotFound(f"no job is known by {name!r}")
    if output == "json":
        stdout.write(formats.as_json(job, indent=2) + "\n")
        return
    console = console_on(stdout)
    found = list(fields(job, time.time(), theme_for(stdout, os.environ)))
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for label, value in found:
            table.add_row(Text(label), value)
        console.print(table)
    else:
        stdout.writelines(f"{label:14} {value.plain}".rstrip() + "\n" for label, value in found)


def fields(job: Document, now: float, theme: Theme) -> Iterator[Field]:
    """The labelled values of a job in the order of printing; members without a value are omitted."""
    yield from _identity(job, theme)
    status = str(job.get("status"))
    stalled = ", stalled: no sign of life" if job.get("stalled") else ""
    late = f", {why}" if (why := formats.reason(job)) else ""
    words = theme.clean(status) + stalled + late
    yield "status", Text.assemble(theme.mark(status), " ", (words, STYLES.get(status, "")))
    if why := formats.failure_sentence(job):
        yield "failure", Text.assemble((theme.clean(why), "red"), (f"  ({job['failure']['state']})", "dim"))
    if job.get("error"):
        yield "error", _error(job, theme)
    yield "progress", _progress(job, now, theme)
    for words in _forecast(job, now):
        yield "forecast", Text(words)
    for member in ("started_at", "ended_at", "updated_at"):
        if job.get(member):
            yield member, _text(theme, job[member])
    yield "elapsed", Text(formats.duration(formats.elapsed(job, now), fine=True))
    if job.get("last_message"):
        yield "last_message", _message(job["last_message"], theme)
    yield "log", Text(formats.counts(job))
    metadata, cut = formats.metadata_of(job)
    for key, value in sorted(metadata.items()):
        written = value if isinstance(value, str) else formats.as_json(value)
        yield "metadata", Text.assemble((f"{theme.clean(key)} ", "dim"), theme.clean(written))
    for key, note in cut.items():
        yield "metadata", Text.assemble((f"{theme.clean(key)} ", "dim"), theme.clean(note))
    for number, step in formats.steps_of(job):
        yield f"step {step.get('seq') or ''}".rstrip(), _step(number, step, now, theme)
    for words in formats.steps_ahead(job):
        yield "step ahead", _text(theme, words, "dim")


def _identity(job: Document, theme: Theme) -> Iterator[Field]:
    yield "job_id", _text(theme, job.get("job_id"), "bold")
    if formats.instance(job):
        yield "instance", _text(theme, formats.instance(job))
    for external in job.get("external_ids") or ():
        yield "external_id", _text(theme, external)
    if job.get("external_ids_cut"):
        yield "external_ids_cut", _text(theme, f"{job['external_ids_cut']} IDs in all, the newest are listed")
    for member in ("context_id", "parent_job_id"):
        if job.get(member):
            yield member, _text(theme, job[member])
    for child in job.get("child_job_ids") or ():
        yield "child_job_id", _text(theme, child)
    if job.get("child_job_ids_cut"):
        yield "child_job_ids_cut", _text(theme, f"{job['child_job_ids_cut']} children in all, the newest are listed")
    for member in ("title", "job_type", "operation", "category", "owner", "source"):
        if job.get(member):
            yield member, _text(theme, job[member])


def _error(thing: Document, theme: Theme) -> Text:
    note = formats.cut_error(thing)
    return Text.assemble((theme.clean(thing["error"]), "red"), (f"  ({note})" if note else "", "dim"))


def _message(message: Document, theme: Theme) -> Text:
    level = str(message.get("level"))
    line = Text.assemble((theme.clean(level), LEVEL_STYLES.get(level, "")), f" {theme.clean(message.get('text'))}")
    return line.append(f"  {theme.clean(message.get('at'))}", "dim")


def _text(theme: Theme, value: Any, style: str = "") -> Text:
    return Text(theme.clean(value), style=style)


def _forecast(job: Document, now: float) -> Iterator[str]:
    """When a running job may end and what that rests on, or how long an ended one took beside others."""
    clock = formats.utc_clock
    texts = (
        formats.outlook(job, now, clock), formats.basis(job, now, clock), formats.typical(job),
        formats.took(job),
    )  # fmt: skip
    yield from filter(None, texts)


def _progress(job: Document, now: float, theme: Theme) -> Text:
    progress, share = job.get("progress") or {}, formats.percent_at(job, now)
    steps = f"{progress.get('steps_done') or 0} of {progress.get('steps_seen') or 0} steps done"
    for kind in ("running", "failed", "skipped"):
        if count := progress.get(f"steps_{kind}"):
            steps += f", {count} {kind}"
    if expected := progress.get("steps_expected"):
        steps += f", about {expected} expected"
    if not job.get("steps_complete", True):
        steps += "; the table of steps cannot be read now, so some are missing"
    bar = theme.bar(share, 20, STYLES.get(str(job.get("status")), ""))
    return Text.assemble(bar, f" {share:.3g}% ({theme.clean(progress.get('basis'))}): {steps}")


def _step(number: str, step: Document, now: float, theme: Theme) -> Text:
    status = str(step.get("status"))
    took = formats.duration(formats.elapsed(step, now), fine=True)
    line = Text.assemble(
        theme.mark(status),
        f" {theme.clean(formats.step_title(step))}  ",
        (f"({theme.clean(step.get('name'))})  " if step.get("title") else "", "dim"),
        (theme.clean(status), STYLES.get(status, "")),
        f"  {took}" if took else "",
        (f"  (id {theme.clean(number)})", "dim"),
    )
    if step.get("error"):
        line.append("  ").append_text(_error(step, theme))
    return line
