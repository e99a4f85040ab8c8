"""The root of the exceptions that reach an operator or a client, and those that several packages raise.

The message of a `CorrelatorError` may be shown to the operator as it is: it holds no password, and says what is
expected. HTTP clients get only `SourceUnavailable.public` of a database error. Any other exception that reaches the
top is a defect of the program.

* CorrelatorError          exit code 1
  * ConfigError            the settings are wrong; exit code 78 (EX_CONFIG); `problems` lists them all
  * SourceError            the database cannot be followed
    * SourceUnavailable    it is unreachable or too slow: a state, not a failure; try again
    * SchemaError          its `log_events` cannot be used; try again only after the tables have changed
    * OtherDatabase        it is not the one that the cluster's checkpoint is of
  * CheckpointInUse        another process uses the state directory
  * ForeignListener        a user of this host listens where a secret would have been sent
  * BadRequest             a client's request cannot be understood
  * NotFound               no job has the ID that a client asked for

Subclasses that one command alone raises stand beside it: `Unreachable`, `Incomplete`, `Refused` and `NotACorrelator` in
`correlator.client.client`, `Unwritten` in `correlator.doctor.bundle`. Exceptions that never leave their module or
package are no `CorrelatorError`: `Close` (websocket), `LogReset` (tail), `Ended` (binlog) and `Unusable` (checkpoint).
"""

from collections.abc import Hashable, Iterable
from enum import Enum
from typing import ClassVar


class CorrelatorError(Exception):
    """The root. `exit_code`: the exit code of a process that ends with this exception."""

    exit_code: ClassVar[int] = 1


class ConfigError(CorrelatorError):
    """The settings cannot be used. `problems`: one line for each problem, in the order found; never empty."""

    exit_code: ClassVar[int] = 78

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("\n".join(self.problems))


class SourceError(CorrelatorError):
    """The database cannot be followed. The subclass says whether waiting helps. `public`: the text for clients."""

    @property
    def public(self) -> str:
        return str(self)

    @property
    def kind(self) -> Hashable:
        """What is the same in each attempt that fails for the same reason, whatever the message says."""
        return (type(self),)


class Away(Enum):
    """Why the database cannot answer. The value may be sent to clients: it names no host, account or query."""

    UNREACHABLE = "the database cannot be reached"
    NO_CONNECTION = "a limit of the database account is reached"
    LOGIN_REFUSED = "the database refuses the login"
    UNSAFE_LOGIN = "the password of the database was not sent, because others could have read it"
    NOT_MARIADB = "the database server is not MariaDB: MySQL is not supported"
    NO_ANSWER = "the database does not answer in time"
    LOCKED = "a table of the database is locked"
    SLOW = "the database ended a query that took too long"
    MISSING_GRANTS = "the database account lacks the right to read a table"
    FAILED = "the database ended a query with an error"
    UNREADABLE = "an answer of the database cannot be read"
    BUSY = "too many requests wait for the database"
    UNFINISHED = "the search through older jobs has not finished; repeat the request to continue it"


class SourceUnavailable(SourceError):
    """The database did not answer, or not in time. The caller retries with backoff and keeps serving what is in memory.

    With a `reason` the message may name the server, the account and the query: it is for the log, and `public` is the
    reason's text. Without a reason the message names none of them, and `public` is the message. `table`: the table
    whose query failed, while the connection may be well; None if the connection failed. `meaning`: what the error
    means, of which both have a copy (`correlator.pipeline.database_errors`).
    """

    def __init__(
        self, detail: str, reason: Away | None = None, table: str | None = None, meaning: str | None = None
    ) -> None:
        super().__init__(detail if meaning is None else f"{detail}: {meaning}")
        self.reason = reason
        self.table = table
        self.meaning = meaning

    @property
    def public(self) -> str:
        if self.reason is None:
            return str(self)
        return self.reason.value if self.meaning is None else f"{self.reason.value}: {self.meaning}"

    @property
    def code(self) -> int | None:
        """The number of the error of MariaDB, or of the driver, that caused this; None if there is none."""
        args = getattr(self.__cause__, "args", ())
        return args[0] if args and isinstance(args[0], int) else None

    @property
    def kind(self) -> Hashable:
        return type(self), self.reason, self.code


class SchemaError(SourceError):
    """The database answers, but its tables are not JobLog's: `log_events` or columns of it are missing."""


class OtherDatabase(SourceError):
    """A collector's database is not the one that the checkpoint in the cluster is of. A restart waits as a standby."""

    def __init__(self) -> None:
        super().__init__(
            "the collectors of this instance follow another database: it has none of the jobs of this one. Give each"
            " appliance its own cluster.instance. If this database has replaced the other one, remove that from the"
            ' cluster first (docs/cluster.md, "Remove an appliance")'
        )


class CheckpointInUse(CorrelatorError):
    """Another process has locked the checkpoint in this directory."""


class ForeignListener(CorrelatorError):
    """An ordinary user of this host listens where a secret would be sent. The message says who, and what to do."""


class BadRequest(CorrelatorError):
    """A request or frame cannot be understood. The message is the `detail` that the client gets.

    `sub`: the subscription that a websocket frame was about; None if the frame does not say.
    """

    def __init__(self, detail: str, sub: int | None = None) -> None:
        super().__init__(detail)
        self.sub = sub


class NotFound(CorrelatorError):
    """No job has the requested ID. The message is the `detail` that the client gets."""


def drop_frames(error: BaseException | None) -> None:
    """Drop the frames of an error that was handled, and of its causes, where what they refer to refers to the error.

    Nothing but a full garbage collection would free such a circle, and `ops.event_loop` makes these rare.
    """
    while error is not None:
        before = error.__cause__ or error.__context__
        error.__traceback__ = error.__context__ = error.__cause__ = None
        error = before
