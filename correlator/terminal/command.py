"""Options and start-up shared by the commands that connect to a daemon: its URL, the token, TLS, signals.

Every command imports this module, the daemon too, so the client is imported only where it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from correlator.config import loading, values
from correlator.config.schema import Config, Http
from correlator.errors import BadRequest, ConfigError

if TYPE_CHECKING:
    from correlator.client.client import Client

DEFAULT_URL = "http://127.0.0.1:8686"

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
    """Any ID of a job, of a length that the daemon accepts."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not 0 < len(value) <= 255:
            self.fail("an ID has 1 to 255 characters", param, ctx)
        return str(value)


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


def client_from_options(given: dict[str, Any]) -> Client:
    """Create the client from the options of `daemon_options`, and remove these from `given`.

    Raises:
        click.UsageError: the URL, the token or the certificates are not usable.
    """
    from correlator.client.client import Client  # noqa: PLC0415 - a command that fails early loads none
    from correlator.config.tls import Tls  # noqa: PLC0415 - a command that fails early loads none
    from correlator.doctor import daemon, service  # noqa: PLC0415 - a command that fails early loads none
    from correlator.tls import client_context  # noqa: PLC0415 - a command that fails early loads none

    url, ca, insecure, file = (given.pop(name) for name in ("url", "ca", "insecure", "token_file"))
    config = None if url else service.of_this_host(os.environ)
    try:
        token = file.read_text(encoding="utf-8").split("\n")[0].strip() if file else _default_token(config)
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"--token-file: {file} cannot be read: {error}") from error
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise click.UsageError(
            "the token has characters that are not allowed in an HTTP header: use printable ASCII without spaces"
        )
    try:
        context = client_context(Tls(ca=ca, verify=not insecure)) if ca or insecure else None
        if config is not None and config.http.tls_cert is not None and context is None:
            context = daemon.own_context(config)
    except OSError as error:  # ssl.SSLError is one
        raise click.UsageError(f"--ca: {ca or (config and config.http.tls_cert)} cannot be used: {error}") from error
    try:
        return Client(url or (daemon.url_of(config) if config is not None else DEFAULT_URL), token=token, ssl=context)
    except BadRequest as error:
        raise click.UsageError(f"--url: {error}") from error


def _default_token(config: Config | None) -> str:
    """Return the token of the environment, else a token of the service of this host if this user may read it."""
    if (given := os.environ.get("CORRELATOR_TOKEN", "")) or config is None:
        return given
    file = config.http.tokens_file or loading.DEFAULT_FILE.with_name("api-token")
    with contextlib.suppress(ConfigError):
        return min(loading.read_tokens(Config(http=Http(tokens_file=file))))
    return ""


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
