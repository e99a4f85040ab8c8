"""The command line: what is asked for becomes one call, and how that ends becomes the exit code.

0 it went well, 1 it failed, 2 the command line made no sense, 78 the configuration is wrong. A failure that the
program expects is one line on standard error for each thing that is wrong; a traceback is shown at log level debug.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import click

from correlator import __version__, config, logs, settings
from correlator.errors import CorrelatorError

_log = logging.getLogger(__name__)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

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
        except Exception as error:  # noqa: BLE001 - the last one who can say what happened, in the log's own format
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

    _drive(run_daemon(chosen))


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
