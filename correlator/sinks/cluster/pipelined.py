"""Fenced messages that are published one after the other, without waiting for each acknowledgement.

A server that keeps a stream alone checks the fence of each message against what it has stored, so many may be under way
at once. There this takes a tenth of the time of an atomic batch, which such a server first writes to a folder of its
own. Servers that replicate a stream refuse all but the first (error 10164). Unlike a batch, some may be stored and
others not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from correlator.cluster.batches import STALE, Message, size_of
from correlator.cluster.connection import Connection, answer_of
from correlator.cluster.errors import ClusterUnavailable, Fenced, Refused, Unacknowledged

if TYPE_CHECKING:
    from nats.aio.msg import Msg


class Pipelined:
    """Publishes messages and collects their acknowledgements. Only one task may call `write`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = ""
        """Where the acknowledgements of the last write come: one that is late for an earlier write is ignored."""
        self._missing = 0
        self._seq = 0
        self._error: tuple[int, str] | None = None
        self._complete = asyncio.Event()

    async def write(self, messages: Sequence[Message], fence: Mapping[str, str], within: float) -> int:
        """Store `messages` in order. Returns the stream's sequence of the last one. `fence`: the headers of each.

        Raises: `Fenced` if the fence refused one, `Refused` for another error, `Unacknowledged`; some may be stored.
        """
        self._missing, self._seq, self._error = len(messages), 0, None
        self._complete.clear()
        size, window = size_of(messages), self._connection.window
        self._inbox = self._connection.client.new_inbox()
        unsubscribe = await self._connection.subscribe(self._inbox, self._on_answer)
        try:
            async with window.passing(size):
                await self._send(messages, fence, window.deadline(size, within))
        except ClusterUnavailable as error:
            raise Unacknowledged(str(error)) from error
        except TimeoutError:
            raise Unacknowledged(f"{self._missing} of {len(messages)} acknowledgements are missing") from None
        finally:
            await unsubscribe()
        self._raise_error()
        return self._seq

    async def _send(self, messages: Sequence[Message], fence: Mapping[str, str], within: float) -> None:
        for message in messages:
            headers = {**message.headers, **fence}
            await self._connection.publish(message.subject, message.payload, reply=self._inbox, headers=headers)
        async with asyncio.timeout(within):
            await self._complete.wait()

    def _raise_error(self) -> None:
        if self._error is None:
            return
        code, text = self._error
        if code == 0:
            raise Unacknowledged(text)
        raise (Fenced if code in STALE else Refused)(text, code)

    async def _on_answer(self, message: Msg) -> None:
        if message.subject != self._inbox:
            return
        if (message.headers or {}).get("Status"):  # No server has the stream.
            self._error = 0, "no server responds"
        else:
            answer = answer_of(message.data)
            if refusal := answer.get("error"):
                self._error = self._error or (refusal.get("err_code", 0), refusal.get("description", "refused"))
            else:
                self._seq = max(self._seq, int(answer["seq"]))
        self._missing -= 1
        if self._missing == 0:
            self._complete.set()
