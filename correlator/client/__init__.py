"""A client of the daemon for Python programs, documented in docs/python.md. It needs aiohttp and msgspec alone.

`client` has the connection, `replica` folds the `messages` of the websocket into documents, `job` has their types.
"""

from typing import TYPE_CHECKING

from correlator.client.documents import Remaining, moment, remaining
from correlator.client.messages import Job, LogMessage
from correlator.client.replica import ConnectionState, Update
from correlator.errors import BadRequest, CorrelatorError, NotFound
from correlator.model.messages import Wanted

if TYPE_CHECKING:
    from correlator.client.client import (
        AccessRefused,
        Client,
        Incomplete,
        JobList,
        NotACorrelator,
        Unreachable,
        create_job_token,
    )

__all__ = [  # noqa: RUF022 - by subject
    "Client", "Wanted", "Update", "ConnectionState", "Job", "JobList", "LogMessage", "Remaining", "moment", "remaining",
    "create_job_token",
    "CorrelatorError", "AccessRefused", "BadRequest", "Incomplete", "NotACorrelator", "NotFound", "Unreachable",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """What needs aiohttp is imported once it is used: a shell waits for the completion of an ID."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from correlator.client import client  # noqa: PLC0415

    return getattr(client, name)
