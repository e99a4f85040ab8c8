"""The attribution of log rows to jobs, and the rows that are pending until their job is known or published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from correlator.jobs import joblog
from correlator.jobs.ids import OwnIds
from correlator.jobs.missing_rows import Transitions
from correlator.jobs.model.changes import Event
from correlator.jobs.model.facts import AttributedRow, Attribution, Entry
from correlator.jobs.model.rows import Micros, StepRecord
from correlator.jobs.outcome import Outcome
from correlator.jobs.pending_rows import PendingRows

MAX_STEP_ROWS = 1_000
MAX_STEP_ROWS_BYTES = 4 << 20
"""The bounds of pending rows of steps whose job is unknown, in rows and bytes."""

MAX_UNLOADED = 5_000
MAX_UNLOADED_BYTES = 16 << 20
"""The bounds of pending rows of jobs that are not published yet, in rows and bytes. The source pauses before."""

WAIT_FOR = 30_000_000
"""Microseconds that a row of an unknown step stays pending. The tables have been queried for the step long before."""

StepRow: TypeAlias = tuple[Micros, Entry, bool]
"""The arrival time of a row, the row, and True if it belongs to the log's past."""


class Attributor:
    """Attributes each log row to a job by its job ID, else by its step, else by an external ID.

    `own_ids` are those of the jobs in memory; `owner_of` returns the job that owns an external ID. Lifecycle rows are
    reported to `transitions`.
    """

    def __init__(self, own_ids: OwnIds, owner_of: Callable[[str], str | None], transitions: Transitions) -> None:
        self._own_ids = own_ids
        self._owner_of = owner_of
        self._transitions = transitions
        self._step_jobs: dict[int, str] = {}
        self._job_steps: dict[str, list[int]] = {}
        """The inverse of `_step_jobs`, which also has the steps that the tables do not contain any more."""
        self._step_rows: PendingRows[int, StepRow] = PendingRows(
            MAX_STEP_ROWS, MAX_STEP_ROWS_BYTES, lambda row: joblog.size(row[1])
        )
        self._unloaded: PendingRows[str, AttributedRow] = PendingRows(
            MAX_UNLOADED, MAX_UNLOADED_BYTES, lambda row: joblog.size(row.entry)
        )

    @property
    def unloaded_rows(self) -> int:
        """The number of pending rows of jobs that are not published yet."""
        return self._unloaded.count

    def attribute(self, entry: Entry, now: Micros, out: Outcome) -> str | None:
        """Add a row and its event to `out`. Returns its job ID, or None if the job is unknown."""
        job_id = self._own_ids.of(entry.job_id) if entry.job_id is not None else None
        by: Attribution = entry.by
        if job_id is None and entry.step_id is not None:
            job_id, by = self._step_jobs.get(entry.step_id), "step"
            if job_id is None:
                out.unread_steps.add(entry.step_id)
                out.attributed += _unattributed(self._step_rows.add(entry.step_id, (now, entry, out.past)))
                return None
        if job_id is None and entry.external_ids:
            job_id = self._owner_of(entry.external_ids[0])
            by = "external_id" if job_id is not None else "none"
        out.attributed.append(AttributedRow(entry, job_id, by))
        if entry.kind is not None and job_id is not None:
            self._transitions.row_arrived(job_id, entry.step_id, entry.kind)
            if not out.past:
                name = entry.step_name or None
                event = Event(
                    entry.kind, job_id, entry.at, entry.event_id, entry.step_id, name, entry.error, entry.error_cut
                )
                out.events.append(event)
        return job_id

    def hold_back(self, unread: Mapping[str, None], out: Outcome) -> None:
        """Hold back rows of the jobs in `unread`, which are not published yet, until their first subscribers exist."""
        if out.past or not (unread or self._unloaded):
            return
        released: list[AttributedRow] = []
        for job_id in [i for i in self._unloaded if i not in unread]:
            released += self._unloaded.pop(job_id)
        for row in out.attributed:
            if row.job_id is not None and row.job_id in unread:
                released += self._unloaded.add(row.job_id, row)
            else:
                released.append(row)
        out.attributed = released

    def pop_unloaded(self, job_id: str) -> list[AttributedRow]:
        """Remove and return the rows of a job that were held back."""
        return self._unloaded.pop(job_id)

    def add_steps(self, steps: Iterable[StepRecord], job_id: str) -> list[StepRow]:
        """Record the job of steps. Returns the pending rows of those that were unknown."""
        new = [step.id for step in steps if step.id not in self._step_jobs]
        if not new:
            return []
        self._step_jobs.update(dict.fromkeys(new, job_id))
        self._job_steps.setdefault(job_id, []).extend(new)
        return [row for step_id in new for row in self._step_rows.pop(step_id)] if self._step_rows else []

    def forget_job(self, job_id: str) -> None:
        """Remove the steps of a job that leaves memory."""
        for step_id in self._job_steps.pop(job_id, ()):
            del self._step_jobs[step_id]

    def expire(self, now: Micros) -> list[AttributedRow]:
        """Remove and return rows of unknown steps that were pending for longer than `WAIT_FOR`."""
        rows: list[AttributedRow] = []
        for step_id in [i for i in self._step_rows if self._step_rows.first(i)[0] < now - WAIT_FOR]:
            rows += _unattributed(self._step_rows.pop(step_id))
        return rows


def _unattributed(rows: Iterable[StepRow]) -> list[AttributedRow]:
    """Rows that belong to no known job, without those of the log's past, which are not streamed."""
    return [AttributedRow(entry, None, "none") for _, entry, past in rows if not past]
