"""A map of bounded size that evicts its oldest entry, and parts of a sequence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeVar

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


def chunks(values: Sequence[V], size: int) -> Iterator[Sequence[V]]:
    """The parts of `values` with `size` members each; the last one may have fewer."""
    return (values[i : i + size] for i in range(0, len(values), size))
