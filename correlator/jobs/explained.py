"""Events that a job failed wait until the tables say why: JobLog's log row is often read some milliseconds earlier.

Invariants: an event waits for `WITHIN` at the most, and the events of a job stay in order. `MAX_WAITING` bounds them:
one more releases those of the job that has waited longest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from correlator.jobs.directory import PublishedJobs
from correlator.model.facts import Kind
from correlator.model.published import Change, Event
from correlator.model.rows import Micros

WITHIN = 5_000_000
"""Microseconds for which an event waits."""

MAX_WAITING = 1_000


class ExplainedEvents:
    """See the module's docstring. `is_open(job_id)`: the tables may still say why this job failed."""

    def __init__(self, published: PublishedJobs, is_open: Callable[[str], bool], *, most: int = MAX_WAITING) -> None:
        self._published, self._is_open, self._most = published, is_open, most
        self._waiting: dict[str, tuple[Micros, list[Event]]] = {}
        """The events of a job, and when they are passed on whatever the tables say; the first to be due first."""
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def pending(self) -> tuple[tuple[Micros, Event], ...]:
        """All events that wait, each with the time at which it is due, for a checkpoint."""
        return tuple((due, event) for due, events in self._waiting.values() for event in events)

    def pass_on(self, events: Iterable[Event], changes: Iterable[Change], now: Micros) -> list[Event]:
        """The events of one call of the index that need not wait, after those that have waited long enough.

        `changes`: those of the same call. A clock that was set back ends all waits.
        """
        passed: list[Event] = []
        for job_id in [c.job_id for c in changes if c.job_id in self._waiting] if self._waiting else ():
            if not self._is_open(job_id):
                passed += self._release(job_id)
        while self._waiting:
            job_id, (due, _) = next(iter(self._waiting.items()))
            if now < due <= now + WITHIN and self._count <= self._most:
                break
            passed += self._release(job_id)
        for event in events:
            if event.job_id in self._waiting:
                self._waiting[event.job_id][1].append(event)
            elif event.kind is Kind.JOB_FAILED and self._is_open(event.job_id):
                self._waiting[event.job_id] = now + WITHIN, [event]
            else:
                passed.append(self._explained(event))
                continue
            self._count += 1
            while self._count > self._most:
                passed += self._release(next(iter(self._waiting)))
        return passed

    def _release(self, job_id: str) -> list[Event]:
        _, events = self._waiting.pop(job_id, (0, ()))
        self._count -= len(events)
        return [self._explained(event) for event in events]

    def _explained(self, event: Event) -> Event:
        if event.kind is not Kind.JOB_FAILED or (shown := self._published.get(event.job_id)) is None:
            return event
        return replace(event, failure=shown.failure)
