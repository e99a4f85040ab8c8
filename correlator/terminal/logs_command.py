"""The command `correlator logs`: its options."""

from __future__ import annotations

import sys
from typing import Any

import click

from correlator.jobs.model.rows import LEVELS
from correlator.terminal.command import (
    JobId,
    Since,
    client_from_options,
    daemon_options,
    run_with_client,
    standard_output,
)


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
    from correlator.terminal.log_lines import Printer  # noqa: PLC0415 - a command that needs no server loads none
    from correlator.terminal.logs import LogsOrder  # noqa: PLC0415 - as above
    from correlator.terminal.logs import logs as print_logs  # noqa: PLC0415 - as above

    client, stdout = client_from_options(given), standard_output()
    order = LogsOrder(**given)
    run_with_client(client, lambda: print_logs(client, order, Printer(stdout, output), sys.stderr))
