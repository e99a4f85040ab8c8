"""How a command that failed ends: one line on standard error for each problem, and an exit code.

Every command imports this module, the daemon too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from correlator.errors import CorrelatorError
from correlator.ops import logs

_log = logging.getLogger(__name__)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Commands(click.Group):
    """Turns the exceptions of a command into messages and exit codes."""

    def main(self, *args: Any, **settings: Any) -> Any:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the shell, as in `>&-`
                setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the end
        try:
            return super().main(*args, **settings)
        except OSError as error:  # of the help, or of an error in the command line
            if error.errno not in _FULL:
                raise
            sys.exit(_report(error))

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
            ctx.exit(_report(error))


def _report(error: Exception) -> int:
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
        click.echo(f"correlator: {logs.escape(line)}", err=True)
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
