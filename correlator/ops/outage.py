"""What the log says while something outside is away: each kind of failure once, until it works again."""

from __future__ import annotations

import logging
from collections.abc import Hashable

MAX_KINDS = 100
"""Kinds of failure that one outage may have. A peer that invents codes gets no more lines than that."""


class Outage:
    """The failures of one peer since it last worked. Use it from one thread only.

    A kind is a code, a class or a fixed text, never the text of an error: the addresses of a name take turns in that,
    it counts what is missing, and a peer may write something else into it at each attempt.
    """

    def __init__(self) -> None:
        self._kinds: set[Hashable] = set()

    def level(self, kind: Hashable) -> int:
        """Note a failure, and return the level of its line: WARNING for the first one of its kind, then DEBUG."""
        if kind in self._kinds or len(self._kinds) >= MAX_KINDS:
            return logging.DEBUG
        self._kinds.add(kind)
        return logging.WARNING

    def end(self) -> None:
        """It works again: the next failure begins another outage."""
        self._kinds.clear()
