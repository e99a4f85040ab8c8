"""`correlator show`: one job in full."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from correlator.client import Client
from correlator.errors import NotFound
from correlator.replica.messages import Document
from correlator.terminal import signs
from correlator.terminal.signs import LEVEL_STYLES, STYLES, Signs

Field = tuple[str, Text]

SHORT = 8
"""Characters of a UUID that stand for the whole where room is short."""


async def show(client: Client, name: str, output: str, stdout: TextIO) -> None:
    """Raises `NotFound` where nobody knows the ID."""
    job = await client.job(name) or await _by_its_beginning(client, name)
    if job is None:
        raise NotFound(f"no job is known by {name!r}")
    if output == "json":
        stdout.write(signs.as_json(job, indent=2) + "\n")
        return
    console = signs.console_on(stdout)
    found = list(fields(job, time.time(), signs.signs_for(stdout, os.environ)))
    if console.is_terminal:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for label, value in found:
            table.add_row(Text(label), value)
        console.print(table)
    else:
        stdout.writelines(f"{label:14} {value.plain}".rstrip() + "\n" for label, value in found)


async def _by_its_beginning(client: Client, name: str) -> Document | None:
    """The one job whose UUID begins like this: a narrow list of jobs shows no more of it."""
    if len(name) < SHORT:
        return None
    found = [job for job in await client.jobs({"q": name, "steps": "1"}, 2) if str(job["job_id"]).startswith(name)]
    return found[0] if len(found) == 1 else None


def fields(job: Document, now: float, look: Signs) -> Iterator[Field]:
    """What there is to tell, in order; what is not known is left out."""
    yield from _identity(job, look)
    status = str(job.get("status"))
    stalled = ", stalled: nothing is heard of it" if job.get("stalled") else ""
    yield "status", Text.assemble(look.mark(status), " ", (look.clean(status) + stalled, STYLES.get(status, "")))
    if job.get("error"):
        yield "error", _text(look, job["error"], "red")
    yield "progress", _progress(job, look)
    for member in ("started_at", "ended_at", "updated_at"):
        if job.get(member):
            yield member, _text(look, job[member])
    yield "elapsed", Text(signs.duration(signs.elapsed(job, now), fine=True))
    if job.get("last_message"):
        yield "last_message", _message(job["last_message"], look)
    yield "log", Text(f"{job.get('warnings') or 0} warnings, {job.get('errors') or 0} errors")
    for key, value in sorted((job.get("metadata") or {}).items()):
        written = value if isinstance(value, str) else signs.as_json(value)
        yield "metadata", Text.assemble((f"{look.clean(key)} ", "dim"), look.clean(written))
    for number, step in signs.steps_of(job):
        yield f"step {step.get('seq') or ''}".rstrip(), _step(number, step, now, look)


def _identity(job: Document, look: Signs) -> Iterator[Field]:
    yield "job_id", _text(look, job.get("job_id"), "bold")
    for external in job.get("external_ids") or ():
        yield "external_id", _text(look, external)
    for member in ("context_id", "parent_job_id"):
        if job.get(member):
            yield member, _text(look, job[member])
    for child in job.get("child_job_ids") or ():
        yield "child_job_id", _text(look, child)
    for member in ("job_type", "operation", "category", "owner", "source"):
        if job.get(member):
            yield member, _text(look, job[member])


def _message(message: Document, look: Signs) -> Text:
    level = str(message.get("level"))
    said = Text.assemble((look.clean(level), LEVEL_STYLES.get(level, "")), f" {look.clean(message.get('text'))}")
    return said.append(f"  {look.clean(message.get('at'))}", "dim")


def _text(look: Signs, value: Any, style: str = "") -> Text:
    return Text(look.clean(value), style=style)


def _progress(job: Document, look: Signs) -> Text:
    progress, share = job.get("progress") or {}, signs.percent(job)
    steps = f"{progress.get('steps_done') or 0} of {progress.get('steps_seen') or 0} steps done"
    for kind in ("running", "failed", "skipped"):
        if count := progress.get(f"steps_{kind}"):
            steps += f", {count} {kind}"
    bar = look.bar(share, 20, STYLES.get(str(job.get("status")), ""))
    return Text.assemble(bar, f" {share:g}% ({look.clean(progress.get('basis'))}): {steps}")


def _step(number: str, step: Document, now: float, look: Signs) -> Text:
    status = str(step.get("status"))
    took = signs.duration(signs.elapsed(step, now), fine=True)
    line = Text.assemble(
        look.mark(status),
        f" {look.clean(step.get('name'))}  ",
        (look.clean(status), STYLES.get(status, "")),
        f"  {took}" if took else "",
        (f"  (id {look.clean(number)})", "dim"),
    )
    if step.get("error"):
        line.append(f"  {look.clean(step['error'])}", "red")
    return line
