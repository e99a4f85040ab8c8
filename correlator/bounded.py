"""Maps of bounded size, which evict their oldest entry, a schedule, and parts of a sequence."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """Holds at most `most` entries. A new key beyond that evicts the key that was inserted first. Operations are O(1).

    A plain dict is no substitute: its `next(iter(d))` walks over all deleted entries in front of the first key.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.evicted = 0
        """The number of entries that were evicted so far."""

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def put(self, key: K, value: V) -> tuple[K, V] | None:
        """Set `key`. A key that exists keeps its place. Returns the evicted entry, if any."""
        super().__setitem__(key, value)
        if len(self) <= self.most:
            return None
        self.evicted += 1
        return self.popitem(last=False)


class SizedDict(Generic[K, V]):
    """Values of at most `most` bytes in sum. `size` returns the bytes of a value.

    A value beyond the bound evicts those that were put first, or itself. Operations are O(1).
    """

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._most = most
        self._size = size
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K) -> V | None:
        found = self._values.get(key)
        return found[0] if found is not None else None

    def values(self) -> Iterator[V]:
        """The values, in the order in which they were put."""
        return (value for value, _ in self._values.values())

    def put(self, key: K, value: V) -> None:
        """Set `key`, which becomes the newest."""
        self.discard(key)
        size = self._size(value)
        self._values[key] = value, size
        self.bytes += size
        while self.bytes > self._most:
            self.bytes -= self._values.popitem(last=False)[1][1]

    def discard(self, key: K) -> None:
        if (found := self._values.pop(key, None)) is not None:
            self.bytes -= found[1]


class PendingRows(Generic[K, V]):
    """Log rows of jobs that are not loaded yet, by key, in the order of arrival. Operations are O(1).

    Their number and their bytes are bounded. `size` returns the bytes of a row. At a bound, all rows of the oldest key
    are evicted together.
    """

    def __init__(self, most_rows: int, most_bytes: int, size: Callable[[V], int]) -> None:
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._size = size
        self._rows: OrderedDict[K, list[V]] = OrderedDict()
        self._sizes: dict[K, int] = {}
        self.count = 0
        """The number of rows of all keys."""
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self) -> Iterator[K]:
        return iter(self._rows)

    def first(self, key: K) -> V:
        """The row of `key` that arrived first. Raises `KeyError`."""
        return self._rows[key][0]

    def add(self, key: K, row: V) -> list[V]:
        """Add `row`. Returns the evicted rows, which include `row` itself if it exceeds the bounds alone."""
        size = self._size(row)
        self._rows.setdefault(key, []).append(row)
        self._sizes[key] = self._sizes.get(key, 0) + size
        self.count += 1
        self.bytes += size
        evicted: list[V] = []
        while self.count > self._most_rows or self.bytes > self._most_bytes:
            evicted += self.pop(next(iter(self._rows)))
        return evicted

    def pop(self, key: K) -> list[V]:
        """Remove and return the rows of `key`. Returns an empty list if it has none."""
        rows = self._rows.pop(key, [])
        self.count -= len(rows)
        self.bytes -= self._sizes.pop(key, 0)
        return rows


class Schedule(dict[K, float]):
    """A priority queue: keys with one number each, such as the time at which a key is due. Only `put` sets one.

    Operations are O(log n) amortised; memory use is proportional to the number of keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, K]] = []
        """Holds every entry, and stale ones of keys that were replaced or removed since."""

    def put(self, key: K, at: float) -> None:
        """Set the number of `key`."""
        if self.get(key) == at:
            return
        self[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 2 * len(self) + 64:
            self._heap = [(number, name) for name, number in self.items()]
            heapq.heapify(self._heap)

    def put_earlier(self, key: K, at: float) -> None:
        """Set the number of `key`, unless it has a lower one."""
        if at < self.get(key, at + 1):
            self.put(key, at)

    def discard(self, key: K) -> None:
        self.pop(key, None)

    def first(self) -> tuple[float, K] | None:
        """The lowest number and its key, or None if there are no keys."""
        while self._heap and self.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop_until(self, last: float, most: int) -> Iterator[K]:
        """Remove and yield up to `most` keys whose number is at most `last`, the lowest number first."""
        for _ in range(most):
            if (first := self.first()) is None or first[0] > last:
                return
            del self[first[1]]
            yield first[1]


def chunks(values: Sequence[V], size: int) -> Iterator[Sequence[V]]:
    """The parts of `values` with `size` members each; the last one may have fewer."""
    return (values[i : i + size] for i in range(0, len(values), size))
