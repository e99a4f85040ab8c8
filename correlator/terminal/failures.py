"""`correlator why` and `correlator failures`: why one job failed, and which jobs failed alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from correlator.client.client import Client
from correlator.client.documents import moment
from correlator.client.messages import Document
from correlator.errors import NotFound
from correlator.terminal import formats, ids
from correlator.terminal.screen import Theme, console_on, print_error, theme_for

MAX_LISTED = 5
"""Names of a kind, and texts, that one line shows."""

Field = tuple[str, str]


async def why(client: Client, name: str, output: str, stdout: TextIO, stderr: TextIO) -> None:
    """Print why the job `name` failed. A note on what is missing goes to `stderr`.

    Raises:
        NotFound: no job has this ID.
        BadRequest: several jobs have this short form.
    """
    found = await client.why(await ids.full(client, name))
    if found is None:
        raise NotFound(f"no job is known by {name!r}")
    _print(found, output, list(why_fields(found)), stdout, stderr)


async def failures(
    client: Client, query: dict[str, str], output: str, stdout: TextIO, stderr: TextIO, *, header: bool = True
) -> None:
    """Print a page of the jobs that failed, grouped. `query`: see `Client.failures`. `header`: name the columns."""
    found = await client.failures(query)
    groups, theme = found["failures"], theme_for(stdout, os.environ)
    if output == "json":
        stdout.write(formats.as_json(found, indent=2) + "\n")
    elif output == "plain":
        heading = ["\t".join(COLUMNS)] if header else []
        stdout.writelines(line + "\n" for line in (*heading, *("\t".join(cells(one, theme)) for one in groups)))
    else:
        console = console_on(stdout)
        if groups:
            console.print(table(groups, console.width, theme))
        else:
            stdout.write("no job failed\n" if found.get("complete") else "no failed job is known yet\n")
    stdout.flush()
    _report_missing(found, stderr)
    if found.get("next_cursor") is not None:
        print_error(stderr, f"there are more failures than these {len(groups)}: see --limit")


async def failure(client: Client, fingerprint: str, output: str, stdout: TextIO, stderr: TextIO) -> None:
    """Print one failure. A note on what is missing goes to `stderr`.

    Raises:
        NotFound: no job failed with this fingerprint.
        BadRequest: it is no fingerprint.
    """
    found = await client.failure(fingerprint)
    if found is None:
        raise NotFound(f"no job failed with the fingerprint {fingerprint!r}")
    _print(found, output, list(failure_fields(found)), stdout, stderr)


def why_fields(found: Document) -> Iterator[Field]:
    """The labelled lines about one job. `found`: the answer of ``GET /api/v1/jobs/{id}/why``."""
    if found["failure"] is None:
        yield "failure", "this job has not failed"
        return
    yield "failure", found["sentence"]
    group = found["group"] or {}
    yield from _of_group(group, found["failure"]["state"])
    if together := found["burst"]:
        within = formats.duration(together["within_seconds"], fine=True)
        yield "burst", f"{together['failed']} jobs failed within {within}, {together['alike']} of them with this text"
    if differs := found["differs"]:
        yield from _of_difference(differs)
    for row in found["rows"]:
        yield f"step {row['step']}" if row["step"] is not None else "job", f"{row['status']}: {row['error']}"
    if found["failure"]["fingerprint"]:
        yield "fingerprint", found["failure"]["fingerprint"]


def failure_fields(found: Document) -> Iterator[Field]:
    """The labelled lines about one failure. `found`: the answer of ``GET /api/v1/failures/{fingerprint}``."""
    group, runs = found["group"], found["next_runs"]
    yield "failure", group["text"]
    yield from _of_group(group)
    for label, names in (("step", group["steps"]), ("operation", group["operations"]), ("vm", group["vms"])):
        if names:
            yield label, _listed(names, group["vm_count"] if label == "vm" else len(names))
    for day in group["days"][-7:]:
        yield "day", f"{day['day']}  {day['count']}"
    if runs["examined"]:
        took = sorted(runs["recovered_seconds"])
        after = f", {formats.duration(took[len(took) // 2])} later in the median" if took else ""
        failed = f"{runs['failed_alike']} failed alike, {runs['failed_otherwise']} failed otherwise"
        yield "next runs", f"{runs['completed']} completed{after}, {failed}, {runs['unknown']} not known"
    yield "template", found["template"]
    for variant in found["variants"][:MAX_LISTED]:
        yield "text", f"{variant['count']} times: {variant['text']}"
    for other in found["similar"]:
        words = f"{other['other_word']!r} for {other['word']!r}"
        yield "similar", f"{other['fingerprint']}: {words}, {_jobs(other['count'])}"
    for job in group["jobs"]:
        yield "job", " ".join(str(part) for part in (job["job_id"], job["vm_name"], job["ended_at"]) if part)


def _of_group(group: Document, state: str | None = None) -> Iterator[Field]:
    """How often this happened, and what operators say of it. `state`: that of the job's failure."""
    if group:
        where = f" on {group['vm_count']} {'VM' if group['vm_count'] == 1 else 'VMs'}" if group["vm_count"] else ""
        of = f" of {_listed(group['instances'])}" if group.get("instances") else ""
        since = "" if group["count"] == 1 else f" since {formats.stamp(group['first_at'])}"
        yield state or "count", f"{_jobs(group['count'])}{where}{of}{since}"
        if note := group["note"]:
            yield "note", " ".join(filter(None, (note["text"], note["link"])))


def _of_difference(differs: Document) -> Iterator[Field]:
    runs = f"the last {differs['runs']} completed runs" + (f" on {differs['vm_name']}" if differs["vm_name"] else "")
    if differs["missing"]:
        yield "missing", f"{_listed(differs['missing'])}: {runs} had it"
    for step in differs["longer"]:
        took, most = (formats.duration(step[name], fine=True) for name in ("seconds", "p90_seconds"))
        yield "longer", f"{step['name']} took {took}; nine of ten of {runs} took at most {most}"


COLUMNS = ("COUNT", "LAST", "VMS", "STEP", "FINGERPRINT", "TEXT")


def cells(group: Document, theme: Theme) -> tuple[str, ...]:
    """The values of `COLUMNS` for one group."""
    step = group["step"] if group["certainty"] in ("stated", "inferred") else None
    last = moment(group["last_at"])
    return (
        str(group["count"]),
        f"{last:%Y-%m-%dT%H:%M:%SZ}" if last is not None else "-",
        str(group["vm_count"]),
        theme.clean(step or "-"),
        theme.clean(group["fingerprint"]),
        theme.clean(group["text"] + (f"  ({group['note']['text']})" if group["note"] else "")),
    )


def table(groups: Sequence[Document], width: int, theme: Theme) -> Table:
    """A row for each group. Below 80 cells the VMs and the step are left out."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", width=width, pad_edge=False)
    shown = [number for number, name in enumerate(COLUMNS) if width >= 80 or name not in ("VMS", "STEP")]
    for number in shown:
        ratio = {"STEP": 1, "TEXT": 3}.get(COLUMNS[number])
        drawn.add_column(COLUMNS[number], no_wrap=True, ratio=ratio, overflow=theme.overflow)
    for group in groups:
        row = cells(group, theme)
        drawn.add_row(*(Text(row[number], style="red" if COLUMNS[number] == "TEXT" else "") for number in shown))
    return drawn


def _print(found: Document, output: str, fields: list[Field], stdout: TextIO, stderr: TextIO) -> None:
    theme, console = theme_for(stdout, os.environ), console_on(stdout)
    if output == "json":
        stdout.write(formats.as_json(found, indent=2) + "\n")
    elif console.is_terminal:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim", max_width=max(14, console.width // 3), overflow=theme.overflow)
        grid.add_column(overflow="fold")
        for label, value in fields:
            grid.add_row(Text(theme.clean(label)), Text(theme.clean(value), style="red" if label == "failure" else ""))
        console.print(grid)
    else:
        stdout.writelines(f"{theme.clean(label):14} {theme.clean(value)}\n" for label, value in fields)
    stdout.flush()
    _report_missing(found, stderr)


def _report_missing(found: Document, stderr: TextIO) -> None:
    if not found.get("complete", True):
        print_error(stderr, f"something may be missing: {found.get('reason') or 'the daemon gave no reason'}")


def _listed(names: Sequence[Any], count: int | None = None) -> str:
    """Some of the names. `count`: of all."""
    shown, count = names[:MAX_LISTED], len(names) if count is None else count
    return ", ".join(map(str, shown)) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
