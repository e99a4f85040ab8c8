"""Whether a gateway lags behind the stream that it reads."""

from __future__ import annotations

import asyncio

from correlator.cluster import keys, streams
from correlator.cluster.connection import ClusterUnavailable, Connection, Refused

ASK_WITHIN = 2.0
"""Seconds for an answer of the stream's leader."""


class StreamEnd:
    """Asks the leader of the stream for its last sequence. Callers that wait at the same time share one request."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asking: asyncio.Task[int | None] | None = None

    async def is_before(self, seq: int) -> bool:
        """True if the stream ends before `seq`, so that no gateway can have shown that position.

        False also if the leader does not answer: nobody knows then.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._answered)
        end = await asyncio.shield(self._asking)
        return end is not None and end < seq

    def _answered(self, _: asyncio.Task[int | None]) -> None:
        self._asking = None

    async def _ask(self) -> int | None:
        try:
            found = await streams.info(self._connection, keys.STATE, within=ASK_WITHIN)
        except (ClusterUnavailable, Refused):
            return None
        return int(found["state"]["last_seq"]) if found is not None else None
