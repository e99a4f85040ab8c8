"""How many bytes may be under way to NATS without an acknowledgement: as many as the link takes in a short time.

Problem. What waits in front of a slow link delays everything behind it, and a batch that takes longer than the deadline
of its answer is sent again for ever. A fast link needs large batches.

Model. Each write waits until its bytes fit the window, and notes how long its acknowledgement took. The shortest time
so far is the latency of link and server. The window is what the link has taken in `GOAL` seconds besides: it grows
while full windows are acknowledged sooner, and shrinks if one is late. If even the smallest window is late, so is the
answer to a single byte, and the latency is what it took. Writes pass in turn, so their sizes are their shares of the
link: one that is in no hurry is small (`rest`) while there are others.

Invariant: never more than `size` bytes are under way, unless one single write is larger.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

from correlator.cluster.errors import ClusterUnavailable

GOAL = 0.75
"""Seconds besides the latency in which the bytes of a window are acknowledged."""

LEAST = 16_000
MOST = 1_000_000
"""Bytes of the smallest window, which is the first one, and of the largest."""


class Window:
    """The window of one connection, for all that is written there with an acknowledgement. Event loop's thread only."""

    def __init__(self) -> None:
        self.size = LEAST
        self._latency, self._measured_with = math.inf, 0
        """The shortest acknowledgement, in seconds, and the bytes that were under way then."""
        self._under_way = 0
        self._shared_at = -math.inf
        """When a write last came while another one was under way."""
        self._line = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def share(self) -> int:
        """Bytes that one write should have at most, so that two fill the link."""
        return self.size // 2

    @property
    def rest(self) -> int:
        """The same of a write that is in no hurry: an eighth of it if others have been written in the last moments."""
        is_shared = asyncio.get_running_loop().time() - self._shared_at < GOAL
        return self.share // 8 if is_shared else self.share

    def deadline(self, size: int, within: float) -> float:
        """Return the seconds for the answer to a write, which has `within` besides the time for `size` bytes."""
        return within + 2 * GOAL * size / self.size

    @contextlib.asynccontextmanager
    async def passing(self, size: int) -> AsyncIterator[None]:
        """Wait in line until `size` bytes may be sent; the block ends with their acknowledgement.

        The block raises `ClusterUnavailable` or `TimeoutError` if none came.
        """
        clock = asyncio.get_running_loop().time
        if self._under_way:
            self._shared_at = clock()
        async with self._line:
            while self._under_way and self._under_way + size > self.size:
                self._freed.clear()
                await self._freed.wait()
            self._under_way += size
        under_way, began = self._under_way, clock()
        try:
            yield
            self._acknowledged(under_way, clock() - began)
        except (ClusterUnavailable, TimeoutError):
            self.size = LEAST
            raise
        finally:
            self._under_way -= size
            self._freed.set()

    def _acknowledged(self, under_way: int, seconds: float) -> None:
        """Note that so many bytes have passed in this time."""
        late_anyway = under_way <= LEAST and seconds > self._latency + GOAL
        if late_anyway or seconds <= self._latency:
            self._latency, self._measured_with = seconds, under_way
        sending = seconds - self._latency
        more = under_way - self._measured_with if under_way >= 2 * self._measured_with else under_way
        passed = int(more * GOAL / max(sending, 0.001))
        if sending > GOAL:
            self.size = max(LEAST, self.size // 2, min(self.size, passed))
        elif 2 * under_way >= self.size:
            self.size = min(MOST, 2 * self.size, max(self.size, passed))
