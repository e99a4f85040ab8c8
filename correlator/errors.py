"""The exceptions that the correlator raises on purpose.

Whatever is no `CorrelatorError` is a mistake in the program. The message of each is one that may be shown to a
person as it is: it holds no secret, and says what would be right.

* CorrelatorError          exit code 1
  * ConfigError            the settings are wrong; exit code 78 (EX_CONFIG); `problems` lists them all
  * SourceError            the database cannot be followed
    * SourceUnavailable    it is away, or too slow: a state, not a failure; try again
    * SchemaError          its `log_events` cannot be used; trying again helps only once somebody changed it
  * CheckpointInUse        the state directory belongs to another process
  * BadRequest             what a client asked for makes no sense
  * NotFound               nothing is known by the ID a client asked for
"""

from collections.abc import Iterable
from typing import ClassVar


class CorrelatorError(Exception):
    """The root; `exit_code` is what the process ends with if nobody catches it."""

    exit_code: ClassVar[int] = 1


class ConfigError(CorrelatorError):
    """Settings that cannot be used. `problems`: one line each, in the order found, never empty."""

    exit_code: ClassVar[int] = 78

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("\n".join(self.problems))


class SourceError(CorrelatorError):
    """The database cannot be followed; its children say whether waiting helps."""


class SourceUnavailable(SourceError):
    """The database did not answer, or not in time. The caller retries with backoff and keeps serving what is known."""


class SchemaError(SourceError):
    """The database answers, but its tables are not JobLog's: no `log_events`, or too few of its columns."""


class CheckpointInUse(CorrelatorError):
    """Another process keeps its checkpoint in the same directory."""


class BadRequest(CorrelatorError):
    """A request or frame that cannot be understood; the message is the `detail` its sender gets.

    `sub`: the subscription that a websocket message was about, where it can be told.
    """

    def __init__(self, detail: str, sub: int | None = None) -> None:
        super().__init__(detail)
        self.sub = sub


class NotFound(CorrelatorError):
    """No job is known by the ID that was asked for; the message is the `detail` its sender gets."""
