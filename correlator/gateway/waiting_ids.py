"""Publishes the IDs that a gateway's clients wait for, so that the collectors query for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from correlator.bounded import BoundedDict
from correlator.cluster import rpc
from correlator.cluster.rpc import WANT_EVERY
from correlator.pipeline.waiting_ids import WaitingIds

MAX_IDS = 1_000
"""Most IDs of one appliance, or of the fleet, that are published: those that clients began to wait for last."""

PAUSE = 0.1
"""Seconds between two messages."""


class WaitingIdsSender:
    """Publishes the waiting IDs of a gateway. Call `wake` whenever a client begins to wait.

    Args:
        waiting_ids: Returns the waiting IDs of each appliance with its name, and those of the whole fleet with None.
        publish: Sends one message to all collectors. It must not raise; while the cluster is away, it drops it.
    """

    def __init__(
        self,
        waiting_ids: Callable[[], Iterable[tuple[str | None, WaitingIds]]],
        publish: Callable[[bytes], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting_ids = waiting_ids
        self._publish = publish
        self._clock = clock
        self._woken = asyncio.Event()
        self._sent: BoundedDict[tuple[str | None, str], float] = BoundedDict(10 * MAX_IDS)
        """When each ID was published last."""

    def wake(self) -> None:
        """A client began to wait for an ID."""
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled: new IDs at once, the others every `WANT_EVERY` seconds."""
        while True:
            self._woken.clear()
            message, again = self.next_message()
            if message is not None:
                await self._publish(message)
                await asyncio.sleep(PAUSE)
                continue
            try:
                async with asyncio.timeout(again):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def next_message(self) -> tuple[bytes | None, float | None]:
        """The next message that is due, and else the seconds until one may be; None: nobody waits."""
        now = self._clock()
        next_at: float | None = None
        for instance, waiting_ids in self._waiting_ids():
            due: list[str] = []
            for name in waiting_ids.unknown_ids(MAX_IDS):
                sent_at = self._sent.get((instance, name))
                if sent_at is None or now - sent_at >= WANT_EVERY:
                    due.append(name)
                elif next_at is None or sent_at + WANT_EVERY < next_at:
                    next_at = sent_at + WANT_EVERY
            if due:
                for name in due[: rpc.MAX_WANTED_IDS]:
                    self._sent.pop((instance, name), None)
                    self._sent[instance, name] = now
                return rpc.encode_wanted(due, instance), None
        return None, None if next_at is None else next_at - now
