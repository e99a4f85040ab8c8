"""How long to wait before the next attempt: exponential, with full jitter.

The n-th delay since the last reset is between 0 and min(cap, base * factor**n), evenly. Full jitter, because after an
outage every client comes back at once: spread over the whole span they do not knock the server down again
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Nothing here waits or reads a clock.
"""

import random
from collections.abc import Callable


class Backoff:
    """Delays in seconds for one thing that is tried again and again."""

    def __init__(self, base: float, factor: float, cap: float, *, uniform: Callable[[], float] = random.random) -> None:
        """`uniform` gives numbers in [0, 1). Raises ValueError where the delays could not grow from base to cap."""
        if not (0 < base <= cap and factor >= 1):
            raise ValueError(f"expected 0 < base <= cap and factor >= 1, not {base=} {factor=} {cap=}")
        self._base, self._factor, self._cap = base, factor, cap
        self._uniform = uniform
        self._ceiling = base

    def next(self) -> float:
        """The delay before the next attempt; the one after it may be longer."""
        delay = self._uniform() * self._ceiling
        # Grown step by step, as factor**n overflows during an outage of days.
        self._ceiling = min(self._cap, self._ceiling * self._factor)
        return delay

    def reset(self) -> None:
        """After a success: the next delay is a short one again."""
        self._ceiling = self._base
