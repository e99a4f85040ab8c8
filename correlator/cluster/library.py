"""What the connection to NATS has to know of the client library: its socket and its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from correlator.cluster.errors import ClusterUnavailable, NoResponder

if TYPE_CHECKING:
    from nats.aio.client import Client


def abort(client: Client) -> None:
    """Close the socket of a client without sending what waits for it: the library would wait for that for ever."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def failure(error: Exception) -> type[ClusterUnavailable]:
    """The class of what a request raised in the library."""
    from nats.errors import NoRespondersError  # noqa: PLC0415 - only a process with [cluster] needs the library

    return NoResponder if isinstance(error, NoRespondersError) else ClusterUnavailable


def text_of(error: BaseException) -> str:
    """Return an error of the library as one line without its own prefix."""
    text = " ".join(str(error).split()).removeprefix("nats: ").strip()
    return text or type(error).__name__


def is_login_refused(text: str) -> bool:
    """True if `text`, from `text_of`, says that the server knows no such user, or does not accept what proves it."""
    lower = text.lower()
    return "authorization" in lower or "authentication" in lower
