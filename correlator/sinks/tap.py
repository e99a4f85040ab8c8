"""The tap: one line for each row of the log as it arrives, with the job that it was tied to, and why.

For engineers who want to see what the correlator makes of the log. A writer that is slow loses lines, and is told how
many: the pipeline never waits.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Literal

from correlator.hub import Batch, Hub
from correlator.jobs import wire
from correlator.jobs.model import Level, Tie, Tied
from correlator.logs import escape

Output = Literal["text", "json"]

MAX_WAITING = 10_000
"""Lines that wait for the writer; beyond it the oldest go."""

LEVELS: dict[Level, int] = {"DEBUG": 0, "INFO": 1, "WARN": 2, "ERROR": 3}

WHY: dict[Tie, str] = {
    "column": "by its job_id column",
    "attrs": "by its attrs",
    "step": "by its step",
    "external_id": "by an external ID",
    "none": "no job",
}


class TapSink:
    """Writes lines, without their ends, by `write`. `job`: any ID; only rows of the job that it leads to then."""

    def __init__(
        self, write: Callable[[str], None], *, level: Level = "DEBUG", job: str | None = None, output: Output = "text"
    ) -> None:
        self._write = write
        self._least = LEVELS[level]
        self._job = job
        self._output = output
        self._waiting: deque[Tied] = deque()
        self._dropped = 0
        self._news = asyncio.Event()

    async def run(self, hub: Hub) -> None:
        """Until cancelled. Whatever `write` raises ends it."""
        leave = hub.listen(lambda batch: self._hear(hub, batch))
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._dropped:
                    self._write(self._loss(self._dropped))
                    self._dropped = 0
                while self._waiting:
                    self._write(self._line(hub, self._waiting.popleft()))
        finally:
            leave()

    def _hear(self, hub: Hub, batch: Batch) -> None:
        for tied in batch.lines:
            if LEVELS[tied.entry.level] >= self._least and self._wants(hub, tied):
                self._waiting.append(tied)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        if self._waiting:
            self._news.set()

    def _wants(self, hub: Hub, tied: Tied) -> bool:
        if self._job is None or self._job in (tied.job_id, *tied.entry.external_ids):
            return True
        if tied.job_id is None:
            return False
        resolved = hub.index.resolve(self._job)
        return resolved is not None and resolved.job_id == tied.job_id

    def _line(self, hub: Hub, tied: Tied) -> str:
        entry = tied.entry
        if self._output == "json":
            return _json({**wire.log_line(entry), "job_id": tied.job_id, "by": tied.by})
        step = f" step {entry.step_id}" if entry.step_id is not None else ""
        if tied.job_id is not None:
            shown = hub.index.get(tied.job_id)
            operation = f" ({escape(shown.view.operation)})" if shown is not None and shown.view.operation else ""
            whose = f"{escape(tied.job_id)}{operation}{step}, {WHY[tied.by]}"
        elif entry.job_id is not None:
            whose = f"no job: {escape(entry.job_id)} is not known{step}"
        else:
            whose = f"no job{step}"
        return f"{wire.rfc3339(entry.at)} {entry.event_id} {entry.level:5} {escape(entry.message)}  <- {whose}"

    def _loss(self, count: int) -> str:
        if self._output == "json":
            return _json({"dropped": count})
        return f"({count} lines came faster than they could be written, and are not shown)"


def _json(value: object) -> str:
    """In ASCII, so that no terminal takes a text for a command."""
    return json.dumps(value, default=str)
