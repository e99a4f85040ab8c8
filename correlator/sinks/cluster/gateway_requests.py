"""The subscriptions of a collector to what gateways send: requests, and IDs that their clients wait for.

Only the holder of the lease has them. They have no queue group: while a former holder hangs, its connection is still
there, and NATS would pass it every other request. Without a group both get each request, and the first reply counts.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from correlator.cluster import keys, wants
from correlator.cluster.connection import Connection
from correlator.cluster.errors import ClusterUnavailable
from correlator.pipeline.hub import Hub
from correlator.sinks.cluster.answers import Answers
from correlator.sinks.cluster.responder import Responder
from correlator.sinks.cluster.wanted_ids import WantedIds

if TYPE_CHECKING:
    from nats.aio.msg import Msg

MAX_PENDING = 2_000_000
"""Bytes of requests, and of wanted IDs, that wait until they are received. More are dropped."""

EXPIRE_EVERY = 1.0
"""Seconds between two checks of the IDs that are not wanted any more."""


class GatewayRequests:
    """Answers gateways on behalf of `instance`. Satisfies `correlator.sinks.Sink`; only the lease's holder runs it."""

    def __init__(self, connection: Connection, instance: str) -> None:
        self._connection = connection
        self._instance = instance

    async def run(self, hub: Hub) -> None:
        """Answer until cancelled. Subscriptions outlive a connection that is lost."""
        responder = Responder(Answers(hub).handlers())
        wanted = WantedIds(hub.waiting_ids)
        end_requests = await self._connection.subscribe(
            keys.rpc(self._instance, "*"), partial(self._on_request, responder), pending=MAX_PENDING
        )
        end_wants = await self._connection.subscribe(keys.WANT, partial(self._on_want, wanted), pending=MAX_PENDING)
        try:
            while True:
                await asyncio.sleep(EXPIRE_EVERY)
                wanted.expire(time.monotonic())
        finally:
            wanted.clear()
            await responder.close()
            await end_requests()
            await end_wants()

    async def _on_request(self, responder: Responder, message: Msg) -> None:
        async def reply(answer: bytes) -> None:
            try:
                await self._connection.publish(message.reply, answer)
            except ClusterUnavailable:
                return  # The gateway asks again.

        if message.reply.startswith(keys.INBOX):  # A reply must not be a write that only this process may do.
            await responder.receive(message.subject.rpartition(".")[2], message.data, reply)

    async def _on_want(self, wanted: WantedIds, message: Msg) -> None:
        read = partial(wants.wanted_ids, message.data, self._instance)
        wanted.want(self._connection.parser.parse(message.subject, read) or (), time.monotonic())
        await asyncio.sleep(0)  # many messages may have arrived together
