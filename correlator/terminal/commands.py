"""The commands that read from a running daemon or gateway: `jobs`, `show`, `logs`, `history` and `watch`.

Each parses its options and runs one coroutine with a connected client. What it prints is written by the module that it
imports, which is loaded only when the command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import click

from correlator.jobs.model.rows import LEVELS
from correlator.terminal.command import (
    JobId,
    Since,
    can_repaint,
    client_from_options,
    daemon_options,
    run_with_client,
    standard_output,
)

_STATUSES = ("pending", "running", "completed", "failed", "cancelled")


def _list_output(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the format of a list."""
    no_header = click.option("--no-header", is_flag=True, help="Omit the column names of plain output.")
    output = click.option(
        "-o",
        "output",
        type=click.Choice(["table", "plain", "json"]),
        help="Output format.  [default: table on a terminal, else plain]",
    )
    return output(no_header(command))


@click.command()
@click.option(
    "--status", multiple=True, type=click.Choice(_STATUSES), help="Only jobs with this status; may be repeated."
)
@click.option(
    "--state",
    multiple=True,
    type=click.Choice(["stalled", "late", "overdue"]),
    help="Only running jobs that are silent (stalled), or that take longer than 90 % (late) or all (overdue) of the"
    " earlier runs; may be repeated.",
)
@click.option("--type", "job_type", multiple=True, metavar="TYPE", help="Only jobs of this type, e.g. failover.")
@click.option("--operation", multiple=True, help="Only jobs with this operation.")
@click.option("--context", "context_id", multiple=True, metavar="ID", help="Only jobs with this context ID.")
@click.option(
    "--instance", multiple=True, metavar="NAME", help="Only jobs of this appliance, at a gateway; may be repeated."
)
@click.option(
    "-q", "text", default="", metavar="TEXT", help="Only jobs with this text in an ID or in the machine's name."
)
@click.option("--since", type=Since(), metavar="WHEN", help="Only jobs started since: 2h, 7d, or a time.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), help="The most jobs to list.  [default: 50, with --watch all]"
)
@click.option("-w", "--watch", "follow", is_flag=True, help="Keep running and show every change.")
@_list_output
@daemon_options
def jobs(follow: bool, output: str | None, limit: int | None, no_header: bool, **given: Any) -> None:
    """List jobs, the newest first.

    With --watch on a terminal the most urgent jobs come first: stalled, overdue, failed within the last hour, late,
    then running.
    """
    from correlator.terminal import listing  # noqa: PLC0415 - see the module's docstring

    client, stdout = client_from_options(given), standard_output()
    query = listing.Query(**given, limit=limit or (None if follow else 50))
    chosen = _output(output, stdout)
    if follow and chosen == "table" and not can_repaint(stdout):
        chosen = "plain"
    form = listing.Form(chosen, header=not no_header)
    work = listing.follow_jobs if follow else listing.jobs
    run_with_client(client, lambda: work(client, query, form, stdout, sys.stderr))


@click.command()
@click.argument("job_id", metavar="ID", type=JobId())
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@daemon_options
def show(job_id: str, output: str, **given: Any) -> None:
    """Show one job in full. ID is any of its IDs, or the short form that `jobs` prints."""
    from correlator.terminal.show import show as show_job  # noqa: PLC0415 - see the module's docstring

    client, stdout = client_from_options(given), standard_output()
    run_with_client(client, lambda: show_job(client, job_id, output, stdout))


@click.command()
@click.argument("name", metavar="ID", type=JobId())
@click.option(
    "-f", "--follow", is_flag=True, help="Continue with new lines until the job ends; wait for an unknown ID."
)
@click.option(
    "--level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="DEBUG",
    show_default=True,
    help="Only lines from this level on.",
)
@click.option("--step", default="", metavar="NAME|ID", help="Only lines of this step, by its name or ID.")
@click.option("--since", type=Since(), metavar="WHEN", help="Only lines since: 10m, 2h, or a time.")
@click.option("-o", "output", type=click.Choice(["plain", "json"]), default="plain", help="Output format.")
@daemon_options
def logs(output: Any, **given: Any) -> None:
    """Print the log of a job, the oldest line first.

    ID is any ID of a job, or the short form that `jobs` prints. With --follow it may be an ID that no job has yet.
    """
    from correlator.terminal.log_lines import Printer  # noqa: PLC0415 - see the module's docstring
    from correlator.terminal.logs import LogsOrder  # noqa: PLC0415 - see the module's docstring
    from correlator.terminal.logs import logs as print_logs  # noqa: PLC0415 - see the module's docstring

    client, stdout = client_from_options(given), standard_output()
    order = LogsOrder(**given)
    run_with_client(client, lambda: print_logs(client, order, Printer(stdout, output), sys.stderr))


@click.command()
@click.argument("name", metavar="NAME", type=JobId())
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The most jobs to list.")
@_list_output
@daemon_options
def history(name: str, limit: int, output: str | None, no_header: bool, **given: Any) -> None:
    """List all jobs of a VM or of a context, the newest first, with outcomes and durations.

    NAME is the exact name of a VM, or a context ID. The newest duration of each operation is compared with the median
    of up to 20 runs before it.
    """
    from correlator.terminal import history as past  # noqa: PLC0415 - see the module's docstring

    client, stdout = client_from_options(given), standard_output()
    form = past.Form(_output(output, stdout), header=not no_header)
    run_with_client(client, lambda: past.history(client, name, limit, form, stdout, sys.stderr))


@click.command()
@click.argument("job_ids", metavar="ID…", type=JobId(), nargs=-1, required=True)
@click.option(
    "--progress",
    type=click.Choice(["tty", "plain", "jsonl"]),
    help="tty: a tree; plain: one line per transition; jsonl: JSON lines.  [default: tty on a terminal, else plain]",
)
@click.option(
    "--logs",
    "level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default="WARN",
    show_default=True,
    help="Show log lines from this level on.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Stop after this time.")
@click.option("--forever", is_flag=True, help="Keep running when all jobs have ended.")
@click.option("--exit-status", is_flag=True, help="Set the exit code by how the jobs ended.")
@daemon_options
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    job_ids: tuple[str, ...],
    progress: str | None,
    level: Any,
    timeout: float | None,
    forever: bool,
    exit_status: bool,
    **given: Any,
) -> None:
    """Follow jobs until they have ended.

    ID is any ID of a job, also of one that does not exist yet, or the short form that `jobs` prints.

    \b
    Exit codes with --exit-status; the highest if there are several jobs:
       0  completed       11  cancelled
      10  failed          12  not found within --timeout
    Always: 1 where a job had not ended within --timeout, 12 where one was not found by then.
    """  # noqa: D301 - \b makes click keep the line breaks
    from correlator.terminal import watch as watching  # noqa: PLC0415 - see the module's docstring

    client, stdout = client_from_options(given), standard_output()
    chosen: watching.Progress = "tty" if can_repaint(stdout) else "plain"
    match progress:
        case "tty" | "plain" | "jsonl":
            chosen = progress
    if chosen == "tty" and not stdout.isatty():
        raise click.UsageError("--progress tty needs a terminal")
    order = watching.Order(job_ids, level, timeout, forever, exit_status)
    ctx.exit(run_with_client(client, lambda: watching.watch(client, order, chosen, stdout, sys.stderr)))


COMMANDS = (jobs, show, logs, history, watch)


def _output(given: str | None, stdout: Any) -> Literal["table", "plain", "json"]:
    """The output format of a list of jobs."""
    match given:
        case "table" | "plain" | "json":
            return given
    return "table" if stdout.isatty() else "plain"
