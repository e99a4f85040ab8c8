"""What an address may send before it has to wait: messages, connections that were closed for a flood, wrong tokens.

Many clients may have one address: behind a proxy that is not trusted, or a network's translator. So no address is ever
refused for long, and what it knows to be right does not wait for the guesses of others.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable

from correlator.bounded import BoundedDict

FLOOD_DELAY, MAX_FLOOD_DELAY = 0.5, 5.0
FLOOD_FORGOTTEN = 5.0
MAX_FLOODS = 10_000
"""Seconds, and addresses. See `Floods`."""

FREE_GUESSES = 5
"""Wrong tokens of one address that cost nothing: somebody mistypes one, or has an old one."""

MAX_WAITING = 10
"""Tokens of one address that wait to be checked at once. With `MAX_FLOOD_DELAY`, two are checked in a second."""

MAX_RIGHT = 10_000
"""Right tokens that are remembered, each with the address that it came from."""


class Pace:
    """Rate limit of one client (token bucket): `burst` messages at once, `rate` per second on average.

    `clock`: monotonic seconds.
    """

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._left, self._at = self._burst, clock()

    def allows(self) -> bool:
        """Count one message. Returns False if it exceeds the limit."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Floods:
    """Delays for addresses that sent too much.

    A connection that is closed for that costs its burst, and one that comes back at once would cost it again and again.
    So an address has to wait `FLOOD_DELAY` seconds for each flood, which is forgotten after `FLOOD_FORGOTTEN`, except
    `MAX_FLOOD_DELAY` at most, because other clients may have the same address.

    `clock`: monotonic seconds. `free`: floods that cost nothing. `waiting`: how many of an address may wait at once.
    """

    def __init__(self, clock: Callable[[], float], *, waiting: int, free: int = 0) -> None:
        self._clock = clock
        self._free = free
        self._most = waiting
        self._waiting: Counter[str] = Counter()
        self._until: BoundedDict[str, float] = BoundedDict(MAX_FLOODS)
        """For an address: when its floods have been forgotten."""

    def note(self, address: str) -> None:
        """This address has sent too much."""
        most = FLOOD_FORGOTTEN * (MAX_FLOOD_DELAY / FLOOD_DELAY + self._free)
        until = max(self._until.pop(address, 0.0), self._clock())
        self._until[address] = min(until + FLOOD_FORGOTTEN, self._clock() + most)

    def delay(self, address: str) -> float:
        """Seconds that this address has to wait with the next one."""
        if (until := self._until.get(address)) is None:
            return 0.0
        left = until - self._clock()
        if left <= 0:
            del self._until[address]
            return 0.0
        return min(MAX_FLOOD_DELAY, max(0.0, left / FLOOD_FORGOTTEN - self._free) * FLOOD_DELAY)

    async def wait(self, address: str) -> bool:
        """Wait as long as the address has to. False: too many others of it wait already."""
        if not (delay := self.delay(address)):
            return True
        if self._waiting[address] >= self._most:
            return False
        self._waiting[address] += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]
        return True


class Guesses:
    """Makes guessing tokens slow. `clock`: monotonic seconds.

    An address that has sent several wrong tokens waits before its next one is checked. The right token has to wait like
    a wrong one: otherwise its quick answer would give it away, and nobody would wait for the others. A token that was
    right when it came from this address before does not wait, so guesses delay no client that is known there.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._floods = Floods(clock, waiting=MAX_WAITING, free=FREE_GUESSES)
        self._right: BoundedDict[tuple[str, bytes], None] = BoundedDict(MAX_RIGHT)

    def delay(self, address: str, token: bytes) -> float:
        """Seconds that a token of this address has to wait before it may be checked."""
        delay = self._floods.delay(address)
        return 0.0 if not delay or (address, _digest(token)) in self._right else delay

    async def turn(self, address: str, token: bytes) -> bool:
        """Wait until a token may be checked. False: too many of this address wait, and it must not be checked."""
        return not self.delay(address, token) or await self._floods.wait(address)

    def right(self, address: str, token: bytes) -> None:
        """Note a token that was right."""
        self._right[address, _digest(token)] = None

    def wrong(self, address: str) -> None:
        """Note a token that was wrong."""
        self._floods.note(address)


def _digest(token: bytes) -> bytes:
    """What a token is remembered by: tokens may be long, and there may be many."""
    return hashlib.blake2b(token, digest_size=16).digest()
