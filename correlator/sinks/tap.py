"""The tap: one line for each log row as it arrives, with the job that it was attributed to, and why.

It shows an engineer how the correlator reads the log. If the writer is slow, lines are dropped and their number is
written instead: the pipeline never waits.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Literal

from correlator.jobs import job_document
from correlator.jobs.model.facts import AttributedRow, Attribution
from correlator.jobs.model.rows import Level
from correlator.jobs.model.views import PublishedJob
from correlator.ops.logs import escape
from correlator.pipeline.hub import Batch, Hub

Output = Literal["text", "json"]

MAX_PENDING = 10_000
"""Maximum number of lines that wait for the writer. Above it the oldest are dropped."""

SEVERITY: dict[Level, int] = {"DEBUG": 0, "INFO": 1, "WARN": 2, "ERROR": 3}

REASONS: dict[Attribution, str] = {
    "column": "by its job_id column",
    "attrs": "by its attrs",
    "step": "by its step",
    "external_id": "by an external ID",
    "none": "no job",
}


class TapSink:
    """Calls `write` with each line, without its line end. Satisfies `correlator.sinks.Sink`.

    `level`: the lowest level to write. `job`: a job ID or external ID; only rows of the job that it resolves to when
    the row arrives. `output`: text, or one JSON object per line.
    """

    def __init__(
        self, write: Callable[[str], None], *, level: Level = "DEBUG", job: str | None = None, output: Output = "text"
    ) -> None:
        self._write = write
        self._min_severity = SEVERITY[level]
        self._job = job
        self._output = output
        self._pending: deque[AttributedRow] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()

    async def run(self, hub: Hub) -> None:
        """Write lines until cancelled. Raises: whatever `write` raises."""
        unsubscribe = hub.subscribe(lambda batch: self._on_batch(hub, batch))
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._dropped:
                    self._write(self._dropped_line(self._dropped))
                    self._dropped = 0
                while self._pending:
                    self._write(self._line(hub, self._pending.popleft()))
        finally:
            unsubscribe()

    def _on_batch(self, hub: Hub, batch: Batch) -> None:
        for row in batch.lines:
            if SEVERITY[row.entry.level] >= self._min_severity and self._matches(hub, row):
                self._pending.append(row)
        while len(self._pending) > MAX_PENDING:
            self._pending.popleft()
            self._dropped += 1
        if self._pending:
            self._wake.set()

    def _matches(self, hub: Hub, row: AttributedRow) -> bool:
        if self._job is None or self._job in (row.job_id, *row.entry.external_ids):
            return True
        if row.job_id is None:
            return False
        resolved = hub.published.resolve(self._job)
        return resolved is not None and resolved.job_id == row.job_id

    def _line(self, hub: Hub, row: AttributedRow) -> str:
        entry = row.entry
        if self._output == "json":
            shown = hub.published.get(row.job_id) if row.job_id is not None else None
            attributes = {"job_id": row.job_id, "by": row.by, "step_name": _step_name(row, shown)}
            return _json({**job_document.log_line(entry), **attributes})
        shown = hub.published.get(row.job_id) if row.job_id is not None else None
        step = f" step {entry.step_id}" if entry.step_id is not None else ""
        if name := _step_name(row, shown):
            step += f" {escape(name)}"
        if row.job_id is not None:
            operation = f" ({escape(shown.view.operation)})" if shown is not None and shown.view.operation else ""
            attribution = f"{escape(row.job_id)}{operation}{step}, {REASONS[row.by]}"
        elif entry.job_id is not None:
            attribution = f"no job: {escape(entry.job_id)} is not known{step}"
        else:
            attribution = f"no job{step}"
        at, message = job_document.rfc3339(entry.at), escape(entry.message)
        return f"{at} {entry.event_id} {entry.level:5} {message}  <- {attribution}"

    def _dropped_line(self, count: int) -> str:
        if self._output == "json":
            return _json({"dropped": count})
        return f"({count} lines came faster than they could be written, and are not shown)"


def _step_name(row: AttributedRow, shown: PublishedJob | None) -> str | None:
    """Return the name of the row's step: from the row, or from the job's document."""
    steps = shown.view.steps if shown is not None else ()
    known = (step.name for step in steps if step.id == row.entry.step_id)
    return row.entry.step_name or next(known, None)


def _json(value: object) -> str:
    """Encode in ASCII, so that no terminal interprets a text as a control sequence."""
    return json.dumps(value, default=str)
