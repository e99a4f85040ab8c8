"""The tap: each log row as it arrives, with the job that it was attributed to, and why.

It shows an engineer how the correlator reads the log. If the writer is slow, rows are dropped and their number is
passed on instead: the pipeline never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from correlator.model.facts import AttributedRow
from correlator.model.rows import LEVELS, Level
from correlator.pipeline.hub import Batch, Hub

MAX_PENDING = 10_000
"""Maximum number of rows that wait for the writer. Above it the oldest are dropped."""


class TapRow(Struct, frozen=True):
    """A log row, and what is known of its job when it is shown."""

    row: AttributedRow
    operation: str | None = None
    step_name: str | None = None


class Dropped(Struct, frozen=True):
    """`count` rows came faster than they could be written."""

    count: int


class TapSink:
    """Calls `show` with each row. Satisfies `correlator.sinks.Sink`.

    `level`: the lowest level to show. `job`: a job ID or external ID; only rows of the job that it resolves to when the
    row arrives. `attributed`: only rows that were attributed to a job.
    """

    def __init__(
        self,
        show: Callable[[TapRow | Dropped], None],
        *,
        level: Level = "DEBUG",
        job: str | None = None,
        attributed: bool = False,
    ) -> None:
        self._show = show
        self._min_severity = LEVELS.index(level)
        self._job = job
        self._attributed = attributed
        self._pending: deque[AttributedRow] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()

    async def run(self, hub: Hub) -> None:
        """Show rows until cancelled. Raises: whatever `show` raises."""
        unsubscribe = hub.subscribe(lambda batch: self._on_batch(hub, batch))
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._dropped:
                    self._show(Dropped(self._dropped))
                    self._dropped = 0
                while self._pending:
                    self._show(_described(hub, self._pending.popleft()))
        finally:
            unsubscribe()

    def _on_batch(self, hub: Hub, batch: Batch) -> None:
        for row in batch.lines:
            if LEVELS.index(row.entry.level) >= self._min_severity and self._matches(hub, row):
                self._pending.append(row)
        while len(self._pending) > MAX_PENDING:
            self._pending.popleft()
            self._dropped += 1
        if self._pending:
            self._wake.set()

    def _matches(self, hub: Hub, row: AttributedRow) -> bool:
        if self._attributed and row.job_id is None:
            return False
        if self._job is None or self._job in (row.job_id, *row.entry.external_ids):
            return True
        if row.job_id is None:
            return False
        resolved = hub.published.resolve(self._job)
        return resolved is not None and resolved.job_id == row.job_id


def _described(hub: Hub, row: AttributedRow) -> TapRow:
    """Add the operation of the row's job, and the name of its step: from the row, or from the job's document."""
    shown = hub.published.get(row.job_id) if row.job_id is not None else None
    steps = shown.view.steps if shown is not None else ()
    known = (step.name for step in steps if step.id == row.entry.step_id)
    return TapRow(row, shown.view.operation if shown is not None else None, row.entry.step_name or next(known, None))
