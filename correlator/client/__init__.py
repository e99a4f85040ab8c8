"""A client of the daemon for Python programs, documented in docs/python.md. It needs aiohttp and msgspec alone.

`client` has the connection, `replica` folds the `messages` of the websocket into documents, `job` has their types.
"""

from correlator.client.client import AccessRefused, Client, JobList, NotACorrelator, Unreachable
from correlator.client.documents import Remaining, moment, remaining
from correlator.client.job import Job
from correlator.client.messages import LogMessage
from correlator.client.replica import ConnectionState, Update
from correlator.errors import BadRequest, CorrelatorError, NotFound
from correlator.model.messages import Wanted

__all__ = [  # noqa: RUF022 - by subject
    "Client", "Wanted", "Update", "ConnectionState", "Job", "JobList", "LogMessage", "Remaining", "moment", "remaining",
    "CorrelatorError", "AccessRefused", "BadRequest", "NotACorrelator", "NotFound", "Unreachable",
]  # fmt: skip
