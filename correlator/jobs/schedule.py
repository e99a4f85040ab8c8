"""A priority queue of keys with one number each, such as the time at which a key is due."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Schedule(Generic[K]):
    """One number per key. Operations are O(log n) amortised; memory use is proportional to the number of keys."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []
        """Holds every entry of `_at`, and stale entries of keys that were replaced or discarded since."""

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def put(self, key: K, at: float) -> None:
        """Set the number of `key`."""
        if self._at.get(key) == at:
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = [(number, name) for name, number in self._at.items()]
            heapq.heapify(self._heap)

    def put_earlier(self, key: K, at: float) -> None:
        """Set the number of `key`, unless it has a lower one."""
        if at < self._at.get(key, at + 1):
            self.put(key, at)

    def discard(self, key: K) -> None:
        self._at.pop(key, None)

    def first(self) -> tuple[float, K] | None:
        """The lowest number and its key, or None if there are no keys."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop_until(self, last: float, most: int) -> Iterator[K]:
        """Remove and yield up to `most` keys whose number is at most `last`, the lowest number first."""
        for _ in range(most):
            if (first := self.first()) is None or first[0] > last:
                return
            del self._at[first[1]]
            yield first[1]
