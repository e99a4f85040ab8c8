"""Reads the last message of each subject below a filter, by direct gets of many messages at once.

Unlike a consumer, a direct get has NATS write nowhere but to the inbox of who asks, so a collector may use it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import msgspec

from correlator.cluster.connection import ClusterUnavailable, Connection, Refused, number_of, seq_of

if TYPE_CHECKING:
    from nats.aio.msg import Msg

READ_AT_ONCE = 1000
FIRST_BYTES, MOST_BYTES = 64_000, 4_000_000
AT_ONCE_SECONDS = 1.0
"""Messages of one answer; bytes of the first one, and of the largest. One that comes sooner than after this time is
followed by one twice as large, and one that takes twice as long by a smaller one: a ping waits behind it."""

FIRST_WITHIN = 0.5
READ_WITHIN = 5.0
"""Seconds until the first message of an answer, after which another request follows that waits twice as long; seconds
without a message after which the reading has failed."""


class StreamReader:
    """What of `stream` is below `subject`, from `seq` on. Event loop's thread only."""

    def __init__(self, connection: Connection, stream: str, subject: str) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self.at_once = FIRST_BYTES
        """Bytes of the next answer."""
        self.seq = 0
        """All up to this sequence has been read."""

    async def messages(self) -> AsyncGenerator[Msg, None]:
        """Yield the last message of every subject that is new, in the order of the stream.

        A server that hangs may get a request: without an answer, another one follows, and only its answers count.
        Raises: `ClusterUnavailable`, `Refused`; the next call goes on.
        """
        asked, within, inbox = 0, FIRST_WITHIN, self._connection.client.new_inbox()
        queue: asyncio.Queue[Msg] = asyncio.Queue()
        async with self._connection.subscribed(f"{inbox}.*", queue.put, pending=4 * MOST_BYTES):
            while True:
                asked += 1
                request = {
                    "seq": self.seq + 1,
                    "next_by_subj": self._subject,
                    "batch": READ_AT_ONCE,
                    "max_bytes": self.at_once,
                }
                began, first = time.monotonic(), True
                get = f"{self._connection.api_subject}.DIRECT.GET.{self._stream}"
                await self._connection.publish(get, msgspec.json.encode(request), reply=f"{inbox}.{asked}")
                left = within
                while (message := await _next(queue, left)) is not None:
                    if message.subject != f"{inbox}.{asked}":
                        continue
                    if first:  # An answer that comes late is not asked for again.
                        first, within = False, max(FIRST_WITHIN, 3 * (time.monotonic() - began))
                    left = READ_WITHIN
                    headers = message.headers or {}
                    status = headers.get("Status")
                    if "Nats-Subject" in headers:  # A message, whatever other headers it was written with.
                        self.seq = seq_of(message)
                        yield message
                    elif status == "204":
                        if number_of(message, "Nats-Num-Pending") == 0:
                            return
                        self.at_once = _next_size(self.at_once, time.monotonic() - began)
                        break
                    elif status == "404":
                        return
                    else:
                        raise Refused(f"{self._stream} cannot be read: {headers.get('Description', status)}")
                else:
                    if left >= READ_WITHIN:
                        raise ClusterUnavailable(f"{self._stream} cannot be read: no answer")
                    within = min(READ_WITHIN, 2 * within)


def _next_size(size: int, seconds: float) -> int:
    """Return the bytes of the next answer after one of `size` bytes that took so long."""
    if seconds < AT_ONCE_SECONDS:
        return min(MOST_BYTES, 2 * size)
    return max(FIRST_BYTES, size // 2) if seconds > 2 * AT_ONCE_SECONDS else size


async def _next(queue: asyncio.Queue[Msg], within: float) -> Msg | None:
    """Return the next message, None if there is none for `within` seconds."""
    if queue.qsize():
        return queue.get_nowait()
    try:
        async with asyncio.timeout(within):
            return await queue.get()
    except TimeoutError:
        return None
