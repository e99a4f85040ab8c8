"""The command line: each command becomes one call, and its result becomes the exit code.

Exit codes: 0 success, 1 failure, 2 invalid command line, 78 invalid configuration; `watch` has more. An expected
failure prints one line on standard error for each problem; the traceback is logged at level debug.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

import click

from correlator import __version__
from correlator.config import loading, rendering, schema, values
from correlator.ops import logs
from correlator.terminal.command import (
    JobId,
    Since,
    can_repaint,
    client_from_options,
    daemon_options,
    run_with_client,
    standard_output,
)
from correlator.terminal.failures import Commands
from correlator.terminal.logs_command import logs as logs_command

_STATUSES = ("pending", "running", "completed", "failed", "cancelled")
_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")

_config_option = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Configuration in TOML.  [default: {loading.DEFAULT_FILE} where it exists]",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Follow a migration appliance's job log and publish the progress of each job."""


@main.command()
@_config_option
def run(file: Path | None) -> None:
    """Run the daemon until it receives SIGTERM or SIGINT."""
    chosen = _load(file)
    logs.configure(chosen.log.level, chosen.log.format, os.environ)
    from correlator.app import run as run_daemon  # noqa: PLC0415 - a command that needs no server loads none

    _drive(run_daemon(chosen, load=lambda: _load(file)))


@main.command()
@_config_option
def gateway(file: Path | None) -> None:
    """Serve the jobs of all appliances of a cluster until SIGTERM or SIGINT.

    It reads the NATS servers of [cluster] and no database. The configuration needs [cluster] with a url, and [http].
    """
    chosen = _load(file)
    logs.configure(chosen.log.level, chosen.log.format, os.environ)
    from correlator.gateway.app import run as run_gateway  # noqa: PLC0415 - see run

    _drive(run_gateway(chosen, load=lambda: _load(file)))


@main.command()
@_config_option
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
def check_config(file: Path | None, output: str) -> None:
    """Print the effective configuration, or its errors.

    It combines the file, the environment and the defaults. Passwords are not printed.
    """
    shown = rendering.redacted(_load(file))
    if output == "json":
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo("\n".join(f"{dotted} = {values.toml(value)}" for dotted, value in rendering.flat(shown)))


@main.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port of the page; 0: any free port.  [default: 8686, or any free port if that is in use]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Speed of the demo: 2 is twice real time.",
)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Directory for the demo's files.")
@click.option(
    "--mqtt/--no-mqtt", default=True, show_default=True, help="Start an MQTT broker too, if one is installed."
)
@click.option(
    "--fleet",
    type=click.IntRange(1, 9),
    metavar="N",
    help="Simulate N appliances, each with a collector, a NATS server and two gateways; no MQTT.",
)
def demo(port: int | None, rate: float, directory: Path | None, mqtt: bool, fleet: int | None) -> None:
    """Run the daemon on simulated jobs. It needs no database, no broker and no configuration."""
    logs.configure("warning", "text", os.environ)
    if fleet is not None:
        from correlator.demo.fleet import fleet_main  # noqa: PLC0415 - see run

        _drive(fleet_main(fleet, port, rate, directory))
        return
    from correlator.demo.run import demo_main  # noqa: PLC0415 - see run

    _drive(demo_main(port, rate, directory, mqtt))


@main.command()
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
@click.option(
    "-o",
    "output",
    type=click.Choice(["table", "plain", "json"]),
    help="Output format.  [default: table on a terminal, else plain]",
)
@click.option("--no-header", is_flag=True, help="Omit the column names of plain output.")
@daemon_options
def jobs(follow: bool, output: str | None, limit: int | None, no_header: bool, **given: Any) -> None:
    """List jobs, the newest first.

    With --watch on a terminal the most urgent jobs come first: stalled, overdue, failed within the last hour, late,
    then running.
    """
    from correlator.terminal import listing  # noqa: PLC0415 - see run

    client, stdout = client_from_options(given), standard_output()
    query = listing.Query(**given, limit=limit or (None if follow else 50))
    chosen = _output(output, stdout)
    if follow and chosen == "table" and not can_repaint(stdout):
        chosen = "plain"
    form = listing.Form(chosen, header=not no_header)
    work = listing.follow_jobs if follow else listing.jobs
    run_with_client(client, lambda: work(client, query, form, stdout, sys.stderr))


@main.command()
@click.argument("job_id", metavar="ID", type=JobId())
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@daemon_options
def show(job_id: str, output: str, **given: Any) -> None:
    """Show one job in full. ID is any of its IDs, or the short form that `jobs` prints."""
    from correlator.terminal.show import show as show_job  # noqa: PLC0415 - see run

    client, stdout = client_from_options(given), standard_output()
    run_with_client(client, lambda: show_job(client, job_id, output, stdout))


main.add_command(logs_command)


@main.command()
@click.argument("name", metavar="NAME", type=JobId())
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The most jobs to list.")
@click.option(
    "-o",
    "output",
    type=click.Choice(["table", "plain", "json"]),
    help="Output format.  [default: table on a terminal, else plain]",
)
@click.option("--no-header", is_flag=True, help="Omit the column names of plain output.")
@daemon_options
def history(name: str, limit: int, output: str | None, no_header: bool, **given: Any) -> None:
    """List all jobs of a VM or of a context, the newest first, with outcomes and durations.

    NAME is the exact name of a VM, or a context ID. The newest duration of each operation is compared with the median
    of up to 20 runs before it.
    """
    from correlator.terminal import history as past  # noqa: PLC0415 - see run

    client, stdout = client_from_options(given), standard_output()
    form = past.Form(_output(output, stdout), header=not no_header)
    run_with_client(client, lambda: past.history(client, name, limit, form, stdout, sys.stderr))


@main.command()
@click.argument("job_ids", metavar="ID…", type=JobId(), nargs=-1, required=True)
@click.option(
    "--progress",
    type=click.Choice(["tty", "plain", "jsonl"]),
    help="tty: a tree; plain: one line per transition; jsonl: JSON lines.  [default: tty on a terminal, else plain]",
)
@click.option(
    "--logs",
    "level",
    type=click.Choice(_LEVELS, case_sensitive=False),
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
    from correlator.terminal import watch as watching  # noqa: PLC0415 - see run

    client, stdout = client_from_options(given), standard_output()
    chosen: watching.Progress = "tty" if can_repaint(stdout) else "plain"
    match progress:
        case "tty" | "plain" | "jsonl":
            chosen = progress
    if chosen == "tty" and not stdout.isatty():
        raise click.UsageError("--progress tty needs a terminal")
    order = watching.Order(job_ids, level, timeout, forever, exit_status)
    ctx.exit(run_with_client(client, lambda: watching.watch(client, order, chosen, stdout, sys.stderr)))


@main.command()
@_config_option
@click.option(
    "--level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="DEBUG",
    show_default=True,
    help="Show rows from this level on.",
)
@click.option("--job", "job_id", type=JobId(), metavar="ID", help="Show only the rows of this job, by any ID.")
@click.option("--attributed", is_flag=True, help="Leave out rows without a job.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
def tap(file: Path | None, level: Any, job_id: str | None, attributed: bool, output: Any) -> None:
    """Show each row of the log as it arrives, with its job and the reason for the attribution.

    It reads the database directly, with the daemon's configuration. The daemon need not run. On a terminal a row is one
    line that fits the window; in a pipe nothing is cut.
    """
    chosen = _load(file)
    logs.configure("warning", "text", os.environ)
    from correlator.app import tap as tap_log  # noqa: PLC0415 - see run
    from correlator.sinks.tap import TapSink  # noqa: PLC0415 - see run
    from correlator.terminal.tap import printer  # noqa: PLC0415 - see run

    sink = TapSink(printer(output, standard_output()), level=level, job=job_id, attributed=attributed)
    _drive(tap_log(chosen, sink))


@main.command()
@_config_option
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
@click.option(
    "--url",
    envvar="CORRELATOR_URL",
    show_envvar=True,
    help="URL of the running daemon.  [default: the address in the configuration]",
)
@click.option(
    "--gateway", is_flag=True, help="Check a gateway; without --config the one of /etc/correlator/gateway.toml."
)
@click.pass_context
def doctor(ctx: click.Context, file: Path | None, output: Any, url: str | None, gateway: bool) -> None:
    """Check everything that the daemon needs, and print what is wrong and how to fix it.

    It changes nothing. The exit code is 1 if a check failed; warnings do not count as failures.
    """
    logs.configure("error", "text", os.environ)
    from correlator.doctor.command import doctor as examine  # noqa: PLC0415 - see run

    ctx.exit(asyncio.run(examine(file, url, output, standard_output(), os.environ, gateway=gateway)))


@main.command()
@_config_option
@click.option(
    "-o",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write.  [default: ./correlator-support-HOST-TIME.tar.gz]",
)
@click.pass_context
def support_bundle(ctx: click.Context, file: Path | None, target: Path | None) -> None:
    """Write a file for a support request. It contains no passwords and no tokens."""
    logs.configure("error", "text", os.environ)
    from correlator.doctor.command import support_bundle as make  # noqa: PLC0415 - see run

    ctx.exit(asyncio.run(make(file, target, standard_output(), os.environ)))


def _output(given: str | None, stdout: Any) -> Literal["table", "plain", "json"]:
    """The output format of a list of jobs."""
    match given:
        case "table" | "plain" | "json":
            return given
    return "table" if stdout.isatty() else "plain"


def _load(file: Path | None) -> schema.Config:
    return loading.load(file or loading.default_file(), os.environ)


def _drive(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on uvloop if it is installed, else on asyncio's event loop."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional, the extra `fast`
    except ImportError:
        return None
    return uvloop.new_event_loop
