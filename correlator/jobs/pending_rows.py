"""Pending rows: log rows of jobs that are not loaded yet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
R = TypeVar("R")


class PendingRows(Generic[K, R]):
    """Rows by key, in the order of arrival. Their number and their bytes are bounded; operations are O(1).

    `size` returns the bytes of a row. At a bound, all rows of the oldest key are evicted together.
    """

    def __init__(self, most_rows: int, most_bytes: int, size: Callable[[R], int]) -> None:
        self._most_rows = most_rows
        self._most_bytes = most_bytes
        self._size = size
        self._rows: OrderedDict[K, list[R]] = OrderedDict()
        self._sizes: dict[K, int] = {}
        self.count = 0
        """The number of rows of all keys."""
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __iter__(self) -> Iterator[K]:
        return iter(self._rows)

    def first(self, key: K) -> R:
        """The row of `key` that arrived first. Raises `KeyError`."""
        return self._rows[key][0]

    def add(self, key: K, row: R) -> list[R]:
        """Add `row`. Returns the evicted rows, which include `row` itself if it exceeds the bounds alone."""
        size = self._size(row)
        self._rows.setdefault(key, []).append(row)
        self._sizes[key] = self._sizes.get(key, 0) + size
        self.count += 1
        self.bytes += size
        evicted: list[R] = []
        while self.count > self._most_rows or self.bytes > self._most_bytes:
            evicted += self.pop(next(iter(self._rows)))
        return evicted

    def pop(self, key: K) -> list[R]:
        """Remove and return the rows of `key`. Returns an empty list if it has none."""
        rows = self._rows.pop(key, [])
        self.count -= len(rows)
        self.bytes -= self._sizes.pop(key, 0)
        return rows
