"""An index with jobs of every kind, and the changes of it and of pending events that a checkpoint gets."""

from __future__ import annotations

from correlator.jobs.index import Index
from correlator.model.facts import Entry, Kind, Reading
from correlator.model.persisted import Cursor, PersistedEvent, PersistedJob, PersistedLegacy
from correlator.model.rows import JobRecord, LegacyRecord, StepRecord
from correlator.sinks.event_log import EventLog
from correlator.state.checkpoint import Changes

NOW = 1_758_550_000_000_000


def filled(count: int = 3) -> Index:
    index = Index()
    index.loading = False
    for n in range(count):
        job_id = f"job{n}"
        record = JobRecord(
            job_id,
            status="running" if n else "failed",
            started_at=NOW - n,
            completed_at=None if n else NOW,
            external_job_id=f"e{n}",
            parent_job_id="job0" if n == 1 else None,
            metadata='{"vm_name": "v"}',
            error_message=None if n else "boom",
        )
        step = StepRecord(n, "s", 1, "running", NOW)
        rows = [
            Entry(10 * n, NOW, "INFO", "Job started", index.advance_clock(), job_id, kind=Kind.JOB_STARTED, by="attrs"),
            Entry(10 * n + 1, NOW, "ERROR", "broken", index.advance_clock(), job_id, step_id=n, by="attrs"),
        ]
        index.apply([Reading(job_id, index.advance_clock(), record, (step,)), *rows], NOW)
    index.apply_legacy([LegacyRecord(1, "legacy", "snapshotting", created_at=NOW, updated_at=NOW, apart=True)], (), NOW)
    return index


def kept(event_log: EventLog) -> dict[int, PersistedEvent]:
    """What a checkpoint has of the pending events."""
    event_log.mark_all()
    return {number: event for number, event in event_log.changed().items() if event is not None}


def stored(index: Index) -> tuple[list[PersistedJob], list[PersistedLegacy]]:
    """What a checkpoint has of all jobs and rows of `failover_jobs`."""
    kept = [index.persisted(i) for i in index.all_ids()]
    return [k for k in kept if isinstance(k, PersistedJob)], [k for k in kept if isinstance(k, PersistedLegacy)]


def changes(index: Index, cursor: Cursor | None = None, **events: bytes | None) -> Changes:
    """`events`: the bodies of those that were added, by number; None: it was removed."""
    numbered = {int(n[1:]): ("mqtt", b"j", body) if body is not None else None for n, body in events.items()}
    jobs = {i: index.persisted(i) for i in index.changed_ids()}
    return Changes(5.0, cursor or Cursor(7), index.state(), jobs, numbered)
