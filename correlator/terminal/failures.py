"""How a command that failed ends: one line on standard error for each problem, and an exit code.

Every command imports this module, the daemon too.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

import click

from correlator.errors import CorrelatorError
from correlator.ops import logs

_log = logging.getLogger(__name__)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Commands(click.Group):
    """Turns the exceptions of a command into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
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
    causes = list(_causes(error))
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


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside the nested groups of TaskGroups, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _causes(part)
    else:
        yield error
