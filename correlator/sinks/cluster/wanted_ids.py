"""IDs that clients of gateways wait for: the source queries for them as for those of the collector's own clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from correlator.cluster.wants import WANTED_FOR
from correlator.pipeline.waiting_ids import WaitingIds

MAX_WANTED = 1_000
"""Most IDs at a time. One more takes the place of the one that was wanted longest ago."""


class WantedIds:
    """Watches each ID for `WANTED_FOR` seconds after a gateway last wanted it. `now`: seconds of a monotonic clock."""

    def __init__(self, waiting_ids: WaitingIds, most: int = MAX_WANTED) -> None:
        self._waiting_ids = waiting_ids
        self._most = most
        self._until: OrderedDict[str, float] = OrderedDict()
        """For each watched ID: when it ceases to be watched; the earliest first."""

    def __len__(self) -> int:
        return len(self._until)

    def want(self, names: Iterable[str], now: float) -> None:
        """Watch `names` from now on."""
        for name in names:
            self._waiting_ids.watch_id(name)
            if name in self._until:  # it is watched once, however often it is wanted
                self._waiting_ids.unwatch_id(name)
            self._until[name] = now + WANTED_FOR
            self._until.move_to_end(name)
            if len(self._until) > self._most:
                self._unwatch_first()

    def expire(self, now: float) -> None:
        """Cease to watch what was not wanted again in time."""
        while self._until and next(iter(self._until.values())) <= now:
            self._unwatch_first()

    def clear(self) -> None:
        """Cease to watch all of them."""
        while self._until:
            self._unwatch_first()

    def _unwatch_first(self) -> None:
        self._waiting_ids.unwatch_id(self._until.popitem(last=False)[0])
