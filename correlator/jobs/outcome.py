"""The result of applying facts to the index."""

from __future__ import annotations

from msgspec import Struct

from correlator.jobs.missing_rows import Lost
from correlator.jobs.model.changes import Change, Event
from correlator.jobs.model.facts import AttributedRow


class Outcome(Struct):
    """The result of applying a batch of facts.

    `attributed`: the log rows with their jobs. `unread`, `unread_steps`: the jobs and steps to read from the tables.
    `ended`: jobs that ended. `lost`: log rows that JobLog lost. `dropped`: the number of transitions that will not be
    announced. `past`: the facts are older than the first start, so they cause no events.
    """

    changes: list[Change] = []
    events: list[Event] = []
    attributed: list[AttributedRow] = []
    unread: set[str] = set()
    unread_steps: set[int] = set()
    ended: set[str] = set()
    lost: list[Lost] = []
    dropped: int = 0
    past: bool = False

    def add(self, more: Outcome) -> None:
        """Append the changes, events, rows and ends of `more`, which were found later."""
        self.changes += more.changes
        self.events += more.events
        self.attributed += more.attributed
        self.ended |= more.ended
