"""What the connection to NATS has to know of the client library: its socket, its errors, and what it cannot read.

A NATS server delivers any bytes that a publisher has as headers or in a subject. The library raises for some of them,
and then reads nothing more from its socket; a stored message would end the connection again after each reconnection.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from correlator.cluster.errors import ClusterUnavailable, NoResponder

if TYPE_CHECKING:
    from nats.aio.client import Client


def new_client() -> Client:
    """Return a client that reads every message. Headers that cannot be read are left out of it."""
    from nats.aio.client import Client  # noqa: PLC0415 - only a process with [cluster] needs the library
    from nats.protocol import parser  # noqa: PLC0415

    class TolerantClient(Client):
        async def _process_headers(self, headers: Any) -> Any:
            try:
                return await super()._process_headers(headers)
            except (IndexError, UnicodeError):
                return None

        def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
            return self.msg_class(
                subject=subject.decode("utf-8", "surrogateescape"),
                reply=reply.decode("utf-8", "surrogateescape"),
                data=data,
                headers=headers,
                _client=self,
                _sid=sid,
            )

    # The server ends the parts of this line with blanks and tabs only; the library's patterns also with \f and \v.
    parser.MSG_RE = re.compile(rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n")
    parser.HMSG_RE = re.compile(
        rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
    )
    return TolerantClient()


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
