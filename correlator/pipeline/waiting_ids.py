"""IDs that clients wait for and that no job in memory has yet, and the requests that wait for a job to change.

A client may ask for a job before its first row is committed. While an ID is watched, the source queries the tables
for new jobs more often than usual. That costs the database something, so an ID counts only for `WATCHED_FOR` seconds
after the last client began to wait for it; the client may go on waiting, and gets the job whenever it appears. The
clients of gateways wait too: their IDs are watched for the time that a gateway asks for (`watch_for`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, takewhile

from correlator.bounded import BoundedDict
from correlator.model.published import Change

WATCHED_FOR = 60.0
"""Seconds for which the source queries often for an ID that no job has."""

MAX_WATCHED_FOR = 1_000
"""Most IDs of other processes. One more takes the place of the one that was asked for longest ago."""


class WaitingIds:
    """The watched IDs and the waiters of one hub. Event loop's thread only.

    `is_known(name)`: whether a job in memory has that ID. `on_watch()` is called each time a client begins to wait for
    an ID; it must not wait and must not raise.
    """

    def __init__(self, is_known: Callable[[str], bool], on_watch: Callable[[], None] = lambda: None) -> None:
        self._is_known = is_known
        self._on_watch = on_watch
        self._watched: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """For each ID: how many clients wait for it, and until when it is watched; in the order of that time."""
        self._watched_for: BoundedDict[str, tuple[int, float]] = BoundedDict(MAX_WATCHED_FOR)
        """The same for IDs of other processes."""
        self._waiters: dict[str, list[asyncio.Event]] = {}

    @property
    def waiters(self) -> int:
        """The number of names for which a request waits in `changed`."""
        return len(self._waiters)

    def watch_id(self, name: str) -> None:
        """Have the source query often for this ID, for `WATCHED_FOR` seconds from now. Paired with `unwatch_id`."""
        count, _ = self._watched.get(name, (0, 0.0))
        self._watched[name] = (count + 1, time.monotonic() + WATCHED_FOR)
        self._watched.move_to_end(name)
        self._on_watch()

    def unwatch_id(self, name: str) -> None:
        """End one `watch_id` of this ID. An ID that is not watched is ignored."""
        count, until = self._watched.get(name, (1, 0.0))
        if count > 1:
            self._watched[name] = (count - 1, until)
        else:
            self._watched.pop(name, None)

    def watch_for(self, names: Iterable[str], seconds: float) -> None:
        """Have the source query often for `names` in the next `seconds`: clients of another process wait for them."""
        until = time.monotonic() + seconds
        for name in names:
            self._watched_for[name] = 0, until
            self._watched_for.move_to_end(name)
            self._on_watch()

    @contextlib.contextmanager
    def watched_id(self, name: str) -> Iterator[None]:
        """Watch an ID for as long as the block lasts."""
        self.watch_id(name)
        try:
            yield
        finally:
            self.unwatch_id(name)

    def has_waiting_ids(self) -> bool:
        """True if an ID is watched that no job in memory has.

        Older IDs cost nothing: the search ends at the first of them.
        """
        return next(self._unknown(), None) is not None

    def unknown_ids(self, most: int) -> list[str]:
        """Return watched IDs that no job in memory has, of the `most` newest; those of own clients go first."""
        return list(self._unknown(most))

    def _unknown(self, most: int | None = None) -> Iterator[str]:
        """The watched IDs that no job in memory has, the newest first."""
        now = time.monotonic()
        watched = (
            takewhile(lambda item: item[1][1] >= now, reversed(ids.items()))
            for ids in (self._watched, self._watched_for)
        )
        for name, _ in islice(chain.from_iterable(watched), most):
            if not self._is_known(name):
                yield name

    async def changed(self, name: str, within: float) -> bool:
        """Wait until a job that `name` names changes or appears. False if `within` seconds passed before that.

        `wake_all` ends the wait too.
        """
        event = asyncio.Event()
        self._waiters.setdefault(name, []).append(event)
        try:
            async with asyncio.timeout(within):
                await event.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters[name].remove(event)
            if not self._waiters[name]:
                del self._waiters[name]

    def wake(self, changes: Iterable[Change]) -> None:
        """End the waits for the jobs that `changes` are about, under each name that a job had or has."""
        if not self._waiters:
            return
        for change in changes:
            names = set(change.new.view.names()) if change.new is not None else set()
            if change.old is not None:
                names.update(change.old.view.names())
            for name in names:
                self.wake_name(name)

    def wake_name(self, name: str) -> None:
        """End the waits for this ID."""
        for event in self._waiters.get(name, ()):
            event.set()

    def wake_all(self) -> None:
        """End every wait, because the daemon stops."""
        for events in self._waiters.values():
            for event in events:
                event.set()
