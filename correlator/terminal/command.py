"""Options and start-up shared by the commands that connect to a daemon: its URL, the token, TLS, signals.

Every command imports this module, the daemon too, so the client is imported only where it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
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
            help="File whose first line is the token.  [default: CORRELATOR_TOKEN; at the default URL the service's]",
        ),
        click.option(
            "--url",
            envvar="CORRELATOR_URL",
            default=DEFAULT_URL,
            show_default=True,
            show_envvar=True,
            help="URL of the daemon.",
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
    from correlator.tls import client_context  # noqa: PLC0415 - a command that fails early loads none

    url, ca, insecure, file = (given.pop(name) for name in ("url", "ca", "insecure", "token_file"))
    try:
        token = file.read_text(encoding="utf-8").split("\n")[0].strip() if file else _default_token(url)
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"--token-file: {file} cannot be read: {error}") from error
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise click.UsageError(
            "the token has characters that are not allowed in an HTTP header: use printable ASCII without spaces"
        )
    try:
        context = client_context(Tls(ca=ca, verify=not insecure)) if ca or insecure else None
    except OSError as error:  # ssl.SSLError is one
        raise click.UsageError(f"--ca: {ca} cannot be used: {error}") from error
    try:
        return Client(url, token=token, ssl=context)
    except BadRequest as error:
        raise click.UsageError(f"--url: {error}") from error


def _default_token(url: str) -> str:
    """Return the token of the environment, else for the service of this host its own if this user may read it."""
    given = os.environ.get("CORRELATOR_TOKEN", "")
    if given or url != DEFAULT_URL:
        return given
    with contextlib.suppress(ConfigError):
        file = loading.DEFAULT_FILE.with_name("api-token")
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
            return await work()

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise click.exceptions.Exit(128 + received[0] if received else 1) from None
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
