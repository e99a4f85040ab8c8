"""Each log line of a job once, from two sources: pages of the REST API, and the live stream. No I/O.

Problem: a line may arrive by both, and the stream loses lines when a connection breaks or lags. A job may have millions
of lines, so the IDs of all of them cannot be remembered.

Model: pages alone are complete and repeat nothing, because `next_after` carries the position. So a page repeats only
lines that the stream has brought since: their IDs are stored until a page has brought them too. The stream repeats only
lines of recent pages: the IDs of the last `REMEMBERED` are stored. A streamed line that is older than these is left to
the next page: `pages_needed` says that it has to be read.

Invariants: no line is returned twice. Once a page with `more` false has been merged, no line that was committed before
the request is missing. At most `REMEMBERED` + `MAX_STREAMED` IDs are stored, and those of one frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from correlator.bounded import BoundedDict
from correlator.client.messages import LogMessage

REMEMBERED = 20_000
"""IDs of lines of pages that are stored. A connection has at most 1 MiB of lines pending: far fewer."""

MAX_STREAMED = 5_000
"""Lines of the stream after which pages are read, so that their IDs need not be stored any longer."""


class Page(Struct, frozen=True):
    """A page of log lines. `next_after`: where the next one begins. `more`: the next one exists already.

    `next_before`: of a page back, where the one before it ends; None at the start of the log. `reason`: why lines may
    be missing; None if none are.
    """

    events: list[LogMessage]
    next_after: str | None = None
    more: bool = False
    next_before: int | None = None
    reason: str | None = None


class LineMerge:
    """The lines that have been returned so far; see the module. For one task."""

    def __init__(self, remembered: int = REMEMBERED, max_streamed: int = MAX_STREAMED) -> None:
        self._paged: BoundedDict[int, None] = BoundedDict(remembered)
        self._forgotten = 0
        """The highest ID of a page that is not stored any more."""
        self._streamed: set[int] = set()
        self._max_streamed = max_streamed
        self._left_out = False

    @property
    def pages_needed(self) -> bool:
        """True if lines were left to the next page, or the stream has brought `max_streamed` lines since the last."""
        return self._left_out or len(self._streamed) >= self._max_streamed

    def add_page(self, page: Page) -> list[LogMessage]:
        """The new lines of a page."""
        known = (self._streamed, self._paged)
        new = [line for line in page.events if not any(line.event_id in ids for ids in known)]
        for line in page.events:
            if (evicted := self._paged.put(line.event_id, None)) is not None:
                self._forgotten = max(self._forgotten, evicted[0])
        if page.more:
            self._streamed.difference_update(line.event_id for line in page.events)
        else:
            self._streamed.clear()  # the pages had all lines that were committed before
            self._left_out = False
        return new

    def add_streamed(self, lines: Iterable[LogMessage]) -> list[LogMessage]:
        """The new lines of the stream."""
        new = []
        for line in lines:
            if line.event_id in self._paged or line.event_id in self._streamed:
                continue
            if line.event_id <= self._forgotten:
                self._left_out = True
                continue
            self._streamed.add(line.event_id)
            new.append(line)
        return new


def in_order(held: Sequence[LogMessage], new: Sequence[LogMessage]) -> tuple[list[LogMessage], list[LogMessage]]:
    """Merge the lines of a page into those `held` back: (those that no later page may precede, those to hold now).

    Pages follow the IDs, but lines are wanted in the order of time: as many lines as the last page had are held back.
    """
    merged = sorted([*held, *new], key=lambda line: (line.at or "", line.event_id))
    ready = len(merged) - len(new) if new else 0
    return merged[:ready], merged[ready:]
