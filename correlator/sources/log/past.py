"""The past of the log: the rows that existed when the tables were first read. They are read while the tail follows.

A first start begins at the newest row, so that new rows never wait for old ones. The past is read in order, in small
parts, on a session of its own, and only while the tail has nothing to catch up with. Every id of it is in exactly one
of read, still to be read, and missing. Missing ids above `floor` become windows of `Gaps`, as their rows may be
committed late; older ones are given up at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from correlator.errors import SourceUnavailable
from correlator.model.published import Outcome
from correlator.model.rows import Micros
from correlator.sources import Feed
from correlator.sources.db.log_rows import BatchSize, slices
from correlator.sources.db.queries import Queries
from correlator.sources.db.session import Session

WATCHED = 50_000
"""Ids below the newest of the past among which missing ones are still probed."""

BETWEEN_SHOWS = 0.02
"""Seconds to wait at most after a call of `Feed.show_past`, which publishes some hundred jobs. A call that took less
time is followed by a wait of the same length: other tasks get half of the time, and 20,000 jobs wait no longer
than they need.
"""

Miss = Callable[[int, Sequence[int], int], None]
"""(after, ids, last): of the ids above `after` and up to `last`, only `ids` were visible."""


@dataclass(slots=True)
class Past:
    """The ids above `before` and up to `last`; `at` is the highest that has been read.

    Missing ids above `floor` are probed.
    """

    before: int
    at: int
    last: int
    floor: int
    _newest: Micros = field(default=0)

    @classmethod
    def between(cls, before: int, last: int) -> Past:
        """A past of which nothing has been read yet."""
        last = max(before, last)
        return cls(before, before, last, max(before, last - WATCHED))

    def cut(self, last: int) -> None:
        """End the past at `last`: ids above it are new again."""
        self.last = min(self.last, last)
        self.at = min(self.at, last)

    def kept(self) -> tuple[int, int, int, int]:
        """The position for the checkpoint: `Past(*kept)` restores it."""
        return self.before, self.at, self.last, self.floor

    async def read(
        self,
        queries: Queries,
        session: Session,
        feed: Feed,
        note: Callable[[Outcome], None],
        miss: Miss,
        turn: Callable[[], Awaitable[None]],
        batch: BatchSize,
    ) -> None:
        """Read to the end of the past, then publish what it changed.

        Args:
            note: Gets the outcome of each part.
            miss: Gets the ids that were missing.
            turn: Returns when the tail has nothing to catch up with.
            batch: Rows per read.

        Raises:
            SourceUnavailable: The database failed. The position stays, and nothing is read twice.
        """
        while self.at < self.last:
            feed.status.past_progress(self.at - self.before, self.last - self.before)
            await turn()
            last, limit, began = self.last, batch.rows, time.monotonic()
            try:
                found = await queries.light.rows_from(session, self.at + 1, limit, last=last, after=self._newest)
            except SourceUnavailable:
                batch.failed()
                raise
            batch.succeeded(time.monotonic() - began)
            async for _, rows in slices(queries.rows_in, session, found):
                note(feed.past(rows))
                self._passed([r.id for r in rows], rows[-1].id, miss)
                self._newest = rows[-1].ts
                await turn()
            if len(found) < limit:
                self._passed([], last, miss)
        began = time.monotonic()
        while feed.show_past():
            await asyncio.sleep(min(BETWEEN_SHOWS, time.monotonic() - began))
            began = time.monotonic()

    def _passed(self, ids: Sequence[int], upto: int, miss: Miss) -> None:
        after = max(self.at, self.floor)
        if upto > after:
            miss(after, [i for i in ids if i > after], upto)
        self.at = max(self.at, upto)
