"""The commands that read from a running daemon, such as `jobs` and `watch`, and what all commands share.

Each command parses its options and runs one coroutine with a connected client. What it prints is written by the module
that it imports, which is loaded only when the command runs: every command imports this module, the daemon too, so the
client is imported only where it is used. A command that failed ends with one line on standard error for each problem
and an exit code (`Commands`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import click

from correlator.config import values
from correlator.errors import BadRequest, CorrelatorError
from correlator.model.document import JOB_STATUSES, MAX_ID
from correlator.model.rows import LEVELS
from correlator.ops.logs import escape

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from correlator.client.client import Client
    from correlator.doctor import service
    from correlator.model.rows import Level
    from correlator.terminal.listing import Output
    from correlator.terminal.watch import Progress

_log = logging.getLogger(__name__)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, which lists and completions show whole."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) ", paragraph)[0]


class Commands(click.Group):
    """Turns the exceptions of a command into messages and exit codes. Its help cuts no description of a command."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if cmd.short_help is None and cmd.help:
            cmd.short_help = first_sentence(cmd.help)
        super().add_command(cmd, name)

    def main(self, *args: Any, **settings: Any) -> Any:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the shell, as in `>&-`
                setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        try:
            return super().main(*args, **settings)
        except OSError as error:  # of the help, or of an error in the command line
            if error.errno not in _FULL:
                raise
            sys.exit(_report_failure(error))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise click.UsageError(f"{argument!a} is no text in UTF-8", ctx) from None
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                with contextlib.suppress(ValueError):  # closed
                    sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click reports its own exceptions
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)
        except Exception as error:
            if all(isinstance(cause, BrokenPipeError) for cause in _causes(error)):
                # the program that read the pipe has ended, as in `| head`: click exits silently
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            ctx.exit(_report_failure(error))


def _report_failure(error: Exception) -> int:
    """Print the errors that ended the command on standard error, and return the exit code."""
    causes = [_expected(cause) for cause in _causes(error)]
    expected = [cause for cause in causes if isinstance(cause, CorrelatorError)]
    if len(expected) < len(causes):
        _log.critical(
            "the command ended because of an internal error; please report it with this traceback", exc_info=error
        )
        return CorrelatorError.exit_code
    _log.debug("traceback of the error", exc_info=error)
    for line in dict.fromkeys(line for cause in expected for line in str(cause).splitlines()):
        click.echo(f"correlator: {escape(line)}", err=True)
    return max(cause.exit_code for cause in expected)


def _expected(error: BaseException) -> BaseException:
    """Return a failure to write as a `CorrelatorError`. What could not be written to standard output is dropped."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return error
    if error.filename is None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CorrelatorError(f"{error.filename or 'the output'} cannot be written: {error.strerror}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside the nested groups of TaskGroups, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _causes(part)
    else:
        yield error


_T = TypeVar("_T")


class Since(click.ParamType[str]):
    """A duration before now (``2h``) or a time; converted to RFC 3339. A time without a zone is local time."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return f"{datetime.now(UTC) - timedelta(seconds=values.seconds(value)):%Y-%m-%dT%H:%M:%S.%fZ}"
        except (ValueError, OverflowError):
            pass
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r}: expected e.g. 2h, 7d or 2025-09-22T10:00:00Z", param, ctx)
        return when.astimezone(UTC).isoformat().replace("+00:00", "Z")  # local time if it has no zone


class JobId(click.ParamType[str]):
    """Any ID of a job, of a length that the daemon accepts. `offers`: the function of `completion` that names jobs."""

    name = "id"
    offers = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not 0 < len(value) <= MAX_ID:
            self.fail(f"an ID has 1 to {MAX_ID} characters", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from correlator.terminal import completion  # noqa: PLC0415 - see the module's docstring

        del param  # the type says what is offered
        return completion.offered(
            partial(daemon_from_options, ctx.params), incomplete, getattr(completion, self.offers)
        )


class EntityName(JobId):
    """The name of a VM, or a context ID."""

    name = "name"
    offers = "entities"


def _use_utc(_context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Make UTC the time zone of this process."""
    if wanted:
        os.environ["TZ"] = "UTC"
        time.tzset()


def daemon_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the daemon's URL, the token, TLS and the time zone to `command`."""
    for option in (
        click.option(
            "--utc",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_use_utc,
            help="Print and read times in UTC.  [default: your time zone on a terminal, UTC in a pipe]",
        ),
        click.option("--insecure", is_flag=True, help="Do not check the certificate of an https URL."),
        click.option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="Certificates to trust, in PEM."),
        click.option(
            "--token-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="File whose first line is the token.  [default: CORRELATOR_TOKEN; without --url the service's]",
        ),
        click.option(
            "--url",
            envvar="CORRELATOR_URL",
            show_envvar=True,
            help="URL of the daemon.  [default: the address in the configuration of this host]",
        ),
    ):
        command = option(command)
    return command


def daemon_from_options(given: Mapping[str, Any]) -> service.DaemonAddress:
    """Return the daemon that the options of `daemon_options` name.

    Raises:
        click.UsageError: the token or the certificates are not usable.
    """
    from correlator.config.schema import Tls, client_context  # noqa: PLC0415 - a command that fails early loads none
    from correlator.doctor import service  # noqa: PLC0415 - a command that fails early loads none

    url, ca, insecure, file = (given.get(name) for name in ("url", "ca", "insecure", "token_file"))
    config = None if url else service.of_this_host(os.environ)
    token = os.environ.get("CORRELATOR_TOKEN", "")
    if not token and config is not None:
        token = service.token_of(config)  # that of the service, if this user may read it
    try:
        token = file.read_text(encoding="utf-8").split("\n")[0].strip() if file else token
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"--token-file: {file} cannot be read: {error}") from error
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise click.UsageError(
            "the token has characters that are not allowed in an HTTP header: use printable ASCII without spaces"
        )
    try:
        context = client_context(Tls(ca=ca, verify=not insecure)) if ca or insecure else None
        if config is not None and config.http.tls_cert is not None and context is None:
            context = service.own_context(config)
    except OSError as error:  # ssl.SSLError is one
        raise click.UsageError(f"--ca: {ca or (config and config.http.tls_cert)} cannot be used: {error}") from error
    if config is not None:
        return service.DaemonAddress(service.url_of(config), config.http.public_url or "", token, context)
    return service.DaemonAddress(url or "", "", token, context)


def client_from_options(given: dict[str, Any]) -> tuple[Client, str]:
    """Return the client from the options of `daemon_options`, which are removed from `given`, and the URL of the page.

    Raises:
        click.UsageError: the URL, the token or the certificates are not usable.
    """
    from correlator.client.client import DEFAULT_URL, Client  # noqa: PLC0415 - a command that fails early loads none

    daemon = daemon_from_options(given)
    for name in ("url", "ca", "insecure", "token_file"):
        del given[name]
    try:
        client = Client(daemon.url or DEFAULT_URL, token=daemon.token, ssl=daemon.ssl)
    except BadRequest as error:
        raise click.UsageError(f"--url: {error}") from error
    return client, daemon.page or client.url


_web_option = click.option("--web", is_flag=True, help="Open the page in a browser instead, and print its address.")


def open_page(base: str, *view: str, **filters: str) -> None:
    """Print the address of a view of the page at `base`, and open it where there is a desktop."""
    import webbrowser  # noqa: PLC0415 - see the module's docstring
    from urllib.parse import urlencode  # noqa: PLC0415 - see the module's docstring

    from correlator.web import address  # noqa: PLC0415 - see the module's docstring

    url = address(base, *view)
    url = f"{url}?{urlencode(filters)}" if filters else f"{url}"
    click.echo(url)
    if sys.platform == "darwin" or any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")):
        webbrowser.open(url)


def standard_output() -> Any:
    """Standard output; characters that it cannot encode are printed escaped."""
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def can_repaint(stream: Any) -> bool:
    """True if the stream is a terminal that can move its cursor."""
    return bool(stream.isatty()) and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


async def while_output_is_read(work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns. It is cancelled when nobody reads from standard output any more, as in `| head`.

    Raises:
        BrokenPipeError: nobody reads from it any more.
    """
    loop, task, gone = asyncio.get_running_loop(), asyncio.ensure_future(work), False
    pipe = None
    with contextlib.suppress(OSError, ValueError):  # no file, as in tests
        descriptor = sys.stdout.fileno()
        pipe = descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None

    def end(pipe: int) -> None:
        nonlocal gone
        gone = True
        loop.remove_reader(pipe)
        task.cancel()

    if pipe is not None:
        loop.add_reader(pipe, end, pipe)  # The writing end of a pipe becomes readable only when nobody reads from it.
    try:
        return await task
    except asyncio.CancelledError:
        if gone:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        raise
    finally:
        if pipe is not None:
            loop.remove_reader(pipe)


def run_with_client(client: Client, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run `work` while `client` is open. SIGTERM and SIGHUP cancel it, so that it can restore the terminal.

    Raises:
        click.exceptions.Exit: with 128 + the number of the signal.
    """
    received: list[int] = []

    async def cancellable() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        async with client:
            return await while_output_is_read(work())

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise click.exceptions.Exit(128 + received[0] if received else 1) from None
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()


Option: TypeAlias = "Callable[[Callable[..., None]], Callable[..., None]]"


def output_option(*forms: str, default: str | None, help: str = "Output format.") -> Option:  # noqa: A002 - as click's
    return click.option("-o", "output", type=click.Choice(forms), default=default, help=help)


def level_option(name: str, default: str, help: str) -> Option:  # noqa: A002 - as click's
    levels = click.Choice(LEVELS, case_sensitive=False)
    return click.option(name, "level", type=levels, default=default, show_default=True, help=help)


def _list_output(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the format of a list."""
    no_header = click.option("--no-header", is_flag=True, help="Omit the column names of plain output.")
    form = "Output format.  [default: table on a terminal, else plain]"
    return output_option("table", "plain", "json", default=None, help=form)(no_header(command))


_since_option = click.option(
    "--since", type=Since(), metavar="WHEN", help="Only jobs started since: 2h, 7d, or a time."
)


@click.command()
@click.option(
    "--status", multiple=True, type=click.Choice(JOB_STATUSES), help="Only jobs with this status; may be repeated."
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
@click.option(
    "--text",
    "words",
    default="",
    metavar="WORDS",
    help="Only jobs with each of these words in an ID, the machine's name, the operation, an error or a step's name.",
)
@_since_option
@click.option("--until", type=Since(), metavar="WHEN", help="Only jobs started before: 2h, 7d, or a time.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), help="The most jobs to list.  [default: 50, with --watch all]"
)
@click.option("-w", "--watch", "follow", is_flag=True, help="Keep running and show every change.")
@click.option("--logs", "in_logs", is_flag=True, help="List the log lines of any job that have each word of --text.")
@_web_option
@_list_output
@daemon_options
def jobs(
    follow: bool, web: bool, output: Output | None, limit: int | None, no_header: bool, in_logs: bool, **given: Any
) -> None:
    """List jobs, the newest first; with --logs, lines of their logs.

    With --watch on a terminal the most urgent jobs come first: stalled, overdue, failed within the last hour, late,
    then running.
    """
    from correlator.terminal import listing  # noqa: PLC0415 - see the module's docstring

    (client, page), stdout = client_from_options(given), standard_output()
    query = listing.Query(**given, limit=limit or (None if follow else 50))
    if web:
        open_page(page, "", **query.on_page())
        return
    if in_logs:
        asked = query.parameters()
        if not query.words or follow or query.state or asked.keys() - {"text", "since", "until", "instance"}:
            raise click.UsageError(
                "--logs goes with --text, and of the others with --since, --until, --instance, --limit"
            )
        from correlator.terminal.logs import find_lines  # noqa: PLC0415 - see the module's docstring

        lines: Literal["plain", "json"] = "json" if output == "json" else "plain"
        run_with_client(client, lambda: find_lines(client, asked, limit or 50, stdout, lines, sys.stderr))
        return
    chosen = output or ("table" if stdout.isatty() else "plain")
    if follow and chosen == "table" and not can_repaint(stdout):
        chosen = "plain"
    form = listing.Form(chosen, header=not no_header)
    work = listing.follow_jobs if follow else listing.jobs
    run_with_client(client, lambda: work(client, query, form, stdout, sys.stderr))


@click.command()
@click.argument("job_id", metavar="ID", type=JobId())
@output_option("text", "json", default="text")
@_web_option
@daemon_options
def show(job_id: str, output: str, web: bool, **given: Any) -> None:
    """Show one job in full. ID is any of its IDs, or the short form that `jobs` prints."""
    from correlator.terminal import ids  # noqa: PLC0415 - see the module's docstring
    from correlator.terminal.show import show as show_job  # noqa: PLC0415 - see the module's docstring

    (client, page), stdout = client_from_options(given), standard_output()
    if web:
        open_page(page, "jobs", run_with_client(client, lambda: ids.full(client, job_id)))
        return
    run_with_client(client, lambda: show_job(client, job_id, output, stdout))


@click.command()
@click.argument("name", metavar="ID", type=JobId())
@click.option(
    "-f", "--follow", is_flag=True, help="Continue with new lines until the job ends; wait for an unknown ID."
)
@level_option("--level", "DEBUG", "Only lines from this level on.")
@click.option("--step", default="", metavar="NAME|ID", help="Only lines of this step, by its name or ID.")
@click.option("--since", type=Since(), metavar="WHEN", help="Only lines since: 10m, 2h, or a time.")
@click.option(
    "--grep",
    default="",
    metavar="TEXT",
    help="Only lines with this text in the message or the attributes, in any case.",
)
@click.option(
    "-n", "--tail", type=click.IntRange(1, 10_000), metavar="N", help="Only the last N lines that match; then new ones."
)
@output_option("plain", "json", default="plain")
@daemon_options
def logs(output: Any, **given: Any) -> None:
    """Print the log of a job, the oldest line first.

    ID is any ID of a job, or the short form that `jobs` prints. With --follow it may be an ID that no job has yet.
    """
    from correlator.terminal import logs as printing  # noqa: PLC0415 - see the module's docstring

    (client, _), stdout = client_from_options(given), standard_output()
    order = printing.LogsOrder(**given)
    run_with_client(client, lambda: printing.logs(client, order, printing.Printer(stdout, output), sys.stderr))


@click.command()
@click.argument("name", metavar="NAME", type=EntityName())
@_since_option
@_web_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The most jobs to list.")
@_list_output
@daemon_options
def history(
    name: str, since: str | None, web: bool, limit: int, output: Output | None, no_header: bool, **given: Any
) -> None:
    """List all jobs of a VM or of a context, the newest first, with outcomes and durations.

    NAME is the exact name of a VM, or a context ID. The newest duration of each operation is compared with the median
    of up to 20 runs before it.
    """
    from correlator.terminal import history as past  # noqa: PLC0415 - see the module's docstring
    from correlator.terminal.listing import Form  # noqa: PLC0415 - see the module's docstring

    (client, page), stdout = client_from_options(given), standard_output()
    if web:
        open_page(page, "entities", name)
        return
    form = Form(output or ("table" if stdout.isatty() else "plain"), header=not no_header)
    run_with_client(client, lambda: past.history(client, name, since, limit, form, stdout, sys.stderr))


@click.command()
@click.argument("job_id", metavar="ID", type=JobId())
@output_option("text", "json", default="text")
@daemon_options
def why(job_id: str, output: str, **given: Any) -> None:
    """Say why a job failed: in which step, since when that happens, and what differs from earlier runs.

    ID is any of its IDs, or the short form that `jobs` prints.
    """
    from correlator.terminal import failures as of_failures  # noqa: PLC0415 - see the module's docstring

    (client, _), stdout = client_from_options(given), standard_output()
    run_with_client(client, lambda: of_failures.why(client, job_id, output, stdout, sys.stderr))


@click.command()
@click.argument("fingerprint", metavar="[FINGERPRINT]", default="")
@click.option("--since", type=Since(), metavar="WHEN", help="Only jobs that failed since: 2h, 7d, or a time.")
@click.option("--operation", default="", help="Only jobs with this operation.")
@click.option("--vm", default="", metavar="NAME", help="Only jobs of this VM.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="The most failures to list.")
@_list_output
@daemon_options
def failures(
    fingerprint: str, limit: int, output: Output | None, no_header: bool, since: str | None, **given: Any
) -> None:
    """List the jobs that failed, grouped by failure, or show one failure.

    FINGERPRINT is that of a failure, as this list and `why` print it.
    """
    from correlator.terminal import failures as of_failures  # noqa: PLC0415 - see the module's docstring

    asked = {"since": since, "operation": given.pop("operation"), "vm": given.pop("vm")}
    query = {name: value for name, value in asked.items() if value}
    (client, _), stdout = client_from_options(given), standard_output()
    chosen = output or ("table" if stdout.isatty() else "plain")
    if not fingerprint:
        query["limit"] = str(limit)
        run_with_client(
            client, lambda: of_failures.failures(client, query, chosen, stdout, sys.stderr, header=not no_header)
        )
        return
    if query:
        raise click.UsageError(f"--{next(iter(query))} is for the list: omit it, or FINGERPRINT")
    run_with_client(client, lambda: of_failures.failure(client, fingerprint, chosen, stdout, sys.stderr))


@click.command()
@click.argument("job_ids", metavar="ID…", type=JobId(), nargs=-1, required=True)
@click.option(
    "--progress",
    type=click.Choice(["tty", "plain", "jsonl"]),
    help="tty: a tree; plain: one line per transition; jsonl: JSON lines.  [default: tty on a terminal, else plain]",
)
@level_option("--logs", "WARN", "Show log lines from this level on.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Stop after this time.")
@click.option("--forever", is_flag=True, help="Keep running when all jobs have ended.")
@click.option("--exit-status", is_flag=True, help="Set the exit code by how the jobs ended.")
@daemon_options
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    job_ids: tuple[str, ...],
    progress: Progress | None,
    level: Level,
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

    (client, _), stdout = client_from_options(given), standard_output()
    chosen = progress or ("tty" if can_repaint(stdout) else "plain")
    if chosen == "tty" and not stdout.isatty():
        raise click.UsageError("--progress tty needs a terminal")
    order = watching.WatchOrder(job_ids, level, timeout, forever, exit_status)
    ctx.exit(run_with_client(client, lambda: watching.watch(client, order, chosen, stdout, sys.stderr)))


COMMANDS = (jobs, show, why, failures, logs, history, watch)
