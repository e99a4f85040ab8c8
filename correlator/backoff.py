"""Delays between attempts: exponential backoff with full jitter.

The n-th delay since the last reset is uniform between 0 and min(cap, base * factor**n) seconds. After an outage all
clients reconnect at the same time; full jitter spreads them over the whole range, so they do not overload the server
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Nothing here waits or reads a clock.
"""

import random
from collections.abc import Callable


class Backoff:
    """The delays, in seconds, of one operation that is retried."""

    def __init__(
        self, base: float = 0.2, factor: float = 2.0, cap: float = 5.0, *, uniform: Callable[[], float] = random.random
    ) -> None:
        """The defaults are for the database, the broker and the cluster. `uniform` returns numbers in [0, 1).

        Raises: ValueError unless 0 < base <= cap and factor >= 1.
        """
        if not (0 < base <= cap and factor >= 1):
            raise ValueError(f"expected 0 < base <= cap and factor >= 1, not {base=} {factor=} {cap=}")
        self._base, self._factor, self._cap = base, factor, cap
        self._uniform = uniform
        self._ceiling = base

    def next(self) -> float:
        """Return the seconds to wait before the next attempt, and raise the limit of the one after it."""
        delay = self._uniform() * self._ceiling
        # Multiplied step by step: factor**n would overflow during an outage of days.
        self._ceiling = min(self._cap, self._ceiling * self._factor)
        return delay

    def reset(self) -> None:
        """Return to the shortest delay. Call it after a success."""
        self._ceiling = self._base
