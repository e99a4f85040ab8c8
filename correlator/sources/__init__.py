"""Where rows come from. A source reads, a feed takes; neither knows who is behind the other.

A source delivers every committed row of the log at least once and at most once a run, in any order, and what the
tables say as often as it is asked. It never shows a row that was not committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from correlator.jobs.index import Outcome
from correlator.jobs.model import LegacyRecord, LogRow, Reading


class Feed(Protocol):
    """What a source writes to. Every call is synchronous and returns what the rows did to the index."""

    def look(self) -> int:
        """The tick of a look at the tables that begins now."""

    def rows(self, rows: Sequence[LogRow]) -> Outcome: ...

    def readings(self, readings: Iterable[Reading]) -> Outcome: ...

    def legacy(self, records: Iterable[LegacyRecord], gone: Iterable[str]) -> Outcome: ...

    def schema(self, *, tracking: bool) -> None:
        """What the appliance has: without job_tracking, jobs are known from the log alone."""

    def malformed(self, reason: str) -> None: ...

    def state(self, *, connected: bool, error: str | None = None) -> None:
        """Whether the database answers; said on every change and after every successful look."""

    def loading(self, done: int, total: int) -> None:
        """How far the past has been read, in log ids."""

    def loaded(self) -> None:
        """The past has been read: what comes from now on is news."""

    def attention(self) -> bool:
        """Whether jobs run, or readers watch something happen, so that looking often is worth it."""

    def untold(self) -> int:
        """How many rows wait for the tables to tell of their jobs."""

    def holding(self) -> bool:
        """Whether somebody waits for an ID that nobody knows yet."""

    def active(self) -> set[str]:
        """Jobs that have not ended."""

    def known(self) -> list[str]:
        """All jobs in memory."""

    def needs(self, job_id: str) -> bool:
        """Whether the tables should be asked about a job that began or ended lately."""

    def is_new(self, job_id: str) -> bool:
        """Whether nothing is known of the job yet."""

    def part(self, name: str, within: float) -> AbstractContextManager[Callable[[], None]]:
        """A task of the source, which says by the callable that it goes on (`correlator.liveness`)."""

    def unfinished_legacy(self) -> list[LegacyRecord]: ...

    def claimed(self, external_id: str) -> bool:
        """Whether a job in memory has this external ID."""


class Source(Protocol):
    """Runs until cancelled. A database that is away is a state that it reports, not an error."""

    async def run(self, feed: Feed) -> None: ...
