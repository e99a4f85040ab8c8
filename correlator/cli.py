"""The command line: each command becomes one call, and its result becomes the exit code.

Exit codes: 0 success, 1 failure, 2 invalid command line, 78 invalid configuration; `watch` has more. An expected
failure prints one line on standard error for each problem; the traceback is logged at level debug.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from correlator import __version__
from correlator.config import loading, rendering, schema, values
from correlator.ops import logs, watchdog
from correlator.terminal import job_tokens
from correlator.terminal.commands import (
    COMMANDS,
    Commands,
    JobId,
    level_option,
    output_option,
    standard_output,
    while_output_is_read,
)
from correlator.terminal.config import config

_log = logging.getLogger(__name__)

_config_option = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Configuration in TOML; its drop-ins are read after it.  [default: {loading.DEFAULT_FILE} where it exists]",
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Follow a migration appliance's job log and publish the progress of each job."""


@main.command()
@_config_option
def run(file: Path | None) -> None:
    """Run the daemon until it receives SIGTERM or SIGINT."""
    chosen = _start(file)
    from correlator.app import run as run_daemon  # noqa: PLC0415 - a command that needs no server loads none

    _drive(run_daemon(chosen, load=lambda: _warned(_load(file)), beat=watchdog.of_process(os.environ)))


@main.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration in TOML; its drop-ins are read after it.  [default: /etc/correlator/gateway.toml where it"
    f" exists, else {loading.DEFAULT_FILE}]",
)
def gateway(file: Path | None) -> None:
    """Serve the jobs of all appliances of a cluster until SIGTERM or SIGINT.

    It reads the NATS servers of [cluster] and no database. The configuration needs [cluster] with a url, and [http].
    """
    from correlator.doctor import service  # noqa: PLC0415 - see run
    from correlator.gateway.app import run as run_gateway  # noqa: PLC0415 - see run

    file = file or (service.GATEWAY_FILE if service.GATEWAY_FILE.exists() else None)
    chosen = _start(file, gateway=True)

    beat = watchdog.of_process(os.environ)
    _drive(run_gateway(chosen, load=lambda: _warned(_load(file, gateway=True)), beat=beat))


@main.command()
@_config_option
@output_option("text", "json", default="text")
@click.option("--gateway", is_flag=True, help="Check that of a gateway; without --config /etc/correlator/gateway.toml.")
def check_config(file: Path | None, output: str, gateway: bool) -> None:
    """Print the effective configuration, or its errors.

    It combines the file, its drop-ins, the environment and the defaults. Passwords are not printed.
    """
    from correlator.doctor import service  # noqa: PLC0415 - see run

    # Only root can read the credentials of the service; anybody may check the rest.
    environ = os.environ if os.geteuid() == 0 else {"CREDENTIALS_DIRECTORY": "", **os.environ}
    setting = service.load(file, environ, gateway=gateway)
    for line in setting.twice:
        click.echo(f"correlator: warning: {logs.escape(line)}", err=True)
    if output == "json":
        click.echo(json.dumps(rendering.redacted(setting.config), indent=2))
    else:
        click.echo("\n".join(f"{key} = {values.toml(value)}" for key, _, value in schema.settings(setting.config)))


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
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Also serve pages of this origin, as of a GUI in development: http://localhost:5173.",
)
def demo(
    port: int | None, rate: float, directory: Path | None, mqtt: bool, fleet: int | None, origins: tuple[str, ...]
) -> None:
    """Run the daemon on simulated jobs. It needs no database, no broker and no configuration."""
    logs.configure("warning", "text", os.environ)
    if fleet is not None:
        from correlator.demo.fleet import fleet_main  # noqa: PLC0415 - see run

        _drive(fleet_main(fleet, port, rate, directory, origins))
        return
    from correlator.demo.run import demo_main  # noqa: PLC0415 - see run

    _drive(demo_main(port, rate, directory, mqtt, origins))


for _command in (config, *COMMANDS):
    main.add_command(_command)


@main.group(cls=Commands)
def cluster() -> None:
    """Prepare the NATS servers of a cluster."""


@cluster.command("create")
@_config_option
@click.option("--gateway", is_flag=True, help="The file is a gateway's; without --config /etc/correlator/gateway.toml.")
@click.pass_context
def create_streams(ctx: click.Context, file: Path | None, gateway: bool) -> None:
    """Create the streams of the cluster that are missing, and reset foreign settings of the others.

    It connects as [cluster] says. The user of NATS needs the right for it, which neither collectors nor gateways have.
    What the streams hold stays, so it may run again. The exit code is 1 if NATS refuses a change.
    """
    from correlator.doctor import service  # noqa: PLC0415 - see run
    from correlator.terminal.cluster import create  # noqa: PLC0415 - see run

    logs.configure("error", "text", os.environ)
    lines, complete = asyncio.run(create(service.load(file, os.environ, gateway=gateway).config.cluster))
    click.echo("\n".join(map(logs.escape, lines)))
    ctx.exit(0 if complete else 1)


@main.command()
@_config_option
@click.option("--job", default="", metavar="ID", help="Any ID of the job, which need not exist yet.")
@click.option("--vm", default="", metavar="NAME", help="Instead of one job, those of this VM.")
@click.option("--for", "valid_for", default="15m", show_default=True, metavar="TIME", help="How long it is valid.")
@click.option("--instance", default="", metavar="NAME", help="For the jobs of this appliance only (cluster.instance).")
@click.option("--gateway", is_flag=True, help="With the key of a gateway; without --config of gateway.toml.")
def token(file: Path | None, job: str, vm: str, valid_for: str, instance: str, gateway: bool) -> None:
    """Print a token that shows one job, or the jobs of one VM, and nothing else.

    It is signed with the key in http.job_token_key_file, or the credential job-token-key. The daemon is not asked, and
    need not run.
    """
    from correlator.doctor import service  # noqa: PLC0415 - see run

    logs.configure("error", "text", os.environ)
    settings = service.load(file, os.environ, gateway=gateway).config.http
    click.echo(job_tokens.create(settings, job, vm, valid_for, instance))


@main.command()
@_config_option
@level_option("--level", "DEBUG", "Show rows from this level on.")
@click.option("--job", "job_id", type=JobId(), metavar="ID", help="Show only the rows of this job, by any ID.")
@click.option("--attributed", is_flag=True, help="Leave out rows without a job.")
@output_option("text", "json", default="text")
def tap(file: Path | None, level: Any, job_id: str | None, attributed: bool, output: Any) -> None:
    """Show each row of the log as it arrives, with its job and the reason for the attribution.

    It reads the database directly, with the daemon's configuration. The daemon need not run. On a terminal a row is one
    line that fits the window; in a pipe nothing is cut.
    """
    from correlator.doctor import service  # noqa: PLC0415 - see run

    chosen = service.load(file, os.environ).config
    logs.configure("warning", "text", os.environ)
    from correlator.app import tap as tap_log  # noqa: PLC0415 - see run
    from correlator.sinks.tap import TapSink  # noqa: PLC0415 - see run
    from correlator.sources.databases import database_of  # noqa: PLC0415 - see run
    from correlator.terminal.tap import printer  # noqa: PLC0415 - see run

    database_of(chosen)  # loads the driver, while this process may read the folders of its user
    sink = TapSink(printer(output, standard_output()), level=level, job=job_id, attributed=attributed)
    with service.as_account(chosen):
        _drive(while_output_is_read(tap_log(chosen, sink)))


@main.command()
@_config_option
@output_option("text", "json", default="text")
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
    from correlator.doctor import examination, service  # noqa: PLC0415 - see run
    from correlator.terminal.doctor import print_report  # noqa: PLC0415 - see run

    setting = service.load(file, os.environ, gateway=gateway)
    report = asyncio.run(examination.examine(setting, url, os.environ.get("CORRELATOR_TOKEN", ""))).report
    if output == "json":
        click.echo(json.dumps(report.document(), indent=2))
    else:
        print_report(report, standard_output(), os.environ)
    ctx.exit(0 if report.ok else 1)


@main.command()
@_config_option
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Instead, wait until it is ready: it has read the tables. Give up after this time.",
)
@click.pass_context
def health(ctx: click.Context, file: Path | None, wait: float | None) -> None:
    """Ask the daemon or the gateway of this host whether it makes progress.

    This is the health check of a container. The exit code is 1 if it does not, or does not answer within 4 s. A
    database that is away is no reason.
    """
    from correlator.doctor import service  # noqa: PLC0415 - see run

    environ = os.environ
    problem = service.unhealthy(environ, file) if wait is None else service.unready(environ, file, wait)
    if problem is not None:
        click.echo(f"correlator: {problem}", err=True)
        ctx.exit(1)


@main.command()
@_config_option
@click.option(
    "-o",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write.  [default: ./correlator-support-HOST-TIME.tar.gz]",
)
@click.option(
    "--gateway", is_flag=True, help="That of a gateway; without --config the one of /etc/correlator/gateway.toml."
)
@click.pass_context
def support_bundle(ctx: click.Context, file: Path | None, target: Path | None, gateway: bool) -> None:
    """Write a file for a support request. It contains no passwords and no tokens."""
    logs.configure("error", "text", os.environ)
    from correlator.doctor.bundle import support_bundle as make  # noqa: PLC0415 - see run

    ctx.exit(asyncio.run(make(file, target, standard_output(), os.environ, gateway=gateway)))


def _load(file: Path | None, *, gateway: bool = False) -> loading.Loaded:
    return loading.loaded(file or loading.default_file(), os.environ, gateway=gateway)


def _start(file: Path | None, *, gateway: bool = False) -> schema.Config:
    """Load the configuration of a process that runs from now on, and begin its log."""
    found = _load(file, gateway=gateway)
    logs.configure(found.config.log.level, found.config.log.format, os.environ)
    return _warned(found)


def _warned(found: loading.Loaded) -> schema.Config:
    for line in found.twice:
        _log.warning("%s", line)
    return found.config


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
