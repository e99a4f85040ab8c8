"""What the commands that ask a daemon have in common: where it is, how it lets us in, and how a command ends.

It is read for every command line, also for that of the daemon, so it loads no client before one is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from correlator import values
from correlator.errors import BadRequest

if TYPE_CHECKING:
    from correlator.client import Client

_T = TypeVar("_T")


class Since(click.ParamType[str]):
    """How long ago, or a time with its zone; becomes RFC 3339."""

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
        return when.astimezone(UTC).isoformat().replace("+00:00", "Z")  # without a zone it is this machine's


class JobId(click.ParamType[str]):
    """Any ID of a job, as far as the daemon takes it."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not 0 < len(value) <= 255:
            self.fail("an ID has 1 to 255 characters", param, ctx)
        return str(value)


def of_a_daemon(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say where the daemon is and how it lets us in."""
    for option in (
        click.option("--insecure", is_flag=True, help="Do not check the certificate of an https URL."),
        click.option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="Certificates to trust, in PEM."),
        click.option(
            "--token-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Its first line is the token.  [else: CORRELATOR_TOKEN]",
        ),
        click.option(
            "--url",
            envvar="CORRELATOR_URL",
            default="http://127.0.0.1:8686",
            show_default=True,
            show_envvar=True,
            help="Where the daemon is.",
        ),
    ):
        command = option(command)
    return command


def client_of(given: dict[str, Any]) -> Client:
    """The client that the options of `of_a_daemon` ask for; they are taken out of `given`."""
    from correlator.client import Client  # noqa: PLC0415 - a command that fails early loads none
    from correlator.settings import Tls  # noqa: PLC0415 - a command that fails early loads none
    from correlator.tls import client_context  # noqa: PLC0415 - a command that fails early loads none

    url, ca, insecure, file = (given.pop(name) for name in ("url", "ca", "insecure", "token_file"))
    try:
        token = (
            file.read_text(encoding="utf-8").split("\n")[0].strip() if file else os.environ.get("CORRELATOR_TOKEN", "")
        )
    except (OSError, UnicodeError) as error:
        raise click.UsageError(f"--token-file: {file} cannot be read: {error}") from error
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise click.UsageError("the token holds characters that no HTTP header can carry")
    try:
        context = client_context(Tls(ca=ca, verify=not insecure)) if ca or insecure else None
    except OSError as error:  # ssl.SSLError is one
        raise click.UsageError(f"--ca: {ca} cannot be used: {error}") from error
    try:
        return Client(url, token=token, ssl=context)
    except BadRequest as error:
        raise click.UsageError(f"--url: {error}") from error


def standard_output() -> Any:
    """Standard output, which what it cannot encode does not break."""
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def paints(stream: Any) -> bool:
    """Whether it can be painted on: a terminal that moves its cursor."""
    return bool(stream.isatty()) and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def ask(client: Client, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run `work` while `client` is open. SIGTERM and SIGHUP end it like SIGINT, so that it leaves the terminal well."""
    told: list[int] = []

    async def asked() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            told.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        async with client:
            return await work()

    try:
        return asyncio.run(asked())
    except asyncio.CancelledError:
        raise click.exceptions.Exit(128 + told[0] if told else 1) from None
    finally:
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
