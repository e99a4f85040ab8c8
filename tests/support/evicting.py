"""Tables whose log rows are all lost, and an index with little room that reads them, ends and starts again."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from correlator.jobs.index import Index
from correlator.model.facts import Reading
from correlator.model.persisted import IndexState, PersistedJob, PersistedLegacy
from correlator.model.published import Change, Event, Outcome
from correlator.model.rows import JobRecord, Micros

SECOND = 1_000_000
BASE = 1_758_550_000 * SECOND
READ_BACK = 60 * SECOND
"""how far the first queries after a start reach back for jobs that began or ended, as `reconcile.LATE_COMMIT`."""


@dataclass
class Evicting:
    """The tables, the index, and what it published. Times in microseconds; each change takes a second or more."""

    max_jobs: int
    retention: float = 100_000.0
    now: Micros = BASE
    records: dict[str, JobRecord] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    later: set[str] = field(default_factory=set)
    """The jobs whose end the index reported: they are read again, as `Reconcile.note` does."""

    def __post_init__(self) -> None:
        self.index = self._made()

    def _made(self) -> Index:
        return Index(max_jobs=self.max_jobs, retention=self.retention, stalled_after=lambda: 10.0**9)

    # -- the tables

    def start(self, job_id: str) -> None:
        self.records[job_id] = JobRecord(job_id, status="running", started_at=self.now)

    def end(self, job_id: str) -> None:
        started = self.records[job_id].started_at
        self.records[job_id] = JobRecord(job_id, status="completed", started_at=started, completed_at=self.now)

    # -- the index

    def load(self) -> None:
        """Read what `Reconcile.load` reads."""
        room = self.max_jobs - sum(r.status == "running" for r in self.records.values())
        ended = [i for i, r in self.records.items() if r.status == "completed"]
        ended.sort(key=lambda i: (self.records[i].completed_at or 0, i), reverse=True)
        self.read(*(i for i, r in self.records.items() if r.status == "running"), *ended[: max(0, room)])

    def read_recent(self) -> None:
        """Read what `Reconcile._moving` finds."""
        since = self.now - READ_BACK
        recent = [
            i
            for i, r in self.records.items()
            if max(r.started_at or 0, r.completed_at or 0) >= since or r.status == "running"
        ]
        self.read(*(i for i in recent if self.index.known.needs_reading(i)))

    def read(self, *job_ids: str) -> Outcome:
        facts = [Reading(i, self.index.advance_clock(), self.records.get(i), ()) for i in job_ids]
        return self._published(self.index.apply(facts, self.now))

    def expire(self) -> Outcome:
        return self._published(self.index.expire(self.now))

    def restart(self, *, max_jobs: int | None = None, retention: float | None = None) -> None:
        """End, and start again with what a checkpoint has. The tables have not been read yet."""
        kept = [self.index.persistence.get(i) for i in self.index.persistence.all_ids()]
        stored = msgspec.msgpack.encode(self.index.state())
        self.max_jobs = self.max_jobs if max_jobs is None else max_jobs
        self.retention = self.retention if retention is None else retention
        self.later.clear()
        self.index = self._made()
        jobs = [one for one in kept if isinstance(one, PersistedJob)]
        legacy = [one for one in kept if isinstance(one, PersistedLegacy)]
        state = msgspec.msgpack.decode(stored, type=IndexState)
        for outcome in self.index.restore(jobs, legacy, state, self.now):
            self._published(outcome)
        self.index.loading = False

    def settle(self) -> None:
        """Let all pending transitions become events, and jobs leave that have no room."""
        for _ in range(len(self.records) + 3):
            self.now += 10 * SECOND
            self.expire()

    def forget(self) -> None:
        """Forget what was published until now."""
        self.events.clear()
        self.changes.clear()
        self.later.clear()

    def _published(self, outcome: Outcome) -> Outcome:
        self.events += outcome.events
        self.changes += outcome.changes
        self.later |= outcome.ended
        return outcome
