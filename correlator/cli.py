"""The command line: what is asked for becomes one call, and how that ends becomes the exit code.

0 it went well, 1 it failed, 2 the command line made no sense, 78 the configuration is wrong; `watch` has more. A
failure that the program expects is one line on standard error for each thing that is wrong; a traceback is shown at
log level debug.
"""

import asyncio
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import click

from correlator import __version__, config, logs, settings
from correlator.errors import CorrelatorError
from correlator.terminal.command import JobId, Since, ask, client_of, of_a_daemon, paints, standard_output

_log = logging.getLogger(__name__)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_STATUSES = ("pending", "running", "completed", "failed", "cancelled")
_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")

_config_option = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Configuration in TOML.  [default: {config.DEFAULT_FILE} where it exists]",
)


class _Commands(click.Group):
    """Turns the exceptions that leave a command into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click's own, which it reports by itself
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if all(isinstance(cause, BrokenPipeError) for cause in _causes(error)):
                # `| head` has enough: click ends it without a word
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            ctx.exit(_report(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Follow a migration appliance's job log, and tell everybody who asks how far each job is."""


@main.command()
@_config_option
def run(file: Path | None) -> None:
    """Run the daemon until it is told to stop."""
    chosen = _load(file)
    logs.configure(chosen.log.level, chosen.log.format, os.environ)
    from correlator.app import run as run_daemon  # noqa: PLC0415 - a command that needs no server loads none

    _drive(run_daemon(chosen, load=lambda: _load(file)))


@main.command()
@_config_option
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def check_config(file: Path | None, output: str) -> None:
    """Print the configuration that holds, or what is wrong with it.

    File, environment and defaults together; passwords do not show.
    """
    shown = settings.redacted(_load(file))
    if output == "json":
        click.echo(json.dumps(shown, indent=2))
    else:
        click.echo("\n".join(f"{dotted} = {settings.toml(value)}" for dotted, value in _flat(shown)))


@main.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8686, show_default=True, help="Of the page; 0: any free."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How fast its time runs.",
)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Keep its files here.")
@click.option("--mqtt/--no-mqtt", default=True, show_default=True, help="A broker too, where one is installed.")
def demo(port: int, rate: float, directory: Path | None, mqtt: bool) -> None:
    """Show it at work on made-up jobs: no database, no broker, no configuration."""
    from correlator.demo.run import demo_main  # noqa: PLC0415 - see run

    logs.configure("warning", "text", os.environ)
    _drive(demo_main(port, rate, directory, mqtt))


@main.command()
@click.option("--status", multiple=True, type=click.Choice(_STATUSES), help="Only these; may be repeated.")
@click.option("--type", "job_type", multiple=True, metavar="TYPE", help="Only these types, e.g. failover.")
@click.option("--operation", multiple=True, help="Only these operations.")
@click.option("--context", "context_id", multiple=True, metavar="ID", help="Only these context IDs.")
@click.option("-q", "text", default="", metavar="TEXT", help="Only with this text in an ID or in the machine's name.")
@click.option("--since", type=Since(), metavar="WHEN", help="Started since: 2h, 7d, or a time.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="No more than these.")
@click.option("-w", "--watch", "follow", is_flag=True, help="Go on, and show every change.")
@click.option(
    "-o",
    "output",
    type=click.Choice(["table", "plain", "json"]),
    help="How to print them.  [default: table on a terminal, else plain]",
)
@of_a_daemon
def jobs(follow: bool, output: str | None, **given: Any) -> None:
    """List jobs, the newest first."""
    from correlator.terminal import listing  # noqa: PLC0415 - see run

    client, stdout = client_of(given), standard_output()
    query = listing.Query(**given)
    chosen: listing.Output = "table" if stdout.isatty() else "plain"
    match output:
        case "table" | "plain" | "json":
            chosen = output
    if follow and chosen == "table" and not paints(stdout):
        chosen = "plain"
    if follow:
        ask(client, lambda: listing.follow_jobs(client, query, chosen, stdout, sys.stderr))
    else:
        ask(client, lambda: listing.jobs(client, query, chosen, stdout))


@main.command()
@click.argument("job_id", metavar="ID", type=JobId())
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@of_a_daemon
def show(job_id: str, output: str, **given: Any) -> None:
    """Show one job in full, by any of its IDs."""
    from correlator.terminal.show import show as show_job  # noqa: PLC0415 - see run

    client, stdout = client_of(given), standard_output()
    ask(client, lambda: show_job(client, job_id, output, stdout))


@main.command()
@click.argument("job_ids", metavar="ID…", type=JobId(), nargs=-1, required=True)
@click.option(
    "--progress",
    type=click.Choice(["tty", "plain", "jsonl"]),
    help="A tree, a line for each transition, or JSON.  [default: tty on a terminal, else plain]",
)
@click.option(
    "--logs",
    "level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="WARN",
    show_default=True,
    help="Show log lines from this level on.",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Wait no longer.")
@click.option("--forever", is_flag=True, help="Stay when all jobs have ended.")
@click.option("--exit-status", is_flag=True, help="Tell by the exit code how they ended.")
@of_a_daemon
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
    """Follow jobs until they have ended, by any of their IDs, also before they exist.

    \b
    Exit codes with --exit-status, of several jobs the highest:
       0  completed       11  cancelled
      10  failed          12  not found within --timeout
    Always: 1 where a job had not ended within --timeout, 12 where one was not found by then.
    """  # noqa: D301 - \b is click's sign for lines that stay as they are
    from correlator.terminal import watch as watching  # noqa: PLC0415 - see run

    client, stdout = client_of(given), standard_output()
    chosen: watching.Progress = "tty" if paints(stdout) else "plain"
    match progress:
        case "tty" | "plain" | "jsonl":
            chosen = progress
    if chosen == "tty" and not stdout.isatty():
        raise click.UsageError("--progress tty needs a terminal")
    order = watching.Order(job_ids, level, timeout, forever, exit_status)
    ctx.exit(ask(client, lambda: watching.watch(client, order, chosen, stdout, sys.stderr)))


@main.command()
@_config_option
@click.option(
    "--level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="DEBUG",
    show_default=True,
    help="From this level on.",
)
@click.option("--job", "job_id", type=JobId(), metavar="ID", help="Only the rows of this job, by any ID.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="How to print them.")
def tap(file: Path | None, level: Any, job_id: str | None, output: Any) -> None:
    """Show each row of the log as it arrives, with the job it belongs to, and why.

    It reads the database by itself, with the configuration of the daemon, which need not run.
    """
    chosen = _load(file)
    logs.configure("warning", "text", os.environ)
    from correlator.app import tap as tap_log  # noqa: PLC0415 - see run
    from correlator.sinks.tap import TapSink  # noqa: PLC0415 - see run

    stdout = standard_output()

    def write(line: str) -> None:
        stdout.write(line + "\n")
        stdout.flush()

    _drive(tap_log(chosen, TapSink(write, level=level, job=job_id, output=output)))


@main.command()
@_config_option
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.option(
    "--url",
    envvar="CORRELATOR_URL",
    show_envvar=True,
    help="Where the running daemon is.  [default: where the configuration has it listen]",
)
@click.pass_context
def doctor(ctx: click.Context, file: Path | None, output: Any, url: str | None) -> None:
    """Look at everything that the daemon needs, and say what is wrong and how to mend it.

    It changes nothing. Exit code 1 where a check failed; warnings are none.
    """
    logs.configure("error", "text", os.environ)
    from correlator.doctor.command import doctor as examine  # noqa: PLC0415 - see run

    ctx.exit(asyncio.run(examine(file, url, output, standard_output(), os.environ)))


@main.command()
@_config_option
@click.option(
    "-o",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write it.  [default: correlator-support-HOST-TIME.tar.gz, here]",
)
@click.pass_context
def support_bundle(ctx: click.Context, file: Path | None, target: Path | None) -> None:
    """Put into one file what somebody needs who is to help from afar: no passwords, no tokens."""
    logs.configure("error", "text", os.environ)
    from correlator.doctor.command import support_bundle as make  # noqa: PLC0415 - see run

    ctx.exit(asyncio.run(make(file, target, standard_output(), os.environ)))


def _load(file: Path | None) -> settings.Config:
    return config.load(file or config.default_file(), os.environ)


def _drive(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end on the fastest event loop that is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - optional, the extra `fast`
    except ImportError:
        return None
    return uvloop.new_event_loop


def _report(error: Exception) -> int:
    """Say what ended the command, on standard error; the exit code."""
    causes = list(_causes(error))
    expected = [cause for cause in causes if isinstance(cause, CorrelatorError)]
    if len(expected) < len(causes):
        _log.critical("ended by a mistake in the program", exc_info=error)
        return CorrelatorError.exit_code
    _log.debug("how it came to this", exc_info=error)
    for line in dict.fromkeys(line for cause in expected for line in str(cause).splitlines()):
        click.echo(f"correlator: {logs.escape(line)}", err=True)
    return max(cause.exit_code for cause in expected)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that tasks ended with, out of the groups that TaskGroups put around them."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _causes(part)
    else:
        yield error


def _flat(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value
