"""Legacy jobs: rows of `failover_jobs`, published for as long as no JobLog job has their ID.

A row is published once a table query has found that it stands apart (`LegacyRecord.apart`). If a JobLog job with its ID
appears, the legacy job is withdrawn before that job is published. Rows that expired or that a JobLog job owns are set
aside: they stay unpublished until they change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec.structs import replace

from correlator.jobs import job_view
from correlator.jobs.bounded import BoundedDict
from correlator.jobs.model.facts import Job
from correlator.jobs.model.persisted import PersistedJob, PersistedLegacy
from correlator.jobs.model.rows import LegacyRecord, Micros
from correlator.jobs.outcome import Outcome
from correlator.jobs.published import PublishedJobs
from correlator.jobs.timers import ended_at

MAX_SET_ASIDE = 10_000
"""Rows remembered as unpublished. Beyond that, rows stay unpublished that ended before one that was forgotten."""


class LegacyJobs:
    """The rows in memory by job ID, and their publication. Only the index calls what takes an `Outcome`.

    `facts`: those of JobLog jobs.
    """

    def __init__(self, facts: Collection[str], published: PublishedJobs) -> None:
        self._facts = facts
        self._published = published
        self._rows: dict[str, LegacyRecord] = {}
        self._set_aside: BoundedDict[str, LegacyRecord] = BoundedDict(MAX_SET_ASIDE)
        self._forgotten_until: Micros = -1
        """The newest end of a row that was set aside and is not remembered any more."""
        self._changed: dict[str, None] = {}
        self._past: set[str] = set()
        """Undecided rows that were read while loading: publishing them causes no events."""

    def get(self, job_id: str) -> LegacyRecord | None:
        return self._rows.get(job_id)

    def all(self) -> Iterable[LegacyRecord]:
        return self._rows.values()

    def pop_changed(self) -> dict[str, None]:
        """The IDs of rows that were set or removed since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def is_set_aside(self, row: LegacyRecord) -> bool:
        """True if this row is not published until it changes."""
        if (known := self._set_aside.get(row.job_id)) is not None:
            return known == replace(row, apart=False)
        if self._forgotten_until < 0 or row.job_id in self._rows:
            return False
        view = job_view.legacy_view(row)
        return view.terminal and ended_at(view) <= self._forgotten_until

    def apply(self, rows: Iterable[LegacyRecord], gone: Iterable[str], now: Micros, out: Outcome) -> None:
        """Apply rows that were read, and the IDs of rows that were deleted."""
        for row in rows:
            if not self.is_set_aside(row):
                known = self._rows.get(row.job_id)
                self._put(replace(row, apart=row.apart or (known is not None and known.apart)), now, out)
        for job_id in gone:
            if self._drop(job_id) is not None:
                self._published.hide_legacy(job_id, "gone", out)

    def decide(self, owned: Iterable[str], apart: Iterable[str], now: Micros, out: Outcome) -> None:
        """Apply a query about IDs: JobLog jobs own the IDs `owned`, none owns those in `apart`."""
        for job_id in owned:
            if self.retire(job_id):
                self._published.hide_legacy(job_id, "merged", out)
        for job_id in apart:
            if (known := self._rows.get(job_id)) is not None:
                self._put(replace(known, apart=True), now, out)

    def restore(self, rows: Iterable[PersistedLegacy], now: Micros, out: Outcome) -> None:
        """Publish rows from a checkpoint with the time of their last change."""
        for stored in rows:
            self._rows[stored.job_id] = row = stored.row
            job = PersistedJob(Job(row.job_id), row.updated_at or now, silence=stored.silence)
            self._settle(row, now, out, job)

    def withdraw(self, names: Iterable[str], out: Outcome) -> None:
        """Withdraw the legacy jobs with these IDs: a JobLog job that has them is about to be published."""
        for name in names:
            self._published.hide_legacy(name, "merged", out)

    def settle(self, names: Iterable[str], now: Micros, out: Outcome) -> None:
        """Publish or withdraw the rows with these IDs, after JobLog jobs have gained or lost them."""
        for name in names:
            if (row := self._rows.get(name)) is not None:
                self._settle(row, now, out)

    def retire(self, job_id: str) -> bool:
        """Remove a row and set it aside. Returns False if there is none."""
        if (row := self._drop(job_id)) is None:
            return False
        self._put_aside(row)
        return True

    def _put_aside(self, row: LegacyRecord) -> None:
        if (forgotten := self._set_aside.put(row.job_id, replace(row, apart=False))) is not None:
            view = job_view.legacy_view(forgotten[1])
            if view.terminal:
                end = min(ended_at(view), self._published.newest_time)
                self._forgotten_until = max(self._forgotten_until, end)

    def _drop(self, job_id: str) -> LegacyRecord | None:
        row = self._rows.pop(job_id, None)
        self._past.discard(job_id)
        self._published.await_no_longer(job_id)
        if row is not None:
            self._changed[job_id] = None
        return row

    def _put(self, row: LegacyRecord, now: Micros, out: Outcome) -> None:
        known, view = self._rows.get(row.job_id), job_view.legacy_view(row)
        if known is None and (self._published.has_expired(view, now) or not self._published.has_room(view)):
            self._put_aside(row)
            self._published.leave_out(view.started_at or 0)
            return
        if known != row:
            self._rows[row.job_id] = row
            self._changed[row.job_id] = None
        self._settle(row, now, out)

    def _settle(self, row: LegacyRecord, now: Micros, out: Outcome, restored: PersistedJob | None = None) -> None:
        """Publish a row if it is certain that no JobLog job has its ID, else withdraw it."""
        job_id = row.job_id
        self._published.await_no_longer(job_id)
        if job_id in self._facts:
            return
        view = job_view.legacy_view(row)
        if self._published.has_expired(view, now):
            self.retire(job_id)
            self._published.hide_legacy(job_id, "retention", out)
        elif self._published.owner(job_id) is not None:
            self._published.hide_legacy(job_id, "merged", out)
        elif row.apart:
            shown = Outcome(past=job_id in self._past or out.past)
            self._past.discard(job_id)
            self._published.show(view, row.updated_at or row.created_at or 0, now, shown, restored=restored)
            out.add(shown)
        else:
            self._published.await_legacy(job_id, view.started_at or 0)
            if out.past:
                self._past.add(job_id)
